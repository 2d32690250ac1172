package main

import (
	"context"
	"os"
	"time"

	"github.com/spf13/cobra"

	"reconciler/api"
	"reconciler/reconcile"
	"reconciler/spec"
)

func (a *app) completionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script of a shell",
		Long: `completion prints a script that completes commands, flags and the names of
objects. The names come from the agent where one runs, else from the specs in the
current directory.`,
		Example: `  source <(reconciler completion bash)
  reconciler completion zsh > "${fpath[1]}/_reconciler"
  reconciler completion fish > ~/.config/fish/completions/reconciler.fish`,
		Args:              oneArg("shell"),
		ValidArgsFunction: cobra.FixedCompletions([]string{"bash", "zsh", "fish"}, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(a.stdout)
			case "fish":
				return cmd.Root().GenFishCompletion(a.stdout, true)
			}
			return usagef("there is no completion for %q (bash, zsh, fish)", args[0])
		},
	}
}

// completionPatience is how long somebody waits after pressing the tab key.
const completionPatience = time.Second

type completer func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective)

// completeObjects offers KIND/NAME of the given kinds, of all if none is given.
func (a *app) completeObjects(kinds ...spec.Kind) completer {
	if len(kinds) == 0 {
		kinds = spec.Kinds
	}
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, o := range a.knownObjects(cmd.Context()) {
			for _, k := range kinds {
				if o.kind == k && !o.quarantined {
					names = append(names, kindNames[k][0]+"/"+o.name)
				}
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeMachines offers names of machines without their kind.
func (a *app) completeMachines(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if len(args) == 0 {
		for _, o := range a.knownObjects(cmd.Context()) {
			if o.kind == spec.KindVirtualMachine {
				names = append(names, o.name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeQuarantine(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if len(args) == 0 {
		for _, o := range a.knownObjects(cmd.Context()) {
			if o.quarantined {
				names = append(names, kindNames[o.kind][0]+"/"+o.name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeHeld offers the ids of held actions, with their objects.
func (a *app) completeHeld(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var ids []string
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	if client, err := a.dial(); err == nil && len(args) == 0 {
		if p, err := client.Plan(ctx, api.PlanRequest{}); err == nil {
			for i := range p.Actions {
				if act := &p.Actions[i]; act.State == reconcile.Held && act.ID != "" {
					ids = append(ids, cobra.CompletionWithDesc(shortRev(act.ID), clean(string(act.Op)+" "+string(act.Kind)+"/"+act.Name)))
				}
			}
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeAccess(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var ids []string
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	if client, err := a.dial(); err == nil {
		if list, err := client.ListAccess(ctx); err == nil {
			for _, g := range list {
				ids = append(ids, cobra.CompletionWithDesc(g.ID, clean(g.Disk)))
			}
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// known is an object whose name can be completed.
type known struct {
	object
	quarantined bool
}

// knownObjects asks the agent where one runs, else reads the specs of the
// current directory. A failure offers nothing: there is no place to tell of it.
func (a *app) knownObjects(ctx context.Context) []known {
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	var list []known
	if client, err := a.dial(); err == nil {
		objects, err := client.Objects(ctx)
		if err != nil {
			return nil
		}
		for i := range objects {
			list = append(list, known{object{objects[i].Kind, objects[i].Name}, objects[i].Quarantined})
		}
		return list
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil
	}
	loaded := make(chan *spec.Set, 1)
	go func() {
		set, err := loadDir(dir)
		if err != nil {
			set = nil
		}
		loaded <- set
	}()
	select {
	case set := <-loaded:
		if set == nil {
			return nil
		}
		for _, o := range set.All() {
			list = append(list, known{object: object{o.Kind, o.Meta.Name}})
		}
	case <-ctx.Done(): // too many files
	}
	return list
}
