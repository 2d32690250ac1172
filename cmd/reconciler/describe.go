package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reconciler/api"
)

func (a *app) describeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "describe KIND/NAME",
		Short: "Show all that is known of an object",
		Long: `describe shows one object: its identity, its conditions, what is known of it on
this host, and the latest events about it. A UID may stand in place of the name.`,
		Example: `  reconciler describe vm/web-1
  reconciler describe disk/web-1-root -o yaml`,
		Args:              oneArg("KIND/NAME"),
		Annotations:       map[string]string{formatsKey: "text, json, yaml"},
		ValidArgsFunction: a.completeObjects(),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := parseObject(args[0])
			if err != nil {
				return err
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			d, err := describe(cmd.Context(), client, o)
			if err != nil {
				return err
			}
			if a.flags.output != "text" {
				return printData(a.stdout, a.flags.output, d)
			}
			return printDescription(a.stdout, d, a.now())
		},
	}
}

// description is an object as `get` has it, with its latest events.
type description struct {
	api.Object
	Events []api.Event `json:"events"`
}

// maxEvents is how many events a description has.
const maxEvents = 20

func describe(ctx context.Context, client api.Agent, o object) (description, error) {
	all, err := client.Objects(ctx)
	if err != nil {
		return description{}, err
	}
	i := slices.IndexFunc(all, func(x api.Object) bool {
		return x.Kind == o.kind && (x.Name == o.name || x.UID == o.name)
	})
	if i < 0 {
		return description{}, &hinted{fmt.Errorf("%s is not known on this host", o), "reconciler get all lists what is"}
	}
	d := description{Object: all[i], Events: []api.Event{}}
	events, err := client.Events(ctx, 0, false)
	if err != nil {
		return d, err
	}
	for _, e := range events {
		if e.Object == objectName(&d.Object) {
			d.Events = append(d.Events, e)
		}
	}
	d.Events = d.Events[max(0, len(d.Events)-maxEvents):]
	return d, nil
}

func printDescription(w io.Writer, d description, now time.Time) error {
	fmt.Fprintf(w, "%s\n", clean(objectName(&d.Object)))
	for _, l := range [][2]string{
		{"uid", d.UID}, {"host", d.Host}, {"revision", d.Revision}, {"sync", d.Sync}, {"health", d.Health},
	} {
		if l[1] != "" {
			fmt.Fprintf(w, "  %-9s %s\n", l[0], clean(l[1]))
		}
	}
	if len(d.Status) > 0 {
		fmt.Fprintln(w, "\nStatus")
		printMap(w, d.Status, "  ")
	}
	if len(d.Conditions) > 0 {
		fmt.Fprintln(w, "\nConditions")
		if err := printConditions(w, d.Conditions, now); err != nil {
			return err
		}
	}
	if len(d.Events) > 0 {
		fmt.Fprintln(w, "\nEvents")
		for _, e := range d.Events {
			printEvent(w, "  ", e)
		}
	}
	return nil
}

func printConditions(w io.Writer, list []api.Condition, now time.Time) error {
	t := newTable(w, "  ", "TYPE", "STATUS", "FOR", "REASON", "MESSAGE")
	for _, c := range list {
		t.row(c.Type, c.Status, age(c.LastTransitionTime, now), c.Reason, c.Message)
	}
	return t.flush()
}

// printMap writes nested values with their keys in order.
func printMap(w io.Writer, m map[string]any, indent string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		switch v := m[k].(type) {
		case map[string]any:
			fmt.Fprintf(w, "%s%s:\n", indent, clean(k))
			printMap(w, v, indent+"  ")
		case string:
			fmt.Fprintf(w, "%s%s: %s\n", indent, clean(k), clean(strings.TrimSpace(v)))
		default:
			data, err := json.Marshal(v)
			if err != nil {
				data = []byte(fmt.Sprint(v))
			}
			fmt.Fprintf(w, "%s%s: %s\n", indent, clean(k), clean(string(data)))
		}
	}
}
