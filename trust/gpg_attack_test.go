package trust

import (
	"errors"
	"testing"
	"time"
)

// A subkey that was revoked signs nothing, not what it signed before either:
// when that was is its owner's claim.
func TestRevokedSubkey(t *testing.T) {
	g := newGnuPG(t)
	fingerprint := g.generate("Sub <sub@example.org>", "ed25519", "never")
	g.run(nil, "--quick-add-key", fingerprint, "ed25519", "sign", "never")
	sig := g.sign("sub@example.org", message)
	verify := func() (Signer, error) {
		keys := &Keys{}
		if err := keys.AddGPG(g.export("sub@example.org")); err != nil {
			t.Fatal(err)
		}
		return keys.Verify(message, sig, NamespaceGit, time.Now().Add(time.Minute))
	}
	if who, err := verify(); err != nil || who.Fingerprint != fingerprint {
		t.Fatalf("%+v, %v", who, err)
	}
	g.run([]byte("key 1\nrevkey\ny\n0\n\ny\nsave\n"), "--no-batch", "--command-fd", "0", "--edit-key", fingerprint)
	if who, err := verify(); !errors.Is(err, ErrExpired) {
		t.Errorf("a revoked subkey: %+v, %v", who, err)
	}
}
