package iscsi

import (
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"reconciler/claim"
	"reconciler/internal/testbed"
)

// Who is logged in to a disk, and when it was last written, is told.
func TestTraces(t *testing.T) {
	w := newWorld(t)
	w.converge(w.tree(w.poolYAML(""), diskYAML("web", "size: 4Mi")))
	uid := diskKey("web").UID
	grant := mustClaim(t, w, uid, owner("launch-1"))
	if list := w.d.Traces(uid); len(list) != 1 || !strings.Contains(list[0].Text, "last written") {
		t.Errorf("nobody is logged in: %v", list)
	}
	in := logIn(t, grant)
	testbed.Await(t, 20*time.Second, "the session to be told", func() bool {
		return slices.ContainsFunc(w.d.Traces(uid), func(trace Trace) bool {
			return strings.HasPrefix(trace.Text, "iSCSI session of "+grant.Initiator+" from 127.0.0.1")
		})
	})
	in.Close()
	if list := w.d.Traces("none"); len(list) > 0 {
		t.Errorf("of a disk that is not there: %v", list)
	}
}

// logIn opens a session, which lasts until its input is closed.
func logIn(t *testing.T, g claim.Grant) io.Closer {
	t.Helper()
	cmd := exec.Command("qemu-io", "--object", "secret,id=chap,data="+g.Password.Reveal(), "--image-opts",
		"driver=iscsi,transport=tcp,portal="+g.Portal+",target="+g.Target+",lun=0,user="+g.User+",password-secret=chap,initiator-name="+g.Initiator)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	return in
}
