package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"reconciler/spec"
)

// Formats of images.
const (
	Raw   = "raw"
	QCOW2 = "qcow2"
)

const (
	chunk  = 64 << 10
	sector = 512
)

// Copy writes the content of an image to dst, an empty file, as a disk of
// diskSize bytes will begin. What reads as zeros stays a hole. The content is
// hashed again while it is read: a copy that went bad on the disk is dropped.
func (s *Store) Copy(ctx context.Context, img *spec.Image, dst *os.File, diskSize int64, progress Progress) error {
	path, ok := s.Have(img.SHA256)
	if !ok {
		return fmt.Errorf("there is no verified copy of image %s", img.SHA256)
	}
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer src.Close()
	switch img.Format {
	case Raw, "":
		err = copyRaw(ctx, img, src, dst, diskSize, progress)
	case QCOW2:
		if err = verify(ctx, src, img.SHA256); err == nil {
			err = s.convert(ctx, img, src, dst, diskSize, progress)
		}
	default:
		err = fmt.Errorf("image format %q is not supported", img.Format)
	}
	var mismatch *MismatchError
	if errors.As(err, &mismatch) {
		return errors.Join(fmt.Errorf("the copy of the image has gone bad: %w", err), s.Drop(img.SHA256))
	}
	return err
}

// checkSize compares the size a guest will see with what was stated.
func checkSize(virtual int64, img *spec.Image, diskSize int64) error {
	switch {
	case img.VirtualSize != 0 && virtual != int64(img.VirtualSize):
		return fmt.Errorf("the image has a virtual size of %d bytes, the spec says %s; say virtualSize: %[1]d", virtual, img.VirtualSize)
	case virtual > diskSize:
		return fmt.Errorf("the image has a virtual size of %s, larger than the disk's %s", spec.Size(virtual), spec.Size(diskSize))
	}
	return nil
}

func copyRaw(ctx context.Context, img *spec.Image, src, dst *os.File, diskSize int64, progress Progress) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if err := checkRaw(src, img); err != nil {
		return err
	}
	// A raw image is the disk's first bytes. The rest of its last sector reads as zeros.
	padded := (st.Size() + sector - 1) / sector * sector
	switch {
	case img.VirtualSize != 0 && padded != int64(img.VirtualSize):
		return fmt.Errorf("the image's file has %d bytes, the spec says virtualSize: %s; for a raw image the two are the same: say virtualSize: %d", st.Size(), img.VirtualSize, padded)
	case padded > diskSize:
		return fmt.Errorf("the image's file has %d bytes, more than the disk's %s", st.Size(), spec.Size(diskSize))
	}
	var (
		h    = sha256.New()
		buf  = make([]byte, chunk)
		zero = make([]byte, chunk)
		said = time.Now()
	)
	for off := int64(0); off < st.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(src, buf[:min(chunk, st.Size()-off)])
		if err != nil {
			return err
		}
		h.Write(buf[:n])
		if !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := dst.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		if now := time.Now(); now.Sub(said) > time.Second {
			said = now
			progress("copied %d%% of %s", off*100/st.Size(), spec.Size(st.Size()))
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != img.SHA256 {
		return &MismatchError{img.SHA256, got}
	}
	return nil
}
