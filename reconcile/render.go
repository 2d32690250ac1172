package reconcile

import (
	"fmt"
	"io"
	"sort"
	"strings"
)

// symbols are OpenTofu's where it has one.
var symbols = map[Op]string{
	OpCreate: "+", OpUpdate: "~", OpStart: "~", OpStop: "~", OpRestart: "-/+", OpMigrate: "~",
	OpDelete: "-", OpQuarantine: "-", OpPurge: "-", OpRestore: "<=", OpAdopt: "<=",
	OpBlocked: "!", OpUnchanged: ".",
}

// summaryOrder lists operations, what hurts first.
var summaryOrder = []Op{
	OpPurge, OpQuarantine, OpDelete, OpStop, OpRestart, OpMigrate, OpBlocked,
	OpUpdate, OpStart, OpRestore, OpAdopt, OpCreate, OpUnchanged,
}

// Headline is the plan in one line: "Plan: 1 delete, 2 create, 14 unchanged;
// impact remove; 1 held".
func (p *Plan) Headline() string {
	var parts []string
	for _, op := range summaryOrder {
		if n := p.Summary[op]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, op))
		}
	}
	if len(parts) == 0 {
		return "Plan: nothing declared"
	}
	line := "Plan: " + strings.Join(parts, ", ") + "; impact " + p.Impact.String()
	parts = nil
	for _, s := range []ActionState{Waiting, Held} { // what is blocked is an operation of its own
		if n := p.Count(s); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	if len(parts) > 0 {
		line += "; " + strings.Join(parts, ", ")
	}
	if p.Incomplete {
		line += "; INCOMPLETE"
	}
	return line
}

// Count is the number of actions in a state, unchanged ones left out.
func (p *Plan) Count(s ActionState) int {
	n := 0
	for i := range p.Actions {
		if p.Actions[i].Op != OpUnchanged && p.Actions[i].State == s {
			n++
		}
	}
	return n
}

// releasable says whether a digest could release anything: drift has no id.
func (p *Plan) releasable() bool {
	for i := range p.Actions {
		if p.Actions[i].State == Held && p.Actions[i].ID != "" {
			return true
		}
	}
	return false
}

// Empty says that nothing is ready to be done.
func (p *Plan) Empty() bool { return p.Count(Ready) == 0 }

// changed lists the actions that are not unchanged, what hurts first.
func (p *Plan) changed() []*Action {
	var list []*Action
	for i := range p.Actions {
		if p.Actions[i].Op != OpUnchanged {
			list = append(list, &p.Actions[i])
		}
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].Impact > list[j].Impact })
	return list
}

// WriteText writes the plan for a terminal.
func (p *Plan) WriteText(w io.Writer) error {
	var b strings.Builder
	b.WriteString(p.Headline() + "\n")
	if p.Revision != "" {
		fmt.Fprintf(&b, "Revision %s", short(p.Revision))
		if p.Base != "" && p.Base != p.Revision {
			fmt.Fprintf(&b, ", base %s", short(p.Base))
		}
		b.WriteString("\n")
	}
	for _, h := range p.Hosts {
		if p.releasable() {
			fmt.Fprintf(&b, "Digest   %s (%s, for reconciler allow)\n", h.Digest, h.Host)
		}
	}
	for _, a := range p.changed() {
		fmt.Fprintf(&b, "\n%3s %s/%s  %s", symbols[a.Op], a.Kind, a.Name, a.Op)
		if a.State != Ready && a.Op != OpBlocked {
			fmt.Fprintf(&b, ", %s", a.State)
		}
		var notes []string
		if a.Cause != "" {
			notes = append(notes, string(a.Cause))
		}
		notes = append(notes, "impact "+a.Impact.String())
		fmt.Fprintf(&b, "  (%s)\n", strings.Join(notes, ", "))
		if a.Reason != "" {
			fmt.Fprintf(&b, "      # %s\n", a.Reason)
		}
		for _, c := range a.Changes {
			writeChange(&b, a, c)
		}
		if a.ID != "" && a.State != Ready {
			fmt.Fprintf(&b, "      id %s\n", short(a.ID))
		}
	}
	if len(p.Unmanaged) > 0 {
		fmt.Fprintf(&b, "\nNot managed here, left alone: %d\n", len(p.Unmanaged))
		for _, u := range p.Unmanaged {
			fmt.Fprintf(&b, "  . %s %s: %s\n", u.Kind, u.Name, u.Reason)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeChange(b *strings.Builder, a *Action, c Change) {
	switch {
	case c.From == "":
		fmt.Fprintf(b, "      + %s = %s", c.Field, quote(c.To))
	case c.To == "":
		fmt.Fprintf(b, "      - %s = %s", c.Field, quote(c.From))
	default:
		fmt.Fprintf(b, "      ~ %s = %s -> %s", c.Field, quote(c.From), quote(c.To))
	}
	if a.Op != OpCreate && c.Impact > ImpactNone {
		fmt.Fprintf(b, "  (%s)", c.Impact)
	}
	if c.Waits != "" && c.Waits != a.Reason {
		fmt.Fprintf(b, "  # %s", c.Waits)
	}
	b.WriteString("\n")
}

// quote makes a value visible on one line, whatever it holds.
func quote(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f || r == 0x202e || r == '`' }) {
		return fmt.Sprintf("%q", s)
	}
	return s
}

func short(rev string) string { return rev[:min(12, len(rev))] }

// commentLimit is less than the least a forge takes for one comment, in bytes.
const commentLimit = 60_000

// WriteMarkdown writes the plan for a pull request's comment: what hurts
// first and in bold, unchanged folded, never longer than a forge takes.
func (p *Plan) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n\n", p.Headline())
	list := p.changed()
	if len(list) == 0 {
		b.WriteString("Nothing to do: what runs is what is declared.\n")
		_, err := io.WriteString(w, b.String())
		return err
	}
	b.WriteString("| | object | op | impact | state | why |\n|---|---|---|---|---|---|\n")
	left := 0
	for i, a := range list {
		if b.Len() > commentLimit/2 {
			left = len(list) - i
			break
		}
		impact, name := a.Impact.String(), cell(string(a.Kind)+"/"+a.Name)
		if a.Impact >= ImpactMigrate {
			impact, name = "**"+impact+"**", "**"+name+"**"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", symbols[a.Op], name, a.Op, impact, a.State, cell(a.Reason))
	}
	if left > 0 {
		fmt.Fprintf(&b, "\n… and %d more actions of impact %s or less.\n", left, list[len(list)-left].Impact)
	}
	b.WriteString("\n<details><summary>Fields</summary>\n\n```diff\n")
	for i, a := range list {
		if b.Len() > commentLimit {
			fmt.Fprintf(&b, "# … and %d more objects\n", len(list)-i)
			break
		}
		fmt.Fprintf(&b, "%s %s/%s\n", symbols[a.Op], a.Kind, a.Name)
		for _, c := range a.Changes {
			writeChange(&b, a, Change{Field: c.Field, From: c.From, To: c.To, Impact: c.Impact, Waits: c.Waits})
		}
	}
	fmt.Fprintf(&b, "```\n\n</details>\n\n%d unchanged.\n", p.Summary[OpUnchanged])
	_, err := io.WriteString(w, b.String())
	return err
}

// cell keeps a value inside its table cell and harmless in HTML.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "\r", " ", "<", "&lt;", ">", "&gt;", "`", "'").Replace(s)
}
