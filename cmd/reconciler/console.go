package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"reconciler/internal/unixsock"
	"reconciler/spec"
)

func (a *app) consoleCmd() *cobra.Command {
	var log, follow bool
	c := &cobra.Command{
		Use:   "console VM",
		Short: "Attach to a machine's serial console",
		Long: `console attaches this terminal to the serial console of a machine; Ctrl-] leaves
it. One client is served at a time: a second one sees nothing until the first has
left. Where standard input is no terminal, it is sent to the console, and what the
guest writes goes to standard output until the machine ends or the command is
interrupted.

--log prints what the guest wrote since the machine was made, as far as it is
kept; with -f it goes on with what it writes.`,
		Example: `  reconciler console web-1
  reconciler console web-1 --log -f`,
		Args:              oneArg("VM"),
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			if follow && !log {
				return usagef("-f needs --log")
			}
			name := args[0]
			if strings.Contains(name, "/") {
				var err error
				if name, err = parseOf(spec.KindVirtualMachine, name); err != nil {
					return err
				}
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			at, err := client.Console(cmd.Context(), name)
			if err != nil {
				return err
			}
			if log {
				return ended(cmd.Context(), printLog(cmd.Context(), a.stdout, at.Log, follow))
			}
			if at.Socket == "" {
				return &hinted{fmt.Errorf("VirtualMachine/%s is off", name), "--log shows what it wrote"}
			}
			return a.attach(cmd.Context(), at.Socket)
		},
	}
	c.Flags().BoolVar(&log, "log", false, "print what the guest wrote, and do not attach")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "with --log: go on with what it writes")
	return c
}

// leaveKey is Ctrl-], as telnet and virsh have it.
const leaveKey = 0x1d

// attach joins standard input and output to a console until the user leaves,
// the machine ends, or ctx ends.
func (a *app) attach(ctx context.Context, socket string) error {
	conn, err := unixsock.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	in, isFile := a.stdin.(*os.File)
	isTerminal := false
	if isFile {
		if restore, err := rawTerminal(in); err == nil {
			isTerminal = true
			defer restore()
			fmt.Fprint(a.stderr, "Attached; Ctrl-] leaves.\r\n")
		}
	}
	left := make(chan error, 1)
	go func() {
		err := send(conn, a.stdin, isTerminal)
		if err != nil || isTerminal {
			left <- err
		}
		// A pipe that has ended: what the guest answers is still to come.
	}()
	received := make(chan error, 1)
	go func() {
		_, err := io.Copy(a.stdout, conn)
		received <- err
	}()
	select {
	case err = <-left:
	case err = <-received:
	}
	if isTerminal {
		fmt.Fprint(a.stderr, "\r\n")
	}
	return ended(ctx, err)
}

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

// logPoll is how often a followed log is looked at.
const logPoll = 100 * time.Millisecond

// printLog writes a console's log, its older part (.1) first. A log that is
// followed starts anew when it has become shorter: it was turned over.
func printLog(ctx context.Context, w io.Writer, path string, follow bool) error {
	older, err := os.Open(path + ".1")
	if err == nil {
		_, err = io.Copy(w, older)
		older.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.Open(path)
	for follow && errors.Is(err, fs.ErrNotExist) {
		if err := pause(ctx, logPoll); err != nil {
			return err
		}
		f, err = os.Open(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has written nothing yet
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var at int64
	for {
		n, err := io.Copy(w, f)
		at += n
		if err != nil || !follow {
			return err
		}
		if err := pause(ctx, logPoll); err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if info.Size() < at {
			if at, err = f.Seek(0, io.SeekStart); err != nil {
				return err
			}
		}
	}
}
