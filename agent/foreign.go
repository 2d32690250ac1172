package agent

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxText is how much is kept of a text that others wrote: a commit, a forge, a
// guest, QEMU. It goes into records, events and reports.
const maxText = 4 << 10

// bounded is a text cut to maxText, by whole lines where it has several, and how
// much more there was.
func bounded(s string) string {
	s = strings.TrimLeft(strings.ToValidUTF8(s, string(utf8.RuneError)), "\n")
	if len(s) <= maxText {
		return s
	}
	const room = maxText - 64 // for the last line
	if i := strings.LastIndexByte(s[:room], '\n'); i > 0 {
		return fmt.Sprintf("%s\nand %d more", s[:i], 1+strings.Count(strings.TrimRight(s[i+1:], "\n"), "\n"))
	}
	line, rest, _ := strings.Cut(s, "\n")
	cut := room
	for cut < len(line) && !utf8.RuneStart(line[cut]) {
		cut--
	}
	text := fmt.Sprintf("%s… and %d more bytes", line[:cut], len(line)-cut)
	if rest != "" {
		text += fmt.Sprintf("\nand %d more", 1+strings.Count(strings.TrimRight(rest, "\n"), "\n"))
	}
	return text
}
