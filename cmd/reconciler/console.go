package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"reconciler/spec"
)

func (a *app) consoleCmd() *cobra.Command {
	var log, follow bool
	c := &cobra.Command{
		Use:   "console VM",
		Short: "Attach to a machine's serial console",
		Long: `console attaches this terminal to the serial console of a machine; Ctrl-] leaves
it. Any number of clients see what the guest writes; the first that types has the
keyboard until it leaves. Where standard input is no terminal, it is sent to the
console, and what the guest writes goes to standard output until the machine ends
or the command is interrupted.

No client holds up a guest: what one does not take in time is dropped once the log
is turned over, and standard error says how much.

--log prints what the guest wrote since the machine was made, as far as it is
kept; with -f it goes on with what it writes. On a terminal it leaves out the
guest's control sequences, which could do anything to the terminal; in a file or a
pipe every byte is as the guest wrote it.`,
		Example: `  reconciler console web-1
  reconciler console web-1 --log -f`,
		Args:              oneArg("VM"),
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			if follow && !log {
				return usagef("-f needs --log")
			}
			name := args[0]
			if strings.Contains(name, "/") {
				var err error
				if name, err = parseOf(spec.KindVirtualMachine, name); err != nil {
					return err
				}
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			at, err := client.Console(cmd.Context(), name)
			if err != nil {
				return err
			}
			if log {
				w := a.stdout
				if isTerminal(w) {
					w = &plainText{w: w}
				}
				return ended(cmd.Context(), a.printLog(cmd.Context(), w, at.Log, follow))
			}
			switch {
			case at.Input != "":
				err = a.attach(cmd.Context(), at)
			case at.Socket != "":
				err = a.attachSocket(cmd.Context(), at.Socket)
			default:
				err = errNoConsole
			}
			if errors.Is(err, errNoConsole) {
				return &hinted{fmt.Errorf("VirtualMachine/%s is off, or the run directory was lost since it started", name), "--log shows what it wrote"}
			}
			return ended(cmd.Context(), err)
		},
	}
	c.Flags().BoolVar(&log, "log", false, "print what the guest wrote, and do not attach")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "with --log: go on with what it writes")
	return c
}
