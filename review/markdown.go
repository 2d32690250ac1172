package review

import (
	"fmt"
	"slices"
	"strings"

	"reconciler/reconcile"
	"reconciler/spec"
)

// symbols are OpenTofu's where it has one.
var symbols = map[reconcile.Op]string{
	reconcile.OpCreate: "+", reconcile.OpUpdate: "~", reconcile.OpStart: "~", reconcile.OpStop: "~",
	reconcile.OpRestart: "-/+", reconcile.OpMigrate: "~", reconcile.OpDelete: "-", reconcile.OpQuarantine: "-",
	reconcile.OpPurge: "-", reconcile.OpRestore: "<=", reconcile.OpAdopt: "<=", reconcile.OpBlocked: "!", reconcile.OpUnchanged: ".",
}

// MinComment is the least number of bytes that Markdown makes a comment of.
const MinComment = 4096

// page is a text that grows up to a limit.
type page struct {
	strings.Builder
	limit int
}

// room says whether so many bytes more leave the reserve untouched.
func (p *page) room(n, reserve int) bool { return p.Len()+n+reserve <= p.limit }

// add writes s if there is room for it.
func (p *page) add(s string, reserve int) bool {
	if !p.room(len(s), reserve) {
		return false
	}
	p.WriteString(s)
	return true
}

// Markdown is the report as a comment on a pull request, at most limit bytes:
// what could go wrong first, then what hurts, then the rest. What has no room
// is summed up; more says where all of it is, and may be empty.
func (r *Report) Markdown(limit int, more string) string {
	if more != "" {
		more = "\nThis comment is shortened; all of the plan: " + cut(line(more), maxCell) + "\n"
	}
	p := &page{limit: max(limit, MinComment) - len(more)}
	r.troubles(p)
	fmt.Fprintf(p, "### %s\n\n", r.Headline())
	fmt.Fprintf(p, "Merge of `%s` into `%s`", short(r.Revision), short(r.Base))
	if n := len(r.Hosts); n > 0 {
		fmt.Fprintf(p, ", %s", count(n, "host"))
	}
	p.WriteString(".\n\n")
	ours, pending := r.rows(true), r.rows(false)
	full := true
	if len(ours) > 0 {
		r.worst(p, ours)
		full = r.table(p, "#### Caused by this pull request\n\n", ours, p.limit*2/5, 0) && full
		full = r.fields(p, ours, p.limit/4) && full
	}
	r.notes(p)
	full = r.folded(p, fmt.Sprintf("Pending or drifted before: %d, not caused by this pull request", len(pending)), pending, p.limit/6) && full
	full = r.folded(p, fmt.Sprintf("No longer asked for: %d", len(r.Cancelled)), pointers(r.Cancelled), p.limit/10) && full
	r.approve(p)
	unchanged := 0
	for i := range r.Actions {
		if r.Actions[i].Op == reconcile.OpUnchanged {
			unchanged++
		}
	}
	p.add(fmt.Sprintf("%d unchanged.\n", unchanged), 0)
	if full {
		more = ""
	}
	return p.String() + more
}

func pointers(rows []Row) []*Row {
	list := make([]*Row, len(rows))
	for i := range rows {
		list[i] = &rows[i]
	}
	return list
}

// troubles comes before anything else: why the plan cannot be relied on.
func (r *Report) troubles(p *page) {
	if r.Refused != "" {
		fmt.Fprintf(p, "### Refused: hosts would refuse this merge\n\n%s\n\n", code(r.Refused))
	}
	unknown := r.unknown()
	if len(unknown) == 0 {
		return
	}
	fmt.Fprintf(p, "### INCOMPLETE: the state of %d of %d hosts is not known\n\n"+
		"What follows for them assumes that they are as the base declares them. **This plan cannot be approved.**\n\n"+
		"| host | why |\n|---|---|\n", len(unknown), len(r.Hosts))
	for i, h := range unknown {
		if !p.add(fmt.Sprintf("| **%s** | %s |\n", code(h.Host), code(h.Problem)), p.limit*5/6) {
			fmt.Fprintf(p, "| … | and %d more hosts |\n", len(unknown)-i)
			break
		}
	}
	p.WriteString("\n")
}

