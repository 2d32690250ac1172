package review

import (
	"fmt"
	"io"
	"strings"

	"reconciler/reconcile"
)

// WriteText writes the report for a terminal or the log of a job.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	if r.Refused != "" {
		fmt.Fprintf(&b, "REFUSED: %s\n\n", line(r.Refused))
	}
	if unknown := r.unknown(); len(unknown) > 0 {
		fmt.Fprintf(&b, "INCOMPLETE: the state of %d of %d hosts is not known\n", len(unknown), len(r.Hosts))
		for _, h := range unknown {
			fmt.Fprintf(&b, "  %s: %s\n", h.Host, line(h.Problem))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "%s\nMerge of %s into %s\n", r.Headline(), short(r.Revision), short(r.Base))
	for _, h := range r.Hosts {
		for _, n := range h.Notes {
			fmt.Fprintf(&b, "Note     %s: %s\n", h.Host, line(n))
		}
	}
	writeRows(&b, r.rows(true), true)
	for _, part := range []struct {
		title string
		rows  []*Row
	}{
		{"Pending or drifted before, not caused by this pull request", r.rows(false)},
		{"No longer asked for", pointers(r.Cancelled)},
	} {
		if len(part.rows) > 0 {
			fmt.Fprintf(&b, "\n%s: %d\n", part.title, len(part.rows))
			writeRows(&b, part.rows, false)
		}
	}
	b.WriteString("\n")
	for _, h := range r.Hosts {
		if h.Problem == "" && h.Digest != "" {
			fmt.Fprintf(&b, "Digest   %s (%s, %s)\n", h.Digest, h.Host, count(len(h.IDs), "id"))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeRows(b *strings.Builder, rows []*Row, fields bool) {
	for _, r := range rows {
		fmt.Fprintf(b, "\n%3s %s/%s on %s  %s", symbols[r.Op], r.Kind, line(r.Name), r.Host, r.Op)
		if r.State != reconcile.Ready && r.Op != reconcile.OpBlocked {
			fmt.Fprintf(b, ", %s", r.State)
		}
		fmt.Fprintf(b, "  (%s, impact %s", r.Cause, r.Impact)
		if r.Origin == Mixed {
			b.WriteString(", with what was pending or drifted before")
		}
		b.WriteString(")\n")
		for _, s := range []string{r.Reason, r.Note} {
			if s != "" {
				fmt.Fprintf(b, "      # %s\n", line(s))
			}
		}
		if !fields {
			continue
		}
		for _, c := range r.Changes {
			fmt.Fprintf(b, "      %s\n", changeLine(r, c, "~"))
		}
	}
}
