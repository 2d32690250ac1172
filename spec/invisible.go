package spec

import (
	"bytes"
	"fmt"
	"unicode/utf8"
)

// invisible are characters that an editor does not show and YAML does not take
// for what they look like.
var invisible = []character{
	{'\ufeff', "a byte order mark", true},
	{'\u2028', "a line separator", true},
	{'\u2029', "a paragraph separator", true},
	{'\u0085', "a next line", true},
	{'\u00a0', "a no-break space", false},
	{'\u200b', "a zero width space", false},
}

type character struct {
	r    rune
	name string
	// breaks: the YAML reader ends a line at it, or the document.
	breaks bool
}

// quoted is how a message shows it.
func (c character) quoted() string { return fmt.Sprintf(`\u%04x`, c.r) }

func (c character) hint() string {
	return fmt.Sprintf("remove the invisible character U+%04X, %s", c.r, c.name)
}

// oddity finds near a line, as the YAML reader counts them, what is often
// behind an error that does not mention it: a directive, or a character that
// breaks a line and is not seen. It returns the offset and what to do.
func oddity(data []byte, line int) (at int, hint string) {
	now, start := 1, true
	for i := 0; i < len(data) && now <= line+1; {
		r, size := utf8.DecodeRune(data[i:])
		near := now >= line-2
		if start && near && r == '%' {
			directive, _, _ := bytes.Cut(data[i:], []byte("\n"))
			return i, fmt.Sprintf("leave out the directive %s", bytes.TrimSpace(directive[:min(len(directive), 40)]))
		}
		start = false
		for _, c := range invisible {
			if c.r == r && c.breaks && near {
				return i, c.hint()
			}
		}
		switch {
		case r == '\r' && bytes.HasPrefix(data[i:], []byte("\r\n")):
		case r == '\n', r == '\r', r == '\u0085', r == '\u2028', r == '\u2029':
			now, start = now+1, true
		}
		i += size
	}
	return 0, ""
}
