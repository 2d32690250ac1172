package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// sayCloudInit tells every file that cloud-init would find on a disk, each in
// a line, after a try to write to it.
func (g *guest) sayCloudInit(d *disk) {
	if err := g.readCloudInit(d); err != nil {
		g.say("CIDATA fail: %v", err)
	}
}

func (g *guest) readCloudInit(d *disk) error {
	if f, err := os.OpenFile(d.path(), os.O_WRONLY, 0); err == nil {
		_, err := f.Write(make([]byte, 512))
		if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
			return errors.New("the disk can be written")
		}
	}
	at := "/run/" + d.name
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(d.path(), at, "iso9660", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer unix.Unmount(at, 0)
	names, err := filepath.Glob(at + "/*")
	if err != nil {
		return err
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		g.say("CIDATA %s %q", filepath.Base(name), text)
	}
	return nil
}
