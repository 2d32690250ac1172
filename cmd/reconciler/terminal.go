package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// leaveKey is Ctrl-], as telnet and virsh have it.
const leaveKey = 0x1d

// send copies what is typed; on a terminal until the key that leaves.
func send(w io.Writer, r io.Reader, isTerminal bool) error {
	if !isTerminal {
		_, err := io.Copy(w, r)
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		typed, _, leave := strings.Cut(string(buf[:n]), string(rune(leaveKey)))
		if _, werr := io.WriteString(w, typed); werr != nil {
			return werr
		}
		switch {
		case leave || errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// rawTerminal makes a terminal hand on every key as it is (termios(3),
// cfmakeraw). It fails where f is none.
func rawTerminal(f *os.File) (restore func(), err error) {
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }, nil
}

// isTerminal says whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// plainText hands on text without what would steer a terminal: control
// characters and the sequences they begin (ECMA-48), and marks that reorder
// text. A sequence ends with its line at the latest, so that none hides the rest.
type plainText struct {
	w    io.Writer
	in   sequence
	held []byte // the first bytes of a character
}

// sequence is what the text is in the midst of.
type sequence int

const (
	noSequence sequence = iota
	afterEscape
	controlSequence // CSI …, until its final byte
	controlString   // OSC, DCS, SOS, PM, APC …, until ST or BEL
	stringEscape    // ESC in one of these
)

func (p *plainText) Write(b []byte) (int, error) {
	text := append(p.held, b...)
	p.held = nil
	var out bytes.Buffer
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		if r == utf8.RuneError && n == 1 && !utf8.FullRune(text) {
			p.held = bytes.Clone(text)
			break
		}
		text = text[n:]
		if p.shows(r) {
			out.WriteRune(r)
		}
	}
	if _, err := p.w.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(b), nil
}

// shows takes the next character in.
func (p *plainText) shows(r rune) bool {
	if r == '\n' {
		p.in = noSequence
		return true
	}
	switch p.in {
	case afterEscape:
		switch {
		case r == '[':
			p.in = controlSequence
		case strings.ContainsRune("]PX^_", r):
			p.in = controlString
		case r >= 0x20 && r <= 0x2f: // an intermediate byte: the final one is to come
		default:
			p.in = noSequence
		}
		return false
	case controlSequence:
		if r >= 0x40 && r <= 0x7e {
			p.in = noSequence
		}
		return false
	case controlString, stringEscape:
		switch {
		case r == 0x07, r == 0x9c, r == '\\' && p.in == stringEscape:
			p.in = noSequence
		case r == 0x1b:
			p.in = stringEscape
		default:
			p.in = controlString
		}
		return false
	}
	switch r {
	case 0x1b:
		p.in = afterEscape
	case 0x9b:
		p.in = controlSequence
	case 0x90, 0x98, 0x9d, 0x9e, 0x9f:
		p.in = controlString
	}
	return r == '\t' || clean(string(r)) == string(r)
}
