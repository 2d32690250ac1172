package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"reconciler/api"
	"reconciler/spec"
)

func (a *app) undeleteCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "undelete disk/NAME",
		Short: "Keep a disk that is in quarantine",
		Long: `undelete takes the deadline off a disk that is in quarantine and prints the
document that declares it: committed to the repository, it brings the disk back
with its data. Where several disks of one name are in quarantine, give the UID
(reconciler get quarantine -o yaml).`,
		Example: `  reconciler get quarantine
  reconciler undelete disk/web-1-root > disks/web-1-root.yaml`,
		Args:              oneArg("disk/NAME"),
		ValidArgsFunction: a.completeQuarantine,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := parseOf(spec.KindDisk, args[0])
			if err != nil {
				return err
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			res, err := client.Undelete(cmd.Context(), api.UndeleteRequest{Name: name})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "Disk/%s is kept without a deadline; commit this document to bring it back\n", clean(name))
			_, err = fmt.Fprint(a.stdout, cleanLines(res.YAML))
			return err
		},
	}
}
