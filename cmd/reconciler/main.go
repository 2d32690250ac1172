// Command reconciler keeps a host's virtual machines and disks as a Git
// repository declares them.
package main

import (
	"context"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

func main() { os.Exit(run()) }

// run is the only place that knows of signals and of the process.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, now: time.Now}
	return a.run(ctx, os.Args[1:])
}
