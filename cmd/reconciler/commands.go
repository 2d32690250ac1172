package main

import "github.com/spf13/cobra"

// commands are all commands, in the order of the help.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.runCmd(), a.applyCmd(), a.planCmd(), a.validateCmd(),
		a.getCmd(), a.describeCmd(), a.statusCmd(), a.eventsCmd(),
		a.reconcileCmd(), a.suspendCmd(), a.resumeCmd(), a.allowCmd(), a.acceptCmd(),
		a.restartCmd(), a.stopCmd(), a.undeleteCmd(), a.revertCmd(), a.importCmd(), a.accessCmd(), a.consoleCmd(),
		a.ciCmd(), a.keyCmd(), a.checkCmd(), a.schemaCmd(), a.versionCmd(), a.completionCmd(),
		a.targetCmd(),
	}
}
