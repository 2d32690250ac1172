package api

import (
	"context"
	"net"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

type peerKey struct{}

// withPeer remembers who is at the other end of a connection, as the kernel
// says (unix(7), SO_PEERCRED).
func withPeer(ctx context.Context, c net.Conn) context.Context {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return ctx
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	var credErr error
	if err := rc.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred)
}

// caller is who asks. It is an error if that is not known, or is neither root
// nor the agent's own user: the socket's mode says the same, but a directory
// may be handed on with other modes.
func caller(ctx context.Context) (Caller, error) {
	cred, _ := ctx.Value(peerKey{}).(*unix.Ucred)
	if cred == nil {
		return Caller{}, Errorf(Denied, "it is not known who asks")
	}
	if !admitted(cred.Uid, os.Geteuid()) {
		return Caller{}, Errorf(Denied, "user %d may not talk to the agent", cred.Uid)
	}
	c := Caller{UID: int(cred.Uid), PID: int(cred.Pid), Name: strconv.Itoa(int(cred.Uid))}
	if u, err := user.LookupId(c.Name); err == nil {
		c.Name = u.Username
	}
	return c, nil
}

func admitted(uid uint32, self int) bool { return uid == 0 || int(uid) == self }
