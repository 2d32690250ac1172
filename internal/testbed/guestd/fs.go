package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	fsFiles    = 16
	fsFileSize = 256 << 10
)

// useFileSystem does with a disk what people do: a file system, files, a
// check, and discard. A disk that has one already is only verified, so that a
// second boot shows whether the data of the first is still there.
func (g *guest) useFileSystem(d *disk) {
	sum, err := g.exerciseFileSystem(d, "/run/"+d.name)
	if err != nil {
		g.say("FS fail: %v", err)
		return
	}
	g.say("FS ok files=%d sum=%s", fsFiles/2, sum)
}

func (g *guest) exerciseFileSystem(d *disk, at string) (string, error) {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return "", err
	}
	if unix.Mount(d.path(), at, "ext4", 0, "discard") == nil {
		g.say("FS step found")
		sum, err := checksum(at)
		return sum, errors.Join(err, unix.Unmount(at, 0))
	}

	g.say("FS step mkfs")
	if err := run("mke2fs", "-q", "-F", "-t", "ext4", "-E", "discard,lazy_itable_init=0", d.path()); err != nil {
		return "", err
	}
	if err := unix.Mount(d.path(), at, "ext4", 0, "discard"); err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	g.say("FS step write")
	for i := range fsFiles {
		if err := os.WriteFile(fsFile(at, i), content(d.serial, i), 0o644); err != nil {
			return "", err
		}
	}
	unix.Sync()
	before, err := checksum(at)
	if err != nil {
		return "", err
	}
	if err := unix.Unmount(at, 0); err != nil {
		return "", fmt.Errorf("unmount: %w", err)
	}

	g.say("FS step check")
	if err := run("e2fsck", "-fn", d.path()); err != nil {
		return "", err
	}
	if err := unix.Mount(d.path(), at, "ext4", 0, "discard"); err != nil {
		return "", fmt.Errorf("mount again: %w", err)
	}
	after, err := checksum(at)
	if err != nil {
		return "", err
	}
	if before != after {
		return "", fmt.Errorf("files read back as %s, written as %s", after, before)
	}

	g.say("FS step trim")
	for i := fsFiles / 2; i < fsFiles; i++ {
		if err := os.Remove(fsFile(at, i)); err != nil {
			return "", err
		}
	}
	unix.Sync()
	// fstrim fails where the disk takes no discards.
	if err := run("fstrim", at); err != nil {
		return "", err
	}
	sum, err := checksum(at)
	return sum, errors.Join(err, unix.Unmount(at, 0))
}

func fsFile(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("file%02d", i)) }

// content is the same for the same disk and file, and nothing else.
func content(serial string, i int) []byte {
	rng := rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "%s %d", serial, i)))
	b := make([]byte, fsFileSize)
	rng.Read(b)
	return b
}

// checksum is over the names and contents of all files under dir.
func checksum(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		fmt.Fprintf(h, "%s %d\n", rel, len(b))
		h.Write(b)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), err
}
