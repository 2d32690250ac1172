package review

import (
	"fmt"
	"sort"
	"strings"

	"reconciler/reconcile"
)

// group is one action on one host, or the same on several: every host knows a
// network, and a row for each would say nothing more.
type group struct {
	*Row
	all   []*Row
	hosts []string
}

func grouped(rows []*Row) []group {
	var list []group
	at := map[string]int{}
	for _, r := range rows {
		var key strings.Builder
		fmt.Fprintf(&key, "%q %q %q %q %v %q %q %q %q", r.Kind, r.UID, r.Op, r.Cause, r.Impact, r.State, r.Origin, r.Reason, r.Note)
		for _, c := range r.Changes {
			fmt.Fprintf(&key, " %q %q %q %v %q", c.Field, c.From, c.To, c.Impact, c.Waits)
		}
		i, ok := at[key.String()]
		if !ok {
			i = len(list)
			at[key.String()] = i
			list = append(list, group{Row: r})
		}
		list[i].all = append(list[i].all, r)
		list[i].hosts = append(list[i].hosts, r.Host)
	}
	return list
}

// where names the hosts of a group in a few words.
func (g group) where() string {
	if n := len(g.hosts); n > 2 {
		return fmt.Sprintf("%s and %d more", code(g.hosts[0]), n-1)
	}
	names := make([]string, len(g.hosts))
	for i, h := range g.hosts {
		names[i] = code(h)
	}
	return strings.Join(names, ", ")
}

// tally counts actions by what two of their properties say.
type tally struct {
	host   string
	impact reconcile.Impact
	op     reconcile.Op
}

// totals is one row for each host and impact: how many of which operation.
func totals(rows []*Row) []string {
	count := map[tally]int{}
	for _, r := range rows {
		count[tally{r.Host, r.Impact, r.Op}]++
	}
	keys := make([]tally, 0, len(count))
	for k := range count {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool {
		a, b := keys[i], keys[j]
		switch {
		case a.impact != b.impact:
			return a.impact > b.impact
		case a.host != b.host:
			return a.host < b.host
		}
		return a.op < b.op
	})
	var list []string
	for i := 0; i < len(keys); {
		k := keys[i]
		var ops []string
		for ; i < len(keys) && keys[i].host == k.host && keys[i].impact == k.impact; i++ {
			ops = append(ops, fmt.Sprintf("%d %s", count[keys[i]], keys[i].op))
		}
		list = append(list, fmt.Sprintf("| %s | %s | %s |\n", code(k.host), strong(k.impact, k.impact.String()), strings.Join(ops, ", ")))
	}
	return list
}

// strong sets in bold what a guest or its data would notice for good.
func strong(i reconcile.Impact, s string) string {
	if i >= reconcile.ImpactMigrate {
		return "**" + s + "**"
	}
	return s
}
