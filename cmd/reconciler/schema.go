package main

import (
	"github.com/spf13/cobra"

	"reconciler/spec"
)

func (a *app) schemaCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the specs",
		Long: `schema prints the JSON Schema (draft 2020-12) of a document of any kind. Editors
that know it complete and check specs as they are typed.`,
		Example: `  reconciler schema > .schema/reconciler.json
  # and as the first line of a spec:
  # yaml-language-server: $schema=../.schema/reconciler.json`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.stdout.Write(spec.Schema())
			return err
		},
	}
}
