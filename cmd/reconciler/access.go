package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reconciler/api"
	"reconciler/spec"
)

func (a *app) accessCmd() *cobra.Command {
	var req api.AccessRequest
	var end string
	var clear bool
	c := &cobra.Command{
		Use:   "access disk/NAME --initiator IQN… --for SPAN | access --end ID | access --clear-reservations disk/NAME",
		Short: "Lend a disk to an iSCSI initiator for a while",
		Long: `access admits an initiator of your own to a disk for a while: for rescue, backup
or a conformance test. It prints what the initiator needs, the password among it;
that is shown only now. Every access is written down and ends by itself.

An access that may write is a claim: it is refused while a machine has the disk,
and a machine's start waits for its end. What it reserved in the disk (SCSI
reservations and registrations) ends with it. --clear-reservations ends those of a
disk now, whoever made them; describe disk/NAME lists them.`,
		Example: `  reconciler access disk/web-1-root --initiator iqn.2026-11.example:backup --for 1h --read-only
  reconciler access disk/web-1-root --initiator iqn.2026-11.example:rescue --for 1h -o json
  reconciler access list
  reconciler access --end 4f1c
  reconciler access --clear-reservations disk/web-1-root`,
		Args:              upToOneArg,
		Annotations:       map[string]string{formatsKey: "text, json, yaml"},
		ValidArgsFunction: a.completeObjects(spec.KindDisk),
		RunE: func(cmd *cobra.Command, args []string) error {
			if end != "" {
				if clear || len(args) > 0 || len(req.Initiators) > 0 || req.For != 0 || req.ReadOnly {
					return usagef("--end stands alone")
				}
				return a.endAccess(cmd.Context(), end)
			}
			if clear {
				if len(args) == 0 || len(req.Initiators) > 0 || req.For != 0 || req.ReadOnly {
					return usagef("--clear-reservations stands with disk/NAME alone")
				}
				return a.clearReservations(cmd.Context(), args[0])
			}
			var err error
			if req.Disk, err = accessDisk(args, req); err != nil {
				return err
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			grant, err := client.Access(cmd.Context(), req)
			if err != nil {
				return err
			}
			if a.flags.output != "text" {
				return printData(a.stdout, a.flags.output, grant)
			}
			printAccess(a.stdout, grant)
			return nil
		},
	}
	c.Flags().StringArrayVar(&req.Initiators, "initiator", nil, "`name` of an initiator that is admitted; may be given several times")
	c.Flags().DurationVar(&req.For, "for", 0, "how long, as in `1h`")
	c.Flags().BoolVar(&req.ReadOnly, "read-only", false, "admit it to read only; the disk may be in use")
	c.Flags().StringVar(&end, "end", "", "end the access of this `id`")
	c.Flags().BoolVar(&clear, "clear-reservations", false, "end the SCSI reservations of the disk, whoever made them")
	must(c.RegisterFlagCompletionFunc("initiator", cobra.NoFileCompletions))
	must(c.RegisterFlagCompletionFunc("for", cobra.NoFileCompletions))
	must(c.RegisterFlagCompletionFunc("end", a.completeAccess))
	c.AddCommand(a.accessListCmd())
	return c
}

func (a *app) endAccess(ctx context.Context, id string) error {
	client, err := a.dial()
	if err != nil {
		return err
	}
	if err := client.EndAccess(ctx, api.EndAccessRequest{ID: id}); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "access %s is ended\n", clean(id))
	return nil
}

func (a *app) clearReservations(ctx context.Context, arg string) error {
	disk, err := parseOf(spec.KindDisk, arg)
	if err != nil {
		return err
	}
	client, err := a.dial()
	if err != nil {
		return err
	}
	r, err := client.ClearReservations(ctx, api.ClearRequest{Disk: disk})
	if err != nil {
		return err
	}
	if a.flags.output != "text" {
		return printData(a.stdout, a.flags.output, r)
	}
	if len(r.Cleared) == 0 {
		fmt.Fprintln(a.stdout, "nothing was reserved")
	}
	for _, c := range r.Cleared {
		fmt.Fprintf(a.stdout, "cleared: %s\n", clean(c))
	}
	return nil
}

func accessDisk(args []string, req api.AccessRequest) (string, error) {
	switch {
	case len(args) == 0:
		return "", usagef("no disk is given")
	case len(req.Initiators) == 0:
		return "", usagef("--initiator must be given")
	case req.For <= 0:
		return "", usagef("--for must be given, as in --for 1h")
	}
	return parseOf(spec.KindDisk, args[0])
}

func (a *app) accessListCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the disks that are lent",
		Long:    `list shows the accesses that are open, without their passwords.`,
		Example: `  reconciler access list`,
		Args:    noArgs,
		Annotations: map[string]string{
			formatsKey: "text, json, yaml",
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.dial()
			if err != nil {
				return err
			}
			list, err := client.ListAccess(cmd.Context())
			if err != nil {
				return err
			}
			if a.flags.output != "text" {
				return printData(a.stdout, a.flags.output, list)
			}
			return printAccessList(a.stdout, list, a.now())
		},
	}
}

func printAccess(w io.Writer, g api.Access) {
	mode := "read and write"
	if g.ReadOnly {
		mode = "read only"
	}
	for _, l := range [][2]string{
		{"id", g.ID},
		{"disk", g.Disk},
		{"mode", mode},
		{"url", g.URL},
		{"portal", g.Portal},
		{"target", g.Target},
		{"lun", fmt.Sprint(g.LUN)},
		{"initiators", strings.Join(g.Initiators, ", ")},
		{"user", g.User},
		{"password", g.Password},
		{"until", when(g.Until)},
		{"sessions", "one for each initiator; a second login by one name ends the first"},
	} {
		if l[1] != "" {
			fmt.Fprintf(w, "%-11s %s\n", l[0], clean(l[1]))
		}
	}
}

func printAccessList(w io.Writer, list []api.Access, now time.Time) error {
	t := newTable(w, "", "ID", "DISK", "MODE", "LEFT", "BY", "SESSIONS", "INITIATORS")
	var notes []string
	for _, g := range list {
		mode := "rw"
		if g.ReadOnly {
			mode = "ro"
		}
		t.row(g.ID, g.Disk, mode, age(now, g.Until), g.By, fmt.Sprint(len(g.Sessions)), strings.Join(g.Initiators, ", "))
		for _, s := range g.Sessions {
			if s.Replaced > 0 {
				notes = append(notes, fmt.Sprintf("access %s: %s logged in again from %s, which ended its session from %s (%d in all)",
					g.ID, s.Initiator, s.Address, s.ReplacedFrom, s.Replaced))
			}
		}
	}
	if err := t.flush(); err != nil || len(notes) == 0 {
		return err
	}
	fmt.Fprintln(w)
	for _, n := range notes {
		fmt.Fprintln(w, clean(n))
	}
	fmt.Fprintln(w, "An initiator has one session of an access: give each client a name of its own.")
	return nil
}
