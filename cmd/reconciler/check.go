package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func (a *app) checkCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Tell whether this host is fit",
		Long: `check tries what the agent needs of this host: privileges, KVM (by a guest that
runs for a moment, not by the device's presence), QEMU and its iSCSI block module,
networking, directories and credentials. Every failure says how to put it right;
if there is one, the exit code is 1.`,
		Example: `  reconciler check
  reconciler check --accel tcg --state-dir /srv/reconciler`,
		Args:        noArgs,
		Annotations: map[string]string{formatsKey: "text, json"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			findings := probeHost(cmd.Context(), c, a.configPath())
			if a.flags.output == "json" {
				err = printData(a.stdout, a.flags.output, findings)
			} else {
				printFindings(a.stdout, findings)
			}
			if err != nil {
				return err
			}
			for _, f := range findings {
				if !f.OK {
					return exitCode(exitError)
				}
			}
			return nil
		},
	}
}

func printFindings(w io.Writer, list []finding) {
	for _, f := range list {
		word := "ok"
		if !f.OK {
			word = "FAIL"
		}
		fmt.Fprintf(w, "%-4s  %-12s  %s\n", word, f.Name, clean(f.Message))
		if f.Fix != "" {
			fmt.Fprintf(w, "      %-12s  fix: %s\n", "", clean(f.Fix))
		}
	}
}
