package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// usageTemplate is what help and docs show of a command below its description.
const usageTemplate = `Usage:
  {{.UseLine}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}

Commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{with index .Annotations "formats"}}

Output formats (-o): {{.}}{{end}}{{if .HasAvailableInheritedFlags}}

Flags of every command: reconciler --help{{end}}

` + outcomesHelp + `{{if index .Annotations "incomplete"}}` + incompleteHelp + `{{end}}` + usageHelp +
	`{{if index .Annotations "detailed"}}` + detailedHelp + `{{if not (index .Annotations "incomplete")}}
` + incompleteHelp + `{{else}}
{{end}}{{else}}
{{end}}`

// noArgs is for a command that has no arguments.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q", args[0])
	}
	return nil
}

// oneArg is for a command with one argument, named as in its help.
func oneArg(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("no %s is given", what)
		}
		return noArgs(nil, args[1:])
	}
}

// upToOneArg is for a command with an argument that may be left out.
func upToOneArg(_ *cobra.Command, args []string) error {
	return noArgs(nil, args[min(1, len(args)):])
}

// commandArgs is for a command that only has commands.
func commandArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("no command is given")
	}
	near := cmd.SuggestionsFor(args[0])
	if len(near) == 0 {
		return usagef("there is no command %q", args[0])
	}
	return usagef("there is no command %q (did you mean %s?)", args[0], strings.Join(near, " or "))
}
