package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"reconciler/spec"
)

// The files are handed over open. Their names inside the child lead to the
// descriptors themselves, whatever directories it may enter.
const (
	childSource = "/proc/self/fd/3"
	childDest   = "/proc/self/fd/4"
)

// convert writes a qcow2 image as raw. qemu-img reads what a stranger made, so
// it runs as nobody, without network, under limits, and after the header was
// checked here and by itself.
func (s *Store) convert(ctx context.Context, img *spec.Image, src, dst *os.File, diskSize int64, progress Progress) (err error) {
	virtual, err := checkQCOW2(src)
	if err != nil {
		return err
	}
	if err := checkSize(virtual, img, diskSize); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		// It opens the file anew by its descriptor, which asks for permission.
		// What is qcow2 is no kernel, so QEMU need not read it.
		if err := src.Chown(-1, int(s.cfg.GID)); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Convert)
	defer cancel()
	if err := s.inspect(ctx, src, virtual); err != nil {
		return err
	}
	if err := dst.Truncate(virtual); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := dst.Chown(int(s.cfg.UID), int(s.cfg.GID)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, dst.Chown(0, 0)) }()
	}
	said := time.Now()
	_, err = s.run(ctx, virtual, []*os.File{src, dst}, func(line string) {
		if now := time.Now(); now.Sub(said) > time.Second {
			said = now
			progress("converted %s", strings.Trim(line, " ()"))
		}
	}, "convert", "-p", "-n", "--target-is-zero", "-f", QCOW2, "-O", Raw, childSource, childDest)
	if err != nil {
		return err
	}
	st, err := dst.Stat()
	if err != nil {
		return err
	}
	if st.Size() != virtual {
		return fmt.Errorf("qemu-img made %d bytes of %d", st.Size(), virtual)
	}
	return nil
}

// imageInfo is what we read of ImageInfo (QEMU's qapi/block-core.json).
type imageInfo struct {
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"`
	Encrypted   bool   `json:"encrypted"`
	Backing     string `json:"backing-filename"`
	FullBacking string `json:"full-backing-filename"`
	Specific    struct {
		Data struct {
			DataFile string          `json:"data-file"`
			Encrypt  json.RawMessage `json:"encrypt"`
			Corrupt  bool            `json:"corrupt"`
		} `json:"data"`
	} `json:"format-specific"`
}

// inspect asks qemu-img for its view of the image, which must be ours.
func (s *Store) inspect(ctx context.Context, src *os.File, virtual int64) error {
	out, err := s.run(ctx, 0, []*os.File{src}, nil, "info", "--output=json", "-f", QCOW2, childSource)
	if err != nil {
		return err
	}
	var i imageInfo
	if err := json.Unmarshal(out, &i); err != nil {
		return fmt.Errorf("qemu-img info: %w", err)
	}
	switch {
	case i.Format != QCOW2:
		return fmt.Errorf("qemu-img info: format %q", i.Format)
	case i.Backing != "" || i.FullBacking != "":
		return errors.New("a qcow2 image with a backing file is refused")
	case i.Specific.Data.DataFile != "":
		return errors.New("a qcow2 image with an external data file is refused")
	case i.Encrypted || len(i.Specific.Data.Encrypt) > 0:
		return errors.New("an encrypted qcow2 image is refused")
	case i.Specific.Data.Corrupt:
		return errors.New("the qcow2 image is marked corrupt")
	case i.VirtualSize != virtual:
		return fmt.Errorf("qemu-img info: virtual size %d, its header says %d", i.VirtualSize, virtual)
	}
	return nil
}

// Limits of a run of qemu-img.
const (
	maxAddressSpace = 2 << 30 // bytes
	maxCPU          = 3600    // seconds
	maxOutput       = 1 << 20 // bytes of its output that are kept
)

// run runs qemu-img with files from descriptor 3 on. fileSize bounds what it may
// write.
func (s *Store) run(ctx context.Context, fileSize int64, files []*os.File, line func(string), args ...string) ([]byte, error) {
	// prlimit(1) sets the limits after the credentials are dropped and before
	// the program runs.
	full := append([]string{
		"--as=" + strconv.Itoa(maxAddressSpace), "--cpu=" + strconv.Itoa(maxCPU), "--core=0", "--nofile=64",
		"--fsize=" + strconv.FormatInt(fileSize, 10), "--", s.cfg.QemuImg,
	}, args...)
	cmd := exec.CommandContext(ctx, "prlimit", full...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.cfg.UID, Gid: s.cfg.GID}
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, errs := &output{line: line}, &output{}
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("qemu-img %s: %w", args[0], context.Cause(ctx))
		}
		msg := strings.TrimSpace(errs.String())
		return nil, fmt.Errorf("%s %s: %w: %s", filepath.Base(s.cfg.QemuImg), args[0], err, msg)
	}
	return out.Bytes(), nil
}

// output keeps the beginning of an output, bounded, and gives its lines away.
type output struct {
	bytes.Buffer
	line func(string)
}

func (t *output) Write(p []byte) (int, error) {
	if t.line != nil {
		for _, l := range bytes.FieldsFunc(p, func(r rune) bool { return r == '\r' || r == '\n' }) {
			t.line(string(l))
		}
		return len(p), nil
	}
	if room := maxOutput - t.Len(); room > 0 {
		t.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
