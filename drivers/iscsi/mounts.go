package iscsi

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"reconciler/drivers/iscsi/target"
	"reconciler/drivers/iscsi/volume"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Root is a directory below which a pool's absolute path may be.
type Root struct {
	Path string
	// Mount says whether the pools below are on a file system that is mounted at
	// the root or below it. Nil: on whatever each was on when it was made.
	Mount *bool
}

// rootOf is the root that a resolved path is below.
func (d *Driver) rootOf(dir string) (Root, bool) {
	for _, root := range d.cfg.AllowedRoots {
		if real, err := filepath.EvalSymlinks(root.Path); err == nil {
			root.Path = real
		}
		if dir != root.Path && within(dir, root.Path) {
			return root, true
		}
	}
	return Root{}, false
}

// within says whether a clean path is a directory or below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// mountOf is where the file system of a path is mounted, by the kernel's list: a
// file system that does not answer is not asked.
func mountOf(path string) (string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	at := "/"
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if point := unescape(fields[4]); within(path, point) && len(point) > len(at) {
			at = point
		}
	}
	return at, nil
}

// unescape reads the octal escapes of proc(5).
func unescape(s string) string {
	parts := strings.Split(s, `\`)
	for i, p := range parts {
		if i == 0 || len(p) < 3 {
			continue
		}
		if n, err := strconv.ParseUint(p[:3], 8, 8); err == nil {
			parts[i] = string([]byte{byte(n)}) + p[3:]
		}
	}
	return strings.Join(parts, "")
}

// apart says whether a pool's directory is on a file system that can be away.
func apart(dir string) (bool, error) {
	at, err := mountOf(dir)
	return at != "/", err
}

// checkMount says why what is in a pool's directory is not the pool: it is to be
// on a file system of its own and is not. A pool below the state directory is
// wherever that is.
func (d *Driver) checkMount(dir string, m volume.Marker) error {
	root, ok := d.rootOf(dir)
	if !ok {
		return nil
	}
	at, err := mountOf(dir)
	if err != nil {
		return err
	}
	switch {
	case root.Mount != nil && *root.Mount && !within(at, root.Path):
		return &volume.NotMountedError{Dir: dir, Reason: fmt.Sprintf("it is on the file system of %s, and this host's configuration says mount: true of %s", at, root.Path)}
	case root.Mount == nil && m.Mount != nil && *m.Mount && at == "/":
		return &volume.NotMountedError{Dir: dir, Reason: fmt.Sprintf("it is on the root file system, and was on another when the pool was made; if it was moved for good, say mount: false of %s in allowed.roots", root.Path)}
	}
	return nil
}

// recall adds to the marker of an earlier build whether the pool is on a file
// system of its own.
func (d *Driver) recall(v *volume.Pool, m volume.Marker) error {
	if m.Mount != nil {
		return nil
	}
	if _, ok := d.rootOf(v.Dir()); !ok {
		return nil
	}
	on, err := apart(v.Dir())
	if err != nil {
		return err
	}
	m.Mount = &on
	return v.PutMarker(m)
}

// checkNew says why a pool that has no record is not to be made: by a witness it
// was there before, and what is at its path now is not it. mine says that it is
// there: making it takes it over.
func (d *Driver) checkNew(o *reconcile.Object, known string, served map[string]target.Status) (mine bool, err error) {
	s, ok := o.Spec.(*spec.StoragePool)
	if !ok || s.Volumes.File == nil {
		return false, nil
	}
	dir, err := d.poolDir(s.Volumes.File.Path)
	if err != nil {
		return false, nil // createPool says so
	}
	m, err := volume.ReadMarker(dir)
	if err != nil && !missing(err) {
		return false, err // what cannot be read is not absent
	}
	mine = err == nil && m.UID == o.UID
	if !mine {
		m = volume.Marker{}
	}
	if err := d.checkMount(dir, m); err != nil || mine {
		return mine, err
	}
	for _, e := range served {
		if filepath.Dir(e.Path) == dir {
			return false, &volume.NotMountedError{Dir: dir, Reason: "it has no marker, and the target, which still runs, has volumes of it open; mount or restore it, or end the target for a new and empty pool"}
		}
	}
	if known != "" && filepath.IsAbs(s.Volumes.File.Path) {
		return false, &volume.NotMountedError{Dir: dir, Reason: "it has no marker, and " + known + "; mount or restore it, or raise metadata.incarnation of the pool and of its disks for new and empty ones"}
	}
	return false, nil
}
