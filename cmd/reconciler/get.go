package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reconciler/api"
)

// getNames are what get takes, in the order of help and completion.
var getNames = []string{"vms", "disks", "hosts", "pools", "networks", "images", "secrets", "quarantine", "all"}

func (a *app) getCmd() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:   "get " + strings.Join(getNames, "|"),
		Short: "List objects with their sync and health",
		Long: `get lists the objects of a kind as of the agent's last pass: whether they are as
declared (sync), how they are (health), and what there is to say about them.
Disks that were taken away and can be brought back are under quarantine.

With -w it goes on and shows every object that changes; -o json then writes one
object a line.`,
		Example: `  reconciler get all
  reconciler get vms -w
  reconciler get quarantine -o yaml`,
		Args:              oneArg("kind"),
		Annotations:       map[string]string{formatsKey: "text, json, yaml"},
		ValidArgsFunction: cobra.FixedCompletions(getNames, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			match, err := parseSelection(args[0])
			if err != nil {
				return err
			}
			if watch && a.flags.output == "yaml" {
				return usagef("-w writes text or json")
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			if watch {
				return a.watchObjects(cmd.Context(), client, match)
			}
			all, err := client.Objects(cmd.Context())
			if err != nil {
				return err
			}
			list := selectObjects(all, match)
			if a.flags.output != "text" {
				return printData(a.stdout, a.flags.output, list)
			}
			return printObjects(a.stdout, list)
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on and show what changes")
	return c
}

// selection says which objects are meant.
type selection func(*api.Object) bool

func parseSelection(s string) (selection, error) {
	switch strings.ToLower(s) {
	case "all":
		return func(o *api.Object) bool { return !o.Quarantined }, nil
	case "quarantine":
		return func(o *api.Object) bool { return o.Quarantined }, nil
	}
	kind, ok := parseKind(s)
	if o, err := parseObject(s); err == nil {
		return nil, usagef("%s is one object: reconciler describe %s", o, s)
	}
	if !ok {
		return nil, usagef("%q is none of %s", s, strings.Join(getNames, ", "))
	}
	return func(o *api.Object) bool { return o.Kind == kind && !o.Quarantined }, nil
}

func selectObjects(all []api.Object, match selection) []api.Object {
	list := []api.Object{}
	for i := range all {
		if match(&all[i]) {
			list = append(list, all[i])
		}
	}
	return list
}

func printObjects(w io.Writer, list []api.Object) error {
	t := newTable(w, "", "OBJECT", "SYNC", "HEALTH", "REVISION", "MESSAGE")
	for i := range list {
		o := &list[i]
		t.row(objectName(o), o.Sync, o.Health, shortRev(o.Revision), message(o))
	}
	return t.flush()
}

func objectName(o *api.Object) string { return object{o.Kind, o.Name}.String() }

// message is the condition that says most: of Stalled, Reconciling and Ready
// the first that has something to say.
func message(o *api.Object) string {
	for _, typ := range []string{"Stalled", "Reconciling", "Ready"} {
		for _, c := range o.Conditions {
			if c.Type == typ && (typ == "Ready" || c.Status == "True") {
				if c.Message != "" {
					return c.Message
				}
				if c.Status != "True" {
					return c.Reason
				}
			}
		}
	}
	return ""
}

const (
	watchPause = 200 * time.Millisecond // least time between two looks: a pass makes many events
	watchPoll  = 5 * time.Second        // most: not every change is an event
)

// watchObjects prints what matches, then what changes, until ctx ends.
func (a *app) watchObjects(ctx context.Context, client api.Agent, match selection) error {
	if a.flags.output == "text" {
		a.watchRow("OBJECT", "SYNC", "HEALTH", "REVISION", "MESSAGE")
	}
	shown := map[string]api.Object{}
	var seen uint64
	for {
		events, err := client.Events(ctx, seen, false)
		if err != nil {
			return ended(ctx, err)
		}
		if len(events) > 0 {
			seen = events[len(events)-1].Seq
		}
		all, err := client.Objects(ctx)
		if err != nil {
			return ended(ctx, err)
		}
		if err := a.printChanges(shown, selectObjects(all, match)); err != nil {
			return err
		}
		if err := pause(ctx, watchPause); err != nil {
			return ended(ctx, err)
		}
		wait, cancel := context.WithTimeout(ctx, watchPoll)
		_, err = client.Events(wait, seen, true)
		cancel()
		if err != nil && wait.Err() == nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// ended makes the end of what goes on until it is told to end no error.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// printChanges prints what is not as it was shown, and remembers it.
func (a *app) printChanges(shown map[string]api.Object, list []api.Object) error {
	here := map[string]bool{}
	for i := range list {
		o := &list[i]
		here[o.UID] = true
		old, ok := shown[o.UID]
		shown[o.UID] = *o
		switch {
		case ok && reflect.DeepEqual(old, *o):
		case a.flags.output == "json":
			if err := printJSON(a.stdout, o, ""); err != nil {
				return err
			}
		default:
			a.watchRow(objectName(o), o.Sync, o.Health, shortRev(o.Revision), message(o))
		}
	}
	for _, uid := range slices.Sorted(maps.Keys(shown)) {
		if o := shown[uid]; !here[uid] {
			delete(shown, uid)
			if a.flags.output == "text" {
				a.watchRow(objectName(&o), "-", "-", "-", "gone")
			}
		}
	}
	return nil
}

// watchRow has columns of a fixed width: the rows to come are not known.
func (a *app) watchRow(object, sync, health, revision, message string) {
	row := fmt.Sprintf("%-40s  %-9s  %-11s  %-12s  %s", object, sync, health, revision, message)
	fmt.Fprintln(a.stdout, strings.TrimRight(clean(row), " "))
}
