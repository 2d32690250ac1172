package review

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of what one cell or line shows, in bytes.
const (
	maxCell  = 200
	maxValue = 120
)

// code writes what others wrote as a code span of a table: no forge finds a
// mention, a link, a command or markup in it. The backtick that would end it
// and the pipe that would end the cell are replaced, for there is no way to
// escape them that all forges agree on.
func code(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '`':
			return '\''
		case r == '|':
			return '¦'
		case !unicode.IsPrint(r): // line ends, controls, marks that reorder text
			return ' '
		}
		return r
	}, cut(strings.ToValidUTF8(s, "\uFFFD"), maxCell))
	// A backslash at the end could take the closing backtick with it.
	s = strings.TrimRight(strings.TrimLeft(s, " "), "\\ ")
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

// line makes text one line of a fenced block, which it cannot end. The runners of
// GitHub and Gitea read what a job prints, and take "##[" anywhere in a line for a
// command: one of them hides words in all that follows.
func line(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '`':
			return '\''
		case !unicode.IsPrint(r):
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	return strings.ReplaceAll(s, "##[", "## [")
}

// quote makes a value visible on one line, whatever it holds.
func quote(s string) string {
	s = cut(s, maxValue)
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// cut shortens text to so many bytes, and shows that it did.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	at := most - len("…")
	for at > 0 && !utf8.RuneStart(s[at]) {
		at--
	}
	return s[:at] + "…"
}

func short(rev string) string { return rev[:min(12, len(rev))] }
