package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"

	"reconciler/spec"
)

// signature is what the files of a format have at a place.
type signature struct {
	at    int64
	magic string
}

// containers are formats that hold a disk and are no disk. A guest given one as
// its disk finds nothing to boot on it.
var containers = []struct {
	name       string
	signatures []signature
	wayOut     string
}{
	{"qcow2", []signature{{0, "QFI\xfb"}}, "say format: qcow2"},
	{"vmdk (VMware)", []signature{{0, "KDMV"}, {0, "COWD"}, {0, "# Disk DescriptorFile"}}, convertFrom("vmdk")},
	{"vdi (VirtualBox)", []signature{{0x40, "\x7f\x10\xda\xbe"}}, convertFrom("vdi")},
	{"vhdx (Hyper-V)", []signature{{0, "vhdxfile"}}, convertFrom("vhdx")},
	{"vhd (Hyper-V)", []signature{{0, "conectix"}}, convertFrom("vpc")},
	{"qed (QEMU)", []signature{{0, "QED\x00"}}, convertFrom("qed")},
}

func convertFrom(format string) string {
	return "it is not supported: qemu-img convert -f " + format + " -O qcow2 makes one that is"
}

// packed are formats that hold any file. Such a file may well be meant to be on
// a disk as it is, unless its name says that it is a disk image, packed.
var packed = []struct{ name, suffix, magic string }{
	{"gzip", "gz", "\x1f\x8b\x08"},
	{"xz", "xz", "\xfd7zXZ\x00"},
	{"zstd", "zst", "\x28\xb5\x2f\xfd"},
	{"bzip2", "bz2", "BZh"},
}

var packedDisk = regexp.MustCompile(`(?i)\.(raw|img|qcow2|vmdk|vdi|vhdx?)\.(gz|xz|zst|bz2)$`)

// checkRaw says so where an image that is stated to be raw plainly is something
// else. What it is taken for follows from what was stated, as ever: this only
// refuses.
func checkRaw(f io.ReaderAt, img *spec.Image) error {
	for _, c := range containers {
		for _, s := range c.signatures {
			if begins(f, s.at, s.magic) {
				return fmt.Errorf("the image is stated to be raw and looks like %s; %s", c.name, c.wayOut)
			}
		}
	}
	if !packedDisk.MatchString(sourceName(img)) {
		return nil
	}
	for _, p := range packed {
		if begins(f, 0, p.magic) {
			return fmt.Errorf("the image is packed with %s, which is not supported; unpack it and state the sha256 of what comes out", p.name)
		}
	}
	return nil
}

func begins(f io.ReaderAt, at int64, magic string) bool {
	buf := make([]byte, len(magic))
	n, err := f.ReadAt(buf, at)
	return n == len(buf) && (err == nil || errors.Is(err, io.EOF)) && bytes.Equal(buf, []byte(magic))
}

func sourceName(img *spec.Image) string {
	switch {
	case img.Source.HTTP != nil:
		u, _, _ := bytes.Cut([]byte(img.Source.HTTP.URL), []byte("?"))
		return path.Base(string(u))
	case img.Source.File != nil:
		return path.Base(img.Source.File.Path)
	}
	return ""
}
