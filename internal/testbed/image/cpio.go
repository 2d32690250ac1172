package image

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sort"
)

// archive writes the "newc" cpio format that the kernel unpacks as its first
// file system (Documentation/driver-api/early-userspace/buffer-format.rst).
// Entries are sorted at the end, so the same content gives the same bytes.
// The first error stays in err.
type archive struct {
	w       io.Writer
	entries map[string]entry
	err     error
}

type entry struct {
	mode         uint32
	data         []byte
	major, minor uint32
}

const (
	typeDir     = 0o040000
	typeFile    = 0o100000
	typeSymlink = 0o120000
	typeChar    = 0o020000
)

func newArchive(w io.Writer) *archive {
	return &archive{w: w, entries: map[string]entry{}}
}

func (a *archive) add(name string, e entry) {
	if dir := path.Dir(name); dir != "." {
		a.dir(dir)
	}
	a.entries[name] = e
}

func (a *archive) dir(name string) {
	a.add(name, entry{mode: typeDir | 0o755})
}

func (a *archive) bytes(name string, data []byte, perm fs.FileMode) {
	a.add(name, entry{mode: typeFile | uint32(perm), data: data})
}

func (a *archive) file(name, from string, perm fs.FileMode) {
	data, err := os.ReadFile(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.bytes(name, data, perm)
}

func (a *archive) symlink(name, target string) {
	a.add(name, entry{mode: typeSymlink | 0o777, data: []byte(target)})
}

func (a *archive) device(name string, major, minor uint32) {
	a.add(name, entry{mode: typeChar | 0o600, major: major, minor: minor})
}

func (a *archive) close() {
	var names []string
	for name := range a.entries {
		names = append(names, name)
	}
	sort.Strings(names) // a directory sorts before what is in it
	for i, name := range names {
		a.write(uint32(i+1), name, a.entries[name])
	}
	a.write(0, "TRAILER!!!", entry{})
}

func (a *archive) write(inode uint32, name string, e entry) {
	if a.err != nil {
		return
	}
	links := uint32(1)
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		inode, e.mode, 0, 0, links, 0, len(e.data), 0, 0, e.major, e.minor, len(name)+1, 0)
	// The header with the name and the data each end on a multiple of four.
	_, a.err = io.WriteString(a.w, header+name+"\x00"+padding(len(header)+len(name)+1))
	if a.err == nil {
		_, a.err = a.w.Write(e.data)
	}
	if a.err == nil {
		_, a.err = io.WriteString(a.w, padding(len(e.data)))
	}
}

func padding(n int) string { return "\x00\x00\x00"[:(4-n%4)%4] }
