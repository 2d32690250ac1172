package drift

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Trace is what is known of who changed an object, and when.
type Trace struct {
	At   time.Time
	Text string
}

// Context is what a message says beside the proposal.
type Context struct {
	Host, Branch string
	Revision     string // that the proposal is on top of
	Traces       map[string][]Trace
	// Since is when the agent first saw an object differ, by UID.
	Since     map[string]time.Time
	Unmanaged []Note
}

// Title is one line for the commit and the pull request.
func (p Proposal) Title(c Context) string {
	switch {
	case len(p.Items) == 1 && len(p.Items[0].Moved) == 1:
		return fmt.Sprintf("Drift on %s: %s/%s %s", c.Host, p.Items[0].Kind, p.Items[0].Name, line(p.Items[0].Moved[0].Field, 60))
	case len(p.Items) == 1:
		return fmt.Sprintf("Drift on %s: %s/%s", c.Host, p.Items[0].Kind, p.Items[0].Name)
	}
	return fmt.Sprintf("Drift on %s: %d objects", c.Host, len(p.Items))
}

// Message is the commit's.
func (p Proposal) Message(c Context) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nWhat runs on %s was changed behind the repository.\nThis commit makes the specs say what is there.\n", p.Title(c), c.Host)
	for _, item := range p.Items {
		fmt.Fprintf(&b, "\n%s/%s\n", item.Kind, item.Name)
		if item.Document != "" {
			fmt.Fprintf(&b, "  is here, and no file declares it: now %s does\n", item.File)
		}
		for _, m := range item.Moved {
			fmt.Fprintf(&b, "  %s\n", m.sentence())
		}
		for _, l := range c.known(item.UID) {
			fmt.Fprintf(&b, "  %s\n", l)
		}
	}
	writeNotes(&b, "\nNot in this commit:\n", "  ", p.Notes, line)
	return inert(b.String())
}

const maxNotes = 50

func (m Moved) sentence() string {
	switch {
	case m.Real == "":
		return fmt.Sprintf("%s: %s is declared, and gone", line(m.Field, 200), line(m.Declared, 100))
	case m.Declared == "":
		return fmt.Sprintf("%s: %s is there, and was not declared", line(m.Field, 200), line(m.Real, 100))
	}
	return fmt.Sprintf("%s: %s is declared, %s is there", line(m.Field, 200), line(m.Declared, 100), line(m.Real, 100))
}

// known is who and when, as far as anything is known.
func (c Context) known(uid string) []string {
	var list []string
	if at := c.Since[uid]; !at.IsZero() {
		list = append(list, "first seen by the agent at "+at.UTC().Format(time.RFC3339))
	}
	for _, t := range c.Traces[uid] {
		list = append(list, t.At.UTC().Format(time.RFC3339)+": "+line(t.Text, 300))
	}
	if len(c.Traces[uid]) == 0 {
		list = append(list, "who: not known")
	}
	return list
}

func writeNotes(b *strings.Builder, heading, lead string, notes []Note, show func(s string, limit int) string) {
	if len(notes) == 0 {
		return
	}
	b.WriteString(heading)
	for i, n := range notes {
		if i == maxNotes {
			fmt.Fprintf(b, "%s… and %d more\n", lead, len(notes)-i)
			return
		}
		fmt.Fprintf(b, "%s%s: %s\n", lead, show(n.Object, 200), show(n.Text, 400))
	}
}

// bodyLimit, in bytes, is well below what any forge takes.
const bodyLimit = 50_000

// Body is the text of the pull request.
func (p Proposal) Body(c Context) string {
	var b strings.Builder
	fmt.Fprintf(&b, "What runs on host `%s` differs from what `%s` declares, and not by a commit.\n", c.Host, inCode(c.Branch, 200))
	b.WriteString("Nothing of this is touched until you decide.\n\n")
	b.WriteString("- **Accept**: merge this pull request. The specs then say what is there.\n")
	if object := p.example(); object != "" {
		fmt.Fprintf(&b, "- **Revert**: on the host, `reconciler revert %s --reason …`; or declare `metadata.drift: Correct`.\n", object)
	}
	if slices.ContainsFunc(p.Items, func(i Item) bool { return i.Document != "" }) {
		b.WriteString("- What no file declares is taken over as it runs when this is merged, without a restart. Otherwise it is left alone.\n")
	}
	b.WriteString("\n")
	b.WriteString("This pull request closes by itself when the difference is gone. ")
	b.WriteString("The agent keeps its branch current as long as nobody else commits to it.\n")
	if len(p.Items) > 0 {
		b.WriteString("\n| object | field | declared | there |\n|---|---|---|---|\n")
	}
	left := 0
	for i, item := range p.Items {
		if b.Len() > bodyLimit/2 {
			left = len(p.Items) - i
			break
		}
		if item.Document != "" {
			fmt.Fprintf(&b, "| %s/%s | all | — | in %s now |\n", item.Kind, item.Name, span(item.File, 200))
		}
		for _, m := range item.Moved {
			fmt.Fprintf(&b, "| %s/%s | %s | %s | %s |\n", item.Kind, item.Name, span(m.Field, 200), span(m.Declared, 200), span(m.Real, 200))
		}
	}
	if left > 0 {
		fmt.Fprintf(&b, "\n… and %d more objects.\n", left)
	}
	if len(p.Items) > 0 {
		b.WriteString("\n**Who and when**\n\n")
	}
	for i, item := range p.Items {
		if b.Len() > bodyLimit*3/4 {
			fmt.Fprintf(&b, "… and %d more objects.\n", len(p.Items)-i)
			break
		}
		for _, l := range c.known(item.UID) {
			fmt.Fprintf(&b, "- %s/%s: %s\n", item.Kind, item.Name, span(l, 400))
		}
	}
	writeNotes(&b, "\n**Not in this pull request**\n\n", "- ", p.Notes, span)
	writeNotes(&b, "\n**Unmanaged on the host** (`reconciler import` says what can be adopted)\n\n", "- ", c.Unmanaged, span)
	fmt.Fprintf(&b, "\nOn top of %s.\n", c.Revision)
	return b.String()
}

// example is what to revert, as people type it; empty if there is nothing.
func (p Proposal) example() string {
	object := ""
	for _, item := range p.Items {
		switch {
		case item.Document != "":
		case object != "":
			return "KIND/NAME"
		default:
			object = inCode(string(item.Kind)+"/"+item.Name, 200)
		}
	}
	return object
}

// line makes one printable line of what came from the world.
func line(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
	if r := []rune(s); len(r) > limit {
		s = string(r[:limit-1]) + "…"
	}
	return strings.TrimSpace(s)
}

// span writes what others wrote as a code span, also of a table: no forge finds
// markup, a link or a mention in it. What would end the span or the cell is
// replaced, for there is no way to escape it that all forges agree on.
func span(s string, limit int) string {
	if s = inCode(s, limit); s == "" {
		return "—"
	}
	return "`" + s + "`"
}

func inCode(s string, limit int) string {
	// A backslash at the end could take the closing backquote with it.
	return strings.TrimRight(strings.NewReplacer("`", "'", "|", "¦").Replace(line(s, limit)), "\\ ")
}

// inert takes from the text of a commit what forges act on: a mention notifies,
// and "closes #1" closes.
func inert(s string) string {
	return strings.NewReplacer("@", "@\u200b", "#", "#\u200b", "!", "!\u200b", "://", ":\u200b//", "GH-", "GH\u200b-", "gh-", "gh\u200b-").Replace(s)
}
