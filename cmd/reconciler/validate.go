package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"reconciler/cmd/reconciler/config"
	"reconciler/policy"
	"reconciler/spec"
)

func (a *app) validateCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "validate [DIR]",
		Short: "Check the specs of a directory",
		Long: `validate reads all specs below a directory (the current one by default) and shows
everything that is wrong with them on standard error, one error a line:

  FILE:LINE:COL: message (hint)

Where nothing is wrong, it warns of what is probably not meant, such as user-data
that cloud-init passes over (FILE:LINE:COL: warning: message). A warning does not
change the exit code.

-o github writes annotations that GitHub Actions shows in a pull request, with
paths relative to the current directory. No agent and no repository are needed.

With --config, the tenants of that configuration file are held to what they may
declare. Their paths start at the root of the repository that the directory is in,
or at the directory itself where it is in none.`,
		Example: `  reconciler validate
  reconciler validate clusters/demo -o github
  reconciler validate --config policy/tenants.yaml`,
		Args:        upToOneArg,
		Annotations: map[string]string{formatsKey: "text, github"},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(_ *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			var tenants []policy.Tenant
			if a.flags.config != "" {
				var err error
				if tenants, err = config.LoadTenants(a.flags.config); err != nil {
					return err
				}
			}
			set, err := loadDir(dir)
			if err == nil {
				err = policy.CheckTenants(set, policy.Rebase(tenants, inRepository(dir)))
			}
			var errs spec.Errors
			if errors.As(err, &errs) {
				printSpecErrors(a.stderr, a.flags.output, severityError, dir, errs)
				return exitCode(exitError)
			}
			if err != nil {
				return err
			}
			printSpecErrors(a.stderr, a.flags.output, severityWarning, dir, set.Warnings())
			fmt.Fprintf(a.stdout, "%d objects, all valid\n", set.Len())
			return nil
		},
	}
}

// loadDir reads a tree. Nothing outside of it can be reached through it.
func loadDir(dir string) (*spec.Set, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return spec.LoadBelow(root.FS(), inRepository(dir))
}

// inRepository is where a directory lies in its repository; empty at the root,
// and where there is none.
func inRepository(dir string) string {
	full, err := filepath.Abs(dir)
	if err == nil {
		full, err = filepath.EvalSymlinks(full)
	}
	if err != nil {
		return "" // loadDir has said why
	}
	for root := full; ; root = filepath.Dir(root) {
		// A file in a linked work tree, a directory elsewhere.
		if _, err := os.Stat(filepath.Join(root, ".git")); err == nil {
			below, err := filepath.Rel(root, full)
			if err != nil || below == "." {
				return ""
			}
			return filepath.ToSlash(below)
		}
		if root == filepath.Dir(root) {
			return ""
		}
	}
}

// Severities, as GitHub Actions calls them.
const (
	severityError   = "error"
	severityWarning = "warning"
)

func printSpecErrors(w io.Writer, format, severity, dir string, errs spec.Errors) {
	for _, e := range errs {
		e.File = filepath.Join(dir, e.File)
		if format == "github" {
			fmt.Fprintln(w, annotation(severity, e))
			continue
		}
		if severity != severityError {
			e.Msg = severity + ": " + e.Msg
		}
		fmt.Fprintln(w, line(e.Error()))
	}
}

// annotation is a workflow command of GitHub Actions: in its message %, CR and
// LF are escaped, in its properties also : and the comma.
func annotation(severity string, e spec.Error) string {
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	msg := e.Msg
	if e.Hint != "" {
		msg += " (" + e.Hint + ")"
	}
	return fmt.Sprintf("::%s file=%s,line=%d,col=%d::%s", severity, property.Replace(clean(e.File)), max(e.Line, 1), max(e.Col, 1), escapeData(msg))
}

// escapeData is for the message of a workflow command.
func escapeData(s string) string {
	return strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace(eachLine(s, clean))
}
