package target

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"reconciler/drivers/iscsi/volume"
	"reconciler/internal/uptime"
)

// ErrOther means that what is at an export's path is not the volume that was
// exported: a file system was mounted or unmounted there, or the file was
// replaced. Who was admitted to the one is not admitted to the other.
var ErrOther = errors.New("another volume is at its path")

// File tells the file that an export has open from another one at its path.
type File struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	// Boot is the boot's id: in another boot, a device may have another number.
	Boot string `json:"boot,omitempty"`
}

func (f File) same(g File) bool {
	return f.Inode == g.Inode && (f.Device == g.Device || f.Boot != g.Boot)
}

// filed is a logical unit that can say what file it has open.
type filed interface {
	File() (device, inode uint64, err error)
}

// identify says what file a logical unit has open, and by the record beside it
// which volume that is; empty where there is none, as with a block device.
func identify(e Export, lu LogicalUnit) (file *File, id string, err error) {
	f, ok := lu.(filed)
	if !ok {
		return nil, "", nil
	}
	device, inode, err := f.File()
	if err != nil || inode == 0 {
		return nil, "", err
	}
	boot, _ := uptime.Boot() // without one, a device is taken for what it was
	file = &File{device, inode, boot}
	id, _ = volume.IDAt(e.Path, device, inode) // what cannot be read is not known
	return file, id, nil
}

// check says why what was opened is not what was exported; nil if it is, or if
// nothing is known of one of them.
func (s *saved) check(file *File, id string) error {
	switch {
	case s.Export.Volume != "" && id != "" && s.Export.Volume != id:
		return fmt.Errorf("%w: %s is volume %s, exported was %s; mount or restore that one, or stop the machine that has the disk", ErrOther, s.Export.Path, id, s.Export.Volume)
	case s.File != nil && file != nil && !s.File.same(*file):
		return fmt.Errorf("%w: %s is another file (inode %d) than the exported one (inode %d); mount or restore that one, or stop the machine that has the disk", ErrOther, s.Export.Path, file.Inode, s.File.Inode)
	}
	return nil
}

// atPath says whether the open file of an export is still the one at a path;
// what is not there is not another.
func (f *File) atPath(path string) error {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if f == nil || err != nil || st.Dev == f.Device && st.Ino == f.Inode {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrOther, path)
}