// verbs say what the worst of the actions do.
var verbs = []struct {
	does func(*Row) bool
	text string
}{
	{func(r *Row) bool { return r.Op == reconcile.OpPurge || r.Impact == reconcile.ImpactDestroy }, "Destroys data"},
	{func(r *Row) bool { return r.Impact == reconcile.ImpactRemove && r.Kind == spec.KindDisk }, "Takes disks away (quarantine)"},
	{func(r *Row) bool { return r.Impact == reconcile.ImpactRemove }, "Removes"},
	{func(r *Row) bool { return r.Impact == reconcile.ImpactStop }, "Stops"},
	{func(r *Row) bool { return r.Impact == reconcile.ImpactRestart && r.Op == reconcile.OpRestart }, "Restarts"},
	{func(r *Row) bool { return r.Impact == reconcile.ImpactRestart }, "Needs a restart"},
	{func(r *Row) bool { return r.Impact == reconcile.ImpactMigrate }, "Migrates"},
}

// worst names, in bold, every object that is destroyed, removed, stopped,
// restarted or migrated, a line for each kind of harm.
func (r *Report) worst(p *page, rows []*Row) {
	said := map[*Row]bool{}
	any := false
	for _, v := range verbs {
		var names []string
		n, size := 0, 0
		for _, row := range rows {
			if said[row] || row.State == reconcile.Blocked || row.Op == reconcile.OpBlocked || !v.does(row) {
				continue
			}
			said[row] = true
			n++
			name := "**" + code(string(row.Kind)+"/"+row.Name) + "** on " + code(row.Host)
			if size += len(name); size < p.limit/40 && p.room(size+200, p.limit*2/3) {
				names = append(names, name)
			}
		}
		if n == 0 {
			continue
		}
		any = true
		fmt.Fprintf(p, "- **%s (%d)**: %s", v.text, n, strings.Join(names, ", "))
		if left := n - len(names); left > 0 {
			fmt.Fprintf(p, " and **%d more**", left)
		}
		p.WriteString("\n")
	}
	if any {
		p.WriteString("\n")
	}
}

// table lists actions, and sums up those that have no room among budget bytes;
// keep bytes are left for what must follow. It returns whether all are listed.
func (r *Report) table(p *page, title string, rows []*Row, budget, keep int) bool {
	const rest = "| … | | |\n\n"
	keep += len(rest)
	sums := p.limit / 12
	reserve := max(keep+sums, p.limit-p.Len()-budget)
	if !p.add(title+"| | object | host | op | impact | state | why |\n|---|---|---|---|---|---|---|\n", reserve) {
		return false
	}
	list := grouped(rows)
	for i, g := range list {
		if p.add(tableRow(g), reserve) {
			continue
		}
		left := map[*Row]bool{}
		for _, g := range list[:i] {
			for _, row := range g.all {
				left[row] = true
			}
		}
		r.sumUp(p, slices.DeleteFunc(slices.Clone(rows), func(row *Row) bool { return left[row] }), keep, rest)
		return false
	}
	p.add("\n", 0)
	return true
}

// sumUp counts the actions that are not listed.
func (r *Report) sumUp(p *page, left []*Row, keep int, rest string) {
	most := reconcile.ImpactNone
	for _, row := range left {
		most = max(most, row.Impact)
	}
	if !p.add(fmt.Sprintf("\n… and **%d more**, of impact %s or less:\n\n| host | impact | |\n|---|---|---|\n", len(left), most), keep) {
		return
	}
	for _, s := range totals(left) {
		if !p.add(s, keep) {
			p.add(rest, 0)
			return
		}
	}
	p.add("\n", 0)
}

func tableRow(g group) string {
	why := g.Reason
	if g.Note != "" {
		why = strings.TrimPrefix(why+"; ", "; ") + g.Note
	}
	op, state := string(g.Op), string(g.State)
	if g.Origin == Mixed {
		op += ", with what was pending or drifted before"
	}
	if g.State == reconcile.Ready {
		state = ""
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s | %s | %s | %s |\n", symbols[g.Op],
		strong(g.Impact, code(string(g.Kind)+"/"+g.Name)), g.where(), op, strong(g.Impact, g.Impact.String()), state, code(why))
}

