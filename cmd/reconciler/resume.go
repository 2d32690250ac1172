package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"reconciler/api"
)

func (a *app) resumeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "resume [KIND/NAME]",
		Short: "End a suspension",
		Long: `resume ends the suspension of an object; where none is named, all of them. The
agent then acts again, at once.`,
		Example: `  reconciler resume vm/web-1
  reconciler resume`,
		Args:              upToOneArg,
		ValidArgsFunction: a.completeObjects(),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := optionalObject(args)
			if err != nil {
				return err
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			if err := client.Resume(cmd.Context(), api.ResumeRequest{Object: target}); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s is resumed\n", orEverything(target))
			return nil
		},
	}
}
