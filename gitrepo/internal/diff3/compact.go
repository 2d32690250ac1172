package diff3

// run is a maximal stretch of changed lines, or the empty place between two
// neighbouring lines that are not. The runs of both texts correspond one to one.
type run struct {
	m          *marks
	start, end int
}

func firstRun(m *marks) *run {
	r := &run{m: m}
	r.grow()
	return r
}

func (r *run) empty() bool { return r.start == r.end }

func (r *run) grow() {
	for r.m.at(r.end) {
		r.end++
	}
}

// forth moves to the run behind the next unchanged line.
func (r *run) forth() bool {
	if r.end == len(r.m.ids) {
		return false
	}
	r.start = r.end + 1
	r.end = r.start
	r.grow()
	return true
}

// back moves to the run before the unchanged line ahead of this one.
func (r *run) back() {
	r.end = r.start - 1
	r.start = r.end
	for r.m.at(r.start - 1) {
		r.start--
	}
}

// up shifts the run by a line, and swallows a run that it meets: the line it
// gives up at its end reads as the one it takes in.
func (r *run) up() bool {
	if r.start == 0 || r.m.ids[r.start-1] != r.m.ids[r.end-1] {
		return false
	}
	r.start--
	r.end--
	r.m.changed[r.start], r.m.changed[r.end] = true, false
	for r.m.at(r.start - 1) {
		r.start--
	}
	return true
}

func (r *run) down() bool {
	if r.end == len(r.m.ids) || r.m.ids[r.start] != r.m.ids[r.end] {
		return false
	}
	r.m.changed[r.start], r.m.changed[r.end] = false, true
	r.start++
	r.end++
	r.grow()
	return true
}

// compact joins changes that can be moved together, and moves each to the last
// place where it meets a change of the other text, or else as far down as it
// goes. Where a change can stand in several places this decides whether it
// touches one of the other side; so the choice has to be git's.
func compact(m, other *marks) {
	r, o := firstRun(m), firstRun(other)
	for {
		if !r.empty() {
			settle(r, o)
		}
		if !r.forth() {
			return
		}
		o.forth()
	}
}

func settle(r, o *run) {
	for {
		size := r.end - r.start
		for r.up() {
			o.back()
		}
		top, meets := r.end, !o.empty()
		for r.down() {
			o.forth()
			meets = meets || !o.empty()
		}
		if r.end-r.start != size {
			continue
		}
		if r.end != top && meets {
			for o.empty() {
				r.up()
				o.back()
			}
		}
		return
	}
}
