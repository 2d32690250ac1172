// Package owndir makes directories that no other user has a say in.
package owndir

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// Make makes a directory, and its parents, where it is not there. One that is
// there must belong to this user or to root, and not be open to everybody: who
// owns a directory decides what the names in it stand for.
func Make(dir string, mode fs.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	// The link, where it is one, and what it leads to.
	for _, stat := range []func(string) (fs.FileInfo, error){os.Lstat, os.Stat} {
		info, err := stat(dir)
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t).Uid
		if owner != 0 && int(owner) != os.Geteuid() {
			return fmt.Errorf("directory %s belongs to %s, who could put anything in the place of what is in it: remove it, or name another", dir, name(owner))
		}
		if info.IsDir() && info.Mode()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
			return fmt.Errorf("everybody may write to directory %s, and put anything in the place of what is in it: chmod o-w %s", dir, dir)
		}
	}
	return nil
}

func name(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return "user " + u.Username
	}
	return "user " + id
}