// fields shows the changes of each object.
func (r *Report) fields(p *page, rows []*Row, budget int) bool {
	const end = "```\n\n</details>\n\n"
	const rest = "# … and %d more objects\n"
	keep := len(end) + len(rest) + 10
	reserve := max(keep, p.limit-p.Len()-budget)
	if !p.add("<details><summary>Fields</summary>\n\n```diff\n", reserve) {
		return false
	}
	full := true
	list := grouped(rows)
	for i, g := range list {
		if !p.add(objectFields(g), reserve) {
			fmt.Fprintf(p, rest, len(list)-i)
			full = false
			break
		}
	}
	p.WriteString(end)
	return full
}

// maxFields bounds what is shown of one object.
const maxFields = 40

func objectFields(g group) string {
	var b strings.Builder
	fmt.Fprintf(&b, "@@ %s %s, impact %s @@\n", g.Op, cut(line(string(g.Kind)+"/"+g.Name), maxCell), g.Impact)
	for i, c := range g.Changes {
		if i == maxFields {
			fmt.Fprintf(&b, "# … and %d more fields\n", len(g.Changes)-i)
			break
		}
		b.WriteString(changeLine(g.Row, c, "!") + "\n")
	}
	return b.String()
}

// changeLine is one field; changed marks one that is there before and after. In
// a diff, which knows no such line, "!" stands out.
func changeLine(r *Row, c reconcile.Change, changed string) string {
	var s string
	switch {
	case c.From == "":
		s = fmt.Sprintf("+ %s = %s", c.Field, quote(c.To))
	case c.To == "":
		s = fmt.Sprintf("- %s = %s", c.Field, quote(c.From))
	default:
		s = fmt.Sprintf("%s %s = %s -> %s", changed, c.Field, quote(c.From), quote(c.To))
	}
	if r.Op != reconcile.OpCreate && c.Impact > reconcile.ImpactNone {
		s += fmt.Sprintf("  (%s)", c.Impact)
	}
	if c.Waits != "" && c.Waits != r.Reason {
		s += "  # " + cut(c.Waits, maxValue)
	}
	return line(s)
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// notes are what a reviewer should know of single hosts.
func (r *Report) notes(p *page) {
	n := 0
	for _, h := range r.Hosts {
		for _, note := range h.Notes {
			if n == 0 && !p.add("#### Notes\n\n", p.limit/5) {
				return
			}
			if n++; !p.add(fmt.Sprintf("- %s: %s\n", code(h.Host), code(note)), p.limit/5) {
				p.add("- …\n", 0)
				break
			}
		}
	}
	if n > 0 {
		p.add("\n", 0)
	}
}

// folded is a table that opens on demand.
func (r *Report) folded(p *page, title string, rows []*Row, budget int) bool {
	if len(rows) == 0 {
		return true
	}
	const end = "</details>\n\n"
	title = "<details><summary>" + title + "</summary>\n\n"
	if !p.add(title, p.limit/8+len(end)+400) { // room for a row and a sum
		return false
	}
	full := r.table(p, "", rows, budget, len(end))
	p.WriteString(end)
	return full
}

// approve shows what an approval of this plan would hold.
func (r *Report) approve(p *page) {
	const end = "\n</details>\n\n"
	const rest = "| … and %d more | | | |\n"
	keep := len(end) + len(rest) + 10
	if !p.add("<details><summary>Hosts and digests</summary>\n\n| host | ids | digest | observed |\n|---|---|---|---|\n", keep+200) {
		return
	}
	for i, h := range r.Hosts {
		at := "new host"
		switch {
		case h.Problem != "":
			at = "**not known**"
		case !h.New:
			at = h.ObservedAt.UTC().Format("2006-01-02 15:04:05Z")
		}
		if !p.add(fmt.Sprintf("| %s | %d | %s | %s |\n", code(h.Host), len(h.IDs), code(h.Digest), at), keep) {
			fmt.Fprintf(p, rest, len(r.Hosts)-i)
			break
		}
	}
	p.WriteString(end)
}

// Failure is the comment where there is no plan to show, at most limit bytes.
func Failure(limit int, why string, errs []string) string {
	p := &page{limit: max(limit, MinComment)}
	fmt.Fprintf(p, "### There is no plan: %s\n\n", cut(line(why), maxCell))
	for i, e := range errs {
		if !p.add("- "+code(e)+"\n", 100) {
			fmt.Fprintf(p, "- … and %d more\n", len(errs)-i)
			break
		}
	}
	return p.String()
}
