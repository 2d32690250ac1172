package diff3

// marks says which lines of a text have no counterpart in the other.
type marks struct {
	ids     []int32
	changed []bool
}

func newMarks(ids []int32) *marks { return &marks{ids, make([]bool, len(ids))} }

// at is false outside of the text.
func (m *marks) at(i int) bool { return i >= 0 && i < len(m.changed) && m.changed[i] }

func (m *marks) mark(from, to int) {
	for i := from; i < to; i++ {
		m.changed[i] = true
	}
}

// maxOccurrences is how often a line may stand in a range of the old text and
// still serve to align it. git's merges use the same number; with another one,
// we would find other changes than a forge does.
const maxOccurrences = 64

// histogram is the diff that git's merges use: the run of common lines whose
// rarest line is rarest is taken for unchanged, and what is before and after it
// is compared in turn.
type histogram struct {
	a, b *marks
	// Of the range of a under examination: where each distinct line was seen
	// first and how often, and for each position the next with the same line.
	last  []seen
	next  []int32
	round int32
}

type seen struct {
	round int32 // entries of other rounds are void
	first int32
	count int32
}

type match struct{ a, b, n int }

func (h *histogram) run(a0, a1, b0, b1 int) {
	for a0 < a1 && b0 < b1 {
		m, common := h.pick(a0, a1, b0, b1)
		switch {
		case m.n == 0 && common:
			myers(h.a, h.b, a0, a1, b0, b1)
			return
		case m.n == 0:
			h.a.mark(a0, a1)
			h.b.mark(b0, b1)
			return
		}
		h.run(a0, m.a, b0, m.b)
		a0, b0 = m.a+m.n, m.b+m.n
	}
	h.a.mark(a0, a1)
	h.b.mark(b0, b1)
}

// pick chooses the run of common lines to align on. None may be fit although
// there are common lines, if all of them are too frequent.
func (h *histogram) pick(a0, a1, b0, b1 int) (best match, common bool) {
	h.count(a0, a1)
	rarest := int32(maxOccurrences + 1)
	for b := b0; b < b1; {
		after := b + 1
		s := h.last[h.b.ids[b]]
		if s.round != h.round {
			b = after
			continue
		}
		common = true
		if s.count > rarest {
			b = after
			continue
		}
		for p := s.first; p >= 0; {
			m, count := h.extend(int(p), b, s.count, a0, a1, b0, b1)
			after = max(after, m.b+m.n)
			if m.n > max(best.n, 1) || count < rarest {
				best, rarest = m, count
			}
			// The next occurrence outside of this run.
			for p = h.next[p]; p >= 0 && int(p) < m.a+m.n; {
				p = h.next[p]
			}
		}
		b = after
	}
	if rarest > maxOccurrences {
		return match{}, common
	}
	return best, common
}

func (h *histogram) count(a0, a1 int) {
	h.round++
	for i := a1 - 1; i >= a0; i-- {
		s := &h.last[h.a.ids[i]]
		if s.round != h.round {
			*s = seen{round: h.round, first: -1}
		}
		h.next[i] = s.first
		s.first = int32(i)
		s.count++
	}
}

// extend grows a pair of equal lines in both directions. The count is that of
// the rarest line in the run.
func (h *histogram) extend(a, b int, count int32, a0, a1, b0, b1 int) (match, int32) {
	m := match{a, b, 1}
	for m.a > a0 && m.b > b0 && h.a.ids[m.a-1] == h.b.ids[m.b-1] {
		m.a, m.b, m.n = m.a-1, m.b-1, m.n+1
		count = min(count, h.last[h.a.ids[m.a]].count)
	}
	for m.a+m.n < a1 && m.b+m.n < b1 && h.a.ids[m.a+m.n] == h.b.ids[m.b+m.n] {
		count = min(count, h.last[h.a.ids[m.a+m.n]].count)
		m.n++
	}
	return m, count
}

// myers is the diff of ranges whose lines are all too frequent: the shortest
// one, found from both ends at once (Myers, An O(ND) Difference Algorithm and
// Its Variations, 1986, section 4b).
func myers(x, y *marks, a0, a1, b0, b1 int) {
	for a0 < a1 && b0 < b1 && x.ids[a0] == y.ids[b0] {
		a0, b0 = a0+1, b0+1
	}
	for a0 < a1 && b0 < b1 && x.ids[a1-1] == y.ids[b1-1] {
		a1, b1 = a1-1, b1-1
	}
	i, j, ok := 0, 0, a0 < a1 && b0 < b1
	if ok {
		i, j, ok = middle(x.ids[a0:a1], y.ids[b0:b1])
	}
	if !ok {
		x.mark(a0, a1)
		y.mark(b0, b1)
		return
	}
	myers(x, y, a0, a0+i, b0, b0+j)
	myers(x, y, a0+i, a1, b0+j, b1)
}

// maxEdits bounds the search for a shortest path: beyond, two ranges are taken
// to have nothing in common.
const maxEdits = 4000

// middle is a point on a shortest path from (0, 0) to (n, m) that is neither of
// them. Both texts have lines, and differ in the first and in the last.
func middle(a, b []int32) (int, int, bool) {
	n, m := len(a), len(b)
	delta := n - m
	forward := newFront(n, m, func(i, j int) bool { return a[i] == b[j] })
	backward := newFront(n, m, func(i, j int) bool { return a[n-1-i] == b[m-1-j] })
	for d := 0; d <= min(maxEdits, (n+m+1)/2); d++ {
		for k := -d; k <= d; k += 2 {
			i := forward.step(d, k)
			if back := delta - k; delta%2 != 0 && max(back, -back) < d && i+backward.at(back) >= n {
				return i, i - k, true
			}
		}
		for k := -d; k <= d; k += 2 {
			i := backward.step(d, k)
			if fore := delta - k; delta%2 == 0 && max(fore, -fore) <= d && i+forward.at(fore) >= n {
				return n - i, m - (i - k), true
			}
		}
	}
	return 0, 0, false
}

// front is how far along a each diagonal k = i - j was reached from one end.
type front struct {
	n, m  int
	equal func(i, j int) bool
	reach []int
}

// outside is a diagonal that has left the texts.
const outside = -1 << 40

func newFront(n, m int, equal func(i, j int) bool) *front {
	f := &front{n: n, m: m, equal: equal, reach: make([]int, 2*min(maxEdits, n+m)+5)}
	for i := range f.reach {
		f.reach[i] = outside
	}
	return f
}

func (f *front) at(k int) int { return f.reach[len(f.reach)/2+k] }

// step goes as far as possible on diagonal k with d edits.
func (f *front) step(d, k int) int {
	i := max(f.at(k-1)+1, f.at(k+1))
	if d == 0 {
		i = 0
	}
	if i < 0 || i > f.n || i-k < 0 || i-k > f.m {
		i = outside
	}
	for i >= 0 && i < f.n && i-k < f.m && f.equal(i, i-k) {
		i++
	}
	f.reach[len(f.reach)/2+k] = i
	return i
}
