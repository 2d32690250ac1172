// Package volume keeps volumes as sparse files in a directory, with a durable
// record beside each. It knows nothing of targets and claims.
package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"reconciler/internal/durable"
)

const (
	markerName     = ".reconciler-pool.json"
	imageSuffix    = ".img"
	recordSuffix   = ".json"
	creatingPrefix = ".creating-"
	version        = 1
)

// Marker stands in a pool's directory, on the file system of its volumes. A
// directory without it is not an empty pool but one that is not mounted.
type Marker struct {
	UID     string `json:"uid"`
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	// Mount says that the directory was on a file system of its own when the pool
	// was made: while it is not, what is there is not the pool, also if it has a
	// marker. Earlier builds did not say.
	Mount *bool `json:"mount,omitempty"`
}

// NotMountedError says that a directory is not the pool it is recorded as.
type NotMountedError struct {
	Dir    string
	Reason string
}

func (e *NotMountedError) Error() string {
	return fmt.Sprintf("pool directory %s is not mounted: %s", e.Dir, e.Reason)
}

// Pool is a directory of volumes.
type Pool struct {
	dir     string
	marker  Marker
	records *durable.Dir
}

// ReadMarker returns the marker of a directory; fs.ErrNotExist where there is none.
func ReadMarker(dir string) (Marker, error) {
	var m Marker
	data, err := os.ReadFile(filepath.Join(dir, markerName))
	if err != nil {
		return m, err
	}
	if err := durable.Unmarshal(data, version, &m); err != nil {
		return m, fmt.Errorf("%s: %w", filepath.Join(dir, markerName), err)
	}
	return m, nil
}

// Create makes a directory a pool. It may be one already, with the same UID and
// cluster; it must not be another's.
func Create(dir string, m Marker) (*Pool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	switch old, err := ReadMarker(dir); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case old.UID != m.UID || old.Cluster != m.Cluster:
		return nil, fmt.Errorf("%s is pool %s of cluster %s", dir, old.Name, old.Cluster)
	}
	records, err := durable.Open(dir, 0o600)
	if err != nil {
		return nil, err
	}
	if err := records.WriteJSON(markerName, version, m); err != nil {
		return nil, err
	}
	// The parent holds the directory's name.
	return &Pool{dir: dir, marker: m, records: records}, durable.SyncDir(filepath.Dir(dir))
}

// Open opens a pool that was created; a *NotMountedError says that it is not there.
func Open(dir, uid, cluster string) (*Pool, error) {
	p := &Pool{dir: dir, marker: Marker{UID: uid, Cluster: cluster}}
	if err := p.Check(); err != nil {
		return nil, err
	}
	records, err := durable.Open(dir, 0o600)
	if err != nil {
		return nil, err
	}
	p.records = records
	return p, nil
}

// Check says whether the pool is still there: a file system may be unmounted
// at any time.
func (p *Pool) Check() error {
	_, err := p.Marker()
	return err
}

// Marker reads the pool's marker; a *NotMountedError says that it is not there.
func (p *Pool) Marker() (Marker, error) {
	m, err := ReadMarker(p.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m, &NotMountedError{p.dir, "it has no marker"}
	case err != nil:
		return m, err
	case m.UID != p.marker.UID || m.Cluster != p.marker.Cluster:
		return m, &NotMountedError{p.dir, fmt.Sprintf("it holds pool %s of cluster %s", m.Name, m.Cluster)}
	}
	return m, nil
}

// PutMarker writes the marker anew, with what an earlier build did not say.
func (p *Pool) PutMarker(m Marker) error { return p.records.WriteJSON(markerName, version, m) }

// Dir is the pool's directory.
func (p *Pool) Dir() string { return p.dir }

// Trace sets a function that is called before each durable step.
func (p *Pool) Trace(step func(op string)) { p.records.Step = step }

func (p *Pool) step(op string) {
	if p.records.Step != nil {
		p.records.Step(op)
	}
}

