package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSignedCommits(t *testing.T) {
	u := newUpstream(t)
	plain := u.commit(map[string]string{"a.yaml": "1"})
	r := u.open()
	mustFetch(t, r)
	ctx := context.Background()
	if payload, signature, err := r.Signed(ctx, plain); err != nil || signature != nil || string(payload) != u.git("cat-file", "commit", plain)+"\n" {
		t.Errorf("unsigned: %q, %q, %v", payload, signature, err)
	}
	key := filepath.Join(t.TempDir(), "key")
	run(t, "", nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	signers := secretFile(t, "host "+string(public))
	var signed string
	sign := func(payload []byte) ([]byte, error) {
		signed = string(payload)
		out := run(t, "", payload, "ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", key)
		return []byte(out[strings.Index(out, "-----BEGIN"):]), nil
	}
	for _, message := range []string{"m", "subject\n\nbody\n\n gpgsig x\n"} {
		commit, _, err := r.PushFiles(ctx, "refs/reconciler/status/h", map[string][]byte{"s": []byte(message)}, message, PushOptions{Sign: sign})
		if err != nil {
			t.Fatal(err)
		}
		u.git("-c", "gpg.format=ssh", "-c", "gpg.ssh.allowedSignersFile="+signers, "verify-commit", commit)
		c, err := r.Commit(ctx, "refs/reconciler/status/h")
		if err != nil {
			t.Fatal(err)
		}
		payload, signature, err := r.Signed(ctx, c.Hash)
		if err != nil || string(payload) != signed || !strings.HasPrefix(string(signature), "-----BEGIN SSH SIGNATURE-----\n") {
			t.Errorf("signed %q, payload %q, signature %q, %v", signed, payload, signature, err)
		}
	}
	if _, _, err := r.PushFiles(ctx, "refs/reconciler/status/h", map[string][]byte{"s": nil}, "m", PushOptions{Sign: func([]byte) ([]byte, error) { return nil, errors.New("no key") }}); err == nil || !strings.Contains(err.Error(), "no key") {
		t.Errorf("a signer that fails: %v", err)
	}
	for _, rev := range []string{strings.Repeat("1", 40), "main"} {
		if _, _, err := r.Signed(ctx, rev); !errors.Is(err, ErrRevisionMissing) {
			t.Errorf("%s: %v", rev, err)
		}
	}
	if r.damaged() {
		t.Error("a commit that is not there was taken for damage")
	}
}

func TestSplitSignature(t *testing.T) {
	const head, tail = "tree T\nauthor A\ncommitter C\n", "\nsubject\n\ngpgsig no\n"
	for _, tt := range []struct{ commit, payload, signature string }{
		{head + tail, head + tail, ""},
		{head + "gpgsig a\n b\n \n c\n" + tail, head + tail, "a\nb\n\nc\n"},
		{head + "gpgsig a\n b\nencoding x\n y\n" + tail, head + "encoding x\n y\n" + tail, "a\nb\n"},
		{head + "gpgsig-sha256 a\n b\n" + tail, head + tail, ""},
		{head + "gpgsig-sha256 a\n b\ngpgsig c\n d\n" + tail, head + tail, "c\nd\n"},
		{head + "mergetag object\n gpgsig x\n" + tail, head + "mergetag object\n gpgsig x\n" + tail, ""},
		{head + "gpgsig a", head, "a"},
	} {
		payload, signature, err := splitSignature([]byte(tt.commit))
		if err != nil || string(payload) != tt.payload || string(signature) != tt.signature {
			t.Errorf("%q: %q, %q, %v", tt.commit, payload, signature, err)
		}
	}
	if _, _, err := splitSignature([]byte(head + "gpgsig a\ngpgsig b\n" + tail)); err == nil {
		t.Error("two signatures were accepted")
	}
}

func TestReplacesTellsOfForeignTips(t *testing.T) {
	u := newUpstream(t)
	u.commit(map[string]string{"a.yaml": "1"})
	const ref = "refs/reconciler/status/h"
	var told []string
	var refuse error
	intended := ""
	opts := PushOptions{Replaces: func(tip ForeignTip) error {
		file, err := tip.File("a.yaml")
		told = append(told, fmt.Sprintf("%s %t %d %s%v", tip.Hash, len(tip.Payload) > 0, len(tip.Signature), file, err))
		return refuse
	}, Intend: func(commit string) error { intended = commit; return nil }}
	r := u.open()
	push := func(content string) {
		t.Helper()
		if _, _, err := r.PushFiles(context.Background(), ref, map[string][]byte{"s": []byte(content)}, "m", opts); err != nil {
			t.Fatal(err)
		}
	}
	push("1")
	push("2")
	if len(told) > 0 {
		t.Errorf("told of our own: %v", told)
	}
	theirs := u.git("commit-tree", "-m", "theirs", "main^{tree}")
	u.git("update-ref", ref, theirs)
	push("3")
	if len(told) != 1 || told[0] != theirs+" true 0 1<nil>" {
		t.Errorf("told %v, want %s", told, theirs)
	}
	if tip := u.git("rev-parse", ref); intended != tip {
		t.Errorf("%s was pushed, and %q was intended", tip, intended)
	}
	refuse = errors.New("not yours")
	u.git("update-ref", ref, theirs)
	if _, _, err := r.PushFiles(context.Background(), ref, map[string][]byte{"s": []byte("4")}, "m", opts); !errors.Is(err, refuse) {
		t.Errorf("the push ends with %v", err)
	}
	if tip := u.git("rev-parse", ref); tip != theirs {
		t.Errorf("a tip that was to stay is %s, was %s", tip, theirs)
	}
}
