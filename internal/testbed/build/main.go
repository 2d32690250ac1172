// Command build makes ahead of the tests what they stand on: the test guest's
// kernel and initramfs, written into a directory as k and i, or the forge.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"reconciler/internal/testbed/gitea"
	"reconciler/internal/testbed/image"
)

func main() { os.Exit(run()) }

func run() int {
	dir := flag.String("o", "", "directory to write `DIR`/k and DIR/i to")
	forge := flag.Bool("forge", false, "build the forge into the cache: minutes on a machine that has none yet")
	flag.Parse()
	if (*dir != "") == *forge || flag.NArg() > 0 {
		flag.Usage()
		return 64
	}
	var err error
	if *forge {
		_, err = gitea.Ensure(context.Background())
	} else {
		err = guest(*dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		return 1
	}
	return 0
}

func guest(dir string) error {
	files, err := image.Ensure(context.Background())
	if err != nil {
		return err
	}
	return files.Export(dir)
}