// Destroy takes the marker away, and the directory if nothing else is in it.
// The caller knows that there are no volumes.
func (p *Pool) Destroy() error {
	if err := p.records.Remove(markerName); err != nil {
		return err
	}
	if err := p.records.Close(); err != nil {
		return err
	}
	if err := os.Remove(p.dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}

// Free is the space left in the file system for others than root, in bytes.
func (p *Pool) Free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", p.dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Path is the file of a volume.
func (p *Pool) Path(uid string) string { return filepath.Join(p.dir, uid+imageSuffix) }

// Volume is a volume as it was found.
type Volume struct {
	Meta
	Size      int64 // of the file, in bytes
	Allocated int64 // bytes
	Modified  time.Time
	// Device and Inode are the file's.
	Device, Inode uint64
	// Lost says that the record is there and the file is not.
	Lost bool
}

// Stray is a file of the pool's directory that is not the pool's.
type Stray struct {
	Path   string
	Reason string
}

// List reads the whole pool. A volume whose record cannot be read is in broken,
// by UID.
func (p *Pool) List() (volumes []Volume, strays []Stray, broken map[string]error, err error) {
	if err := p.Check(); err != nil {
		return nil, nil, nil, err
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, nil, nil, err
	}
	broken = map[string]error{}
	known := map[string]bool{markerName: true, "lost+found": true}
	for _, e := range entries {
		uid, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || uuid.Validate(uid) != nil {
			continue
		}
		v, err := p.Get(uid)
		var foreign *foreignError
		if errors.As(err, &foreign) {
			continue
		}
		known[e.Name()], known[uid+imageSuffix] = true, true
		if err != nil {
			broken[uid] = err
			continue
		}
		volumes = append(volumes, v)
	}
	for _, e := range entries {
		name := e.Name()
		if known[name] || durable.Owns(name) || strings.HasPrefix(name, creatingPrefix) {
			continue
		}
		strays = append(strays, Stray{filepath.Join(p.dir, name), "not a volume of this pool"})
	}
	// The directory may have been unmounted while it was read.
	return volumes, strays, broken, p.Check()
}

type foreignError struct{ uid, cluster, pool string }

func (e *foreignError) Error() string {
	return fmt.Sprintf("volume %s is recorded as one of pool %s of cluster %s", e.uid, e.pool, e.cluster)
}

// Get reads one volume; fs.ErrNotExist where there is no record of it.
func (p *Pool) Get(uid string) (Volume, error) {
	var v Volume
	if err := uuid.Validate(uid); err != nil {
		return v, fmt.Errorf("volume %q: %w", uid, err)
	}
	if err := p.records.ReadJSON(uid+recordSuffix, version, &v.Meta); err != nil {
		return v, err
	}
	if v.UID != uid || v.Pool != p.marker.UID || v.Cluster != p.marker.Cluster {
		return v, &foreignError{uid, v.Cluster, v.Pool}
	}
	var st unix.Stat_t
	switch err := unix.Lstat(p.Path(uid), &st); {
	case errors.Is(err, fs.ErrNotExist):
		v.Lost = true
	case err != nil:
		return v, &fs.PathError{Op: "lstat", Path: p.Path(uid), Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return v, fmt.Errorf("%s is not a regular file", p.Path(uid))
	default:
		v.Size, v.Allocated, v.Modified = st.Size, st.Blocks*512, time.Unix(st.Mtim.Unix())
		v.Device, v.Inode = st.Dev, st.Ino
	}
	return v, nil
}

// IDAt is the id of the volume whose file is at path, if that is this file: the
// directory is opened once, so that record and file are of one file system.
// Where no record says it, or another file is there, it is empty.
func IDAt(path string, device, inode uint64) (string, error) {
	uid, ok := strings.CutSuffix(filepath.Base(path), imageSuffix)
	if !ok || uuid.Validate(uid) != nil {
		return "", nil
	}
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	defer dir.Close()
	info, err := dir.Lstat(uid + imageSuffix)
	if err != nil {
		return "", err
	}
	if st := info.Sys().(*syscall.Stat_t); st.Dev != device || st.Ino != inode {
		return "", nil
	}
	data, err := dir.ReadFile(uid + recordSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var m Meta
	if err := durable.Unmarshal(data, version, &m); err != nil {
		return "", nil // whoever owns the record says so
	}
	return m.ID, nil
}

// NewID is the random id of a volume.
func NewID() string { return uuid.NewString() }

// Put writes the record of a volume.
func (p *Pool) Put(m Meta) error {
	if err := p.Check(); err != nil {
		return err
	}
	if err := uuid.Validate(m.UID); err != nil {
		return fmt.Errorf("volume %q: %w", m.UID, err)
	}
	return p.records.WriteJSON(m.UID+recordSuffix, version, m)
}
