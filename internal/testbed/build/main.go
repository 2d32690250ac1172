// Command build writes the test guest's kernel and initramfs into a directory,
// as k and i.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"reconciler/internal/testbed/image"
)

func main() { os.Exit(run()) }

func run() int {
	dir := flag.String("o", "", "directory to write `DIR`/k and DIR/i to")
	flag.Parse()
	if *dir == "" || flag.NArg() > 0 {
		flag.Usage()
		return 64
	}
	files, err := image.Ensure(context.Background())
	if err == nil {
		err = files.Export(*dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		return 1
	}
	return 0
}
