package gitrepo

import (
	"errors"
	"testing"
)

func TestReadRefReadsWhatPushFilesWrote(t *testing.T) {
	up := newUpstream(t)
	up.commit(map[string]string{"a.yaml": "a: 1\n"})
	r := up.open()
	mustFetch(t, r)
	const ref = "refs/reconciler/status/host1"
	if _, err := r.ReadRef(t.Context(), ref, "state.json"); !errors.Is(err, ErrRevisionMissing) {
		t.Fatalf("before anything was pushed: %v", err)
	}
	for _, content := range []string{"one", "two"} {
		if _, _, err := r.PushFiles(t.Context(), ref, map[string][]byte{"state.json": []byte(content), "x/y": nil}, "m", PushOptions{}); err != nil {
			t.Fatal(err)
		}
		got, err := r.ReadRef(t.Context(), ref, "state.json")
		if err != nil || string(got) != content {
			t.Fatalf("read %q, %v; want %q", got, err, content)
		}
	}
	if _, err := r.ReadRef(t.Context(), ref, "absent"); !errors.Is(err, ErrRevisionMissing) {
		t.Fatalf("a file that is not there: %v", err)
	}
}
