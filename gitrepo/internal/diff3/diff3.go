// Package diff3 merges two texts that were made from a third, line by line, as
// git merges files: the same changes are found, and the same ones conflict.
package diff3

import (
	"bytes"
	"slices"
)

// Merge applies what distinguishes theirs from base to ours. It reports false
// where both changed the same lines, or neighbouring ones, differently.
func Merge(base, ours, theirs []byte) (merged []byte, ok bool) {
	var ids interner
	o, a, b := ids.lines(base), ids.lines(ours), ids.lines(theirs)
	left, right := diff(o.ids, a.ids, len(ids)), diff(o.ids, b.ids, len(ids))
	var out bytes.Buffer
	at := 0 // in base
	for len(left) > 0 || len(right) > 0 {
		l, r := group(left, right)
		from, to := span(o, left[:l], right[:r])
		out.Write(o.slice(at, from))
		switch {
		case r == 0:
			out.Write(side(o, a, left[:l], from, to))
		case l == 0:
			out.Write(side(o, b, right[:r], from, to))
		default:
			mine := side(o, a, left[:l], from, to)
			if !bytes.Equal(mine, side(o, b, right[:r], from, to)) {
				return nil, false
			}
			out.Write(mine)
		}
		left, right, at = left[l:], right[r:], to
	}
	out.Write(o.slice(at, len(o.ids)))
	return out.Bytes(), true
}

// group counts the hunks at the head of both lists that touch one another: a
// single one, unless the other side changed lines of its own there.
func group(left, right []hunk) (l, r int) {
	if len(right) == 0 || len(left) > 0 && left[0].a+left[0].na < right[0].a {
		return 1, 0
	}
	if len(left) == 0 || right[0].a+right[0].na < left[0].a {
		return 0, 1
	}
	end := min(left[0].a, right[0].a)
	for {
		switch {
		case l < len(left) && left[l].a <= end:
			end = max(end, left[l].a+left[l].na)
			l++
		case r < len(right) && right[r].a <= end:
			end = max(end, right[r].a+right[r].na)
			r++
		default:
			return l, r
		}
	}
}

// span is the part of base that a group of hunks covers.
func span(o text, groups ...[]hunk) (from, to int) {
	from = len(o.ids)
	for _, hunks := range groups {
		for _, h := range hunks {
			from, to = min(from, h.a), max(to, h.a+h.na)
		}
	}
	return from, to
}

// side is what the lines [from, to) of base became by some hunks.
func side(base, changed text, hunks []hunk, from, to int) []byte {
	var out []byte
	for _, h := range hunks {
		out = append(out, base.slice(from, h.a)...)
		out = append(out, changed.slice(h.b, h.b+h.nb)...)
		from = h.a + h.na
	}
	return append(out, base.slice(from, to)...)
}

// text is a content cut into lines, each with its line end.
type text struct {
	data []byte
	ids  []int32 // equal lines have equal numbers
	ends []int   // offsets in data
}

func (t text) slice(from, to int) []byte {
	if from >= to {
		return nil
	}
	start := 0
	if from > 0 {
		start = t.ends[from-1]
	}
	return t.data[start:t.ends[to-1]]
}

type interner map[string]int32

func (in *interner) lines(data []byte) text {
	if *in == nil {
		*in = interner{}
	}
	t := text{data: data}
	end := 0
	for line := range bytes.Lines(data) {
		id, ok := (*in)[string(line)]
		if !ok {
			id = int32(len(*in))
			(*in)[string(line)] = id
		}
		end += len(line)
		t.ids, t.ends = append(t.ids, id), append(t.ends, end)
	}
	return t
}

// hunk replaces na lines from line a by nb lines of the other text, from b.
type hunk struct{ a, na, b, nb int }

// diff finds the changes from a to b; distinct bounds the numbers of lines.
func diff(a, b []int32, distinct int) []hunk {
	x, y := newMarks(a), newMarks(b)
	h := &histogram{a: x, b: y, last: make([]seen, distinct), next: make([]int32, len(a))}
	h.run(0, len(a), 0, len(b))
	compact(x, y)
	compact(y, x)
	return script(x, y)
}

func script(a, b *marks) (hunks []hunk) {
	for i, j := 0, 0; i < len(a.ids) || j < len(b.ids); {
		if !a.at(i) && !b.at(j) {
			i, j = i+1, j+1
			continue
		}
		h := hunk{a: i, b: j}
		for a.at(i) {
			i++
		}
		for b.at(j) {
			j++
		}
		h.na, h.nb = i-h.a, j-h.b
		hunks = append(hunks, h)
	}
	return slices.Clip(hunks)
}
