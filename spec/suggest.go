package spec

import (
	"iter"
	"slices"
	"strings"
)

// DidYouMean asks for the nearest of what is known; empty if none is near.
func DidYouMean(s string, known []string) string {
	if n := nearest(s, slices.Values(known)); n != "" {
		return "; did you mean " + n + "?"
	}
	return ""
}

// nearest returns the candidate that s is most likely a slip of; empty if none
// is near. Of equally near ones the first in order of the alphabet.
func nearest(s string, candidates iter.Seq[string]) string {
	if len(s) > 64 {
		return ""
	}
	limit := 1 + len(s)/4
	best, bestDistance := "", limit+1
	for c := range candidates {
		if d := len(c) - len(s); d > limit || d < -limit {
			continue
		}
		d := distance(strings.ToLower(s), strings.ToLower(c))
		if d < bestDistance || d == bestDistance && d <= limit && c < best {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is the number of insertions, deletions, substitutions and swaps of
// neighbours that make b out of a.
func distance(a, b string) int {
	var rows [3][66]int
	if len(a) >= len(rows[0]) || len(b) >= len(rows[0]) {
		return len(rows[0])
	}
	before, last, row := &rows[0], &rows[1], &rows[2]
	for j := range len(b) + 1 {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(row[j-1]+1, last[j]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
