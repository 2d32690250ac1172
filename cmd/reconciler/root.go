package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"reconciler/cmd/reconciler/config"
)

// Annotations of a command.
const (
	formatsKey    = "formats"    // what -o takes; the first is the default
	detailedKey   = "detailed"   // the command has --detailed-exitcode
	incompleteKey = "incomplete" // it tells of an incomplete plan without that, too
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "reconciler COMMAND",
		Short: "Keep a host's virtual machines and disks as a Git repository declares them",
		Long: `reconciler keeps a host's virtual machines and disks as a Git repository
declares them. One agent runs on every host (reconciler run); the other commands
show what it would do, ask it to do something, or tell what it did.

The host's configuration is ` + config.DefaultPath + `; flags come before it.`,
		Example: `  reconciler run --repo https://forge.example/cluster.git --host host1
  reconciler plan
  reconciler get all`,
		Args:                       commandArgs,
		RunE:                       func(*cobra.Command, []string) error { return nil },
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		CompletionOptions:          cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetIn(a.stdin)
	root.SetHelpCommand(a.helpCmd())
	a.globalFlags(root)
	for _, c := range a.commands() {
		root.AddCommand(c)
	}
	root.SetUsageTemplate(usageTemplate)
	visit(root, a.finish)
	return root
}

func (a *app) globalFlags(root *cobra.Command) {
	d := config.Default()
	f := root.PersistentFlags()
	f.StringVar(&a.flags.config, "config", "", "configuration `file` (default "+config.DefaultPath+", if it is there)")
	f.StringVar(&a.flags.stateDir, "state-dir", "", "`directory` of what must survive a reboot (default "+d.StateDir+")")
	f.StringVar(&a.flags.runDir, "run-dir", "", "`directory` of sockets and secrets (default "+d.RunDir+")")
	f.StringVar(&a.flags.imageDir, "image-dir", "", "`directory` of the files that images name (default image-files in the state directory)")
	f.StringVar(&a.flags.repo, "repo", "", "`repository` of the specs: a URL or a directory")
	f.StringVar(&a.flags.branch, "branch", "", "`branch` to follow (default the repository's)")
	f.StringVar(&a.flags.path, "path", "", "`directory` of the repository that has the specs (default all of it)")
	f.StringVar(&a.flags.host, "host", "", "`name` of this host's Host object (default the host name)")
	f.StringVar(&a.flags.accel, "accel", "", "how guests run: `kvm|tcg|auto` (default "+d.Accel+")")
	f.StringVarP(&a.flags.output, "output", "o", "", "output `format`")
	for _, name := range []string{"state-dir", "run-dir", "image-dir"} {
		must(root.MarkPersistentFlagDirname(name))
	}
	must(root.RegisterFlagCompletionFunc("accel", cobra.FixedCompletions([]string{"kvm", "tcg", "auto"}, cobra.ShellCompDirectiveNoFileComp)))
	must(root.RegisterFlagCompletionFunc("output", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return formats(cmd), cobra.ShellCompDirectiveNoFileComp
	}))
	for _, name := range []string{"repo", "branch", "path", "host"} {
		must(root.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
}

// must is for what fails only if the program is wrong.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// visit calls f for a command and all below it.
func visit(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		visit(sub, f)
	}
}

// finish gives every command what is the same for all.
func (a *app) finish(c *cobra.Command) {
	c.DisableFlagsInUseLine = true
	do := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := a.checkOutput(cmd); err != nil {
			return err
		}
		a.begun = true
		if err := a.flags.resolve(); err != nil {
			return err
		}
		return do(cmd, args)
	}
}

func formats(c *cobra.Command) []string {
	if s := c.Annotations[formatsKey]; s != "" {
		return strings.Split(s, ", ")
	}
	return nil
}

func (a *app) checkOutput(c *cobra.Command) error {
	known := formats(c)
	switch {
	case a.flags.output == "" && len(known) > 0:
		a.flags.output = known[0]
	case a.flags.output == "" || slices.Contains(known, a.flags.output):
	case len(known) == 0:
		return usagef("%s has no output formats", c.CommandPath())
	default:
		return usagef("output format %q is none of %s", a.flags.output, strings.Join(known, ", "))
	}
	return nil
}
