package owndir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMake(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	at := func(name string) string { return filepath.Join(t.TempDir(), name) }
	mkdir := func(mode os.FileMode, uid int) string {
		t.Helper()
		dir := at("d")
		for _, err := range []error{os.Mkdir(dir, 0o700), os.Chmod(dir, mode), os.Chown(dir, uid, 0)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	link := func(to string, uid int) string {
		t.Helper()
		path := at("l")
		for _, err := range []error{os.Symlink(to, path), os.Lchown(path, uid, 0)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	ours := mkdir(0o711, 0)
	for name, c := range map[string]struct{ dir, why string }{
		"new":                    {at("a/b"), ""},
		"ours":                   {ours, ""},
		"a link of ours":         {link(ours, 0), ""},
		"sticky, as /tmp":        {mkdir(0o777|os.ModeSticky, 0), ""},
		"somebody's":             {mkdir(0o700, 1), "belongs to user"},
		"somebody's link":        {link(ours, 1), "belongs to user"},
		"a link to somebody's":   {link(mkdir(0o700, 1), 0), "belongs to user"},
		"open to everybody":      {mkdir(0o777, 0), "everybody may write"},
		"of a user without name": {mkdir(0o700, 4000000), "belongs to user 4000000"},
	} {
		err := Make(c.dir, 0o711)
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", name, err, c.why)
		}
	}
}
