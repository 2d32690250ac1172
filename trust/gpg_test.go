package trust

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// gnupg is a home of gpg that is gone after the test.
type gnupg struct {
	t    testing.TB
	home string
}

func newGnuPG(t testing.TB) *gnupg {
	t.Helper()
	// gpg-agent's socket lies in it: the path must be short.
	home, err := os.MkdirTemp("/tmp", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	g := &gnupg{t, home}
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	return g
}

func (g *gnupg) run(stdin []byte, args ...string) []byte {
	g.t.Helper()
	return run(g.t, "", stdin, "gpg", append([]string{"--homedir", g.home, "--batch", "--quiet", "--no-tty", "--passphrase", "", "--pinentry-mode", "loopback", "--trust-model", "always"}, args...)...)
}

func (g *gnupg) generate(name, algorithm, expires string) (fingerprint string) {
	g.t.Helper()
	g.run(nil, "--quick-generate-key", name, algorithm, "sign", expires)
	out := g.run(nil, "--with-colons", "--list-keys", name)
	return string(regexp.MustCompile(`(?m)^fpr:+([0-9A-F]+):`).FindSubmatch(out)[1])
}

func (g *gnupg) export(name string) []byte { return g.run(nil, "--armor", "--export", name) }

func (g *gnupg) sign(name string, message []byte, args ...string) []byte {
	g.t.Helper()
	return g.run(message, append(args, "--armor", "--detach-sign", "--local-user", name)...)
}

func TestVerifyGPG(t *testing.T) {
	g := newGnuPG(t)
	fingerprint := g.generate("Ann <ann@example.org>", "ed25519", "1y")
	g.generate("Rsa <rsa@example.org>", "rsa2048", "never")
	g.generate("Weak <weak@example.org>", "rsa1024", "never")
	g.generate("Removed <removed@example.org>", "ed25519", "never")
	// A signing subkey, as many people have it.
	sub := g.generate("Sub <sub@example.org>", "ed25519", "never")
	g.run(nil, "--quick-add-key", sub, "ed25519", "sign", "never")
	g.generate("Dsa <dsa@example.org>", "dsa2048", "never")
	keys := &Keys{}
	var all []byte
	for _, name := range []string{"ann@example.org", "rsa@example.org", "weak@example.org", "sub@example.org", "dsa@example.org"} {
		all = append(all, g.export(name)...)
	}
	if err := keys.AddGPG(all); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Add(time.Minute)
	good := g.sign("ann@example.org", message)
	for _, tt := range []struct {
		name    string
		message []byte
		sig     []byte
		at      time.Time
		want    error
	}{
		{"good", message, good, now, nil},
		{"RSA", message, g.sign("rsa@example.org", message), now, nil},
		{"subkey", message, g.sign("sub@example.org", message), now, nil},
		{"short RSA", message, g.sign("weak@example.org", message), now, ErrBadSignature},
		{"SHA-1", message, g.sign("rsa@example.org", message, "--digest-algo", "SHA1"), now, ErrBadSignature},
		{"DSA", message, g.sign("dsa@example.org", message), now, ErrBadSignature},
		{"text", message, g.sign("ann@example.org", message, "--textmode"), now, ErrBadSignature},
		{"removed key", message, g.sign("removed@example.org", message), now, ErrUnknownKey},
		{"changed message", append(bytes.Clone(message), 'x'), good, now, ErrBadSignature},
		{"expired key", message, good, now.AddDate(2, 0, 0), ErrExpired},
		{"key not made yet", message, good, now.AddDate(-1, 0, 0), ErrExpired},
		{"expired signature", message, g.sign("ann@example.org", message, "--default-sig-expire", "1d"), now.AddDate(0, 0, 2), ErrExpired},
		{"cut short", message, good[:len(good)/2], now, ErrBadSignature},
		{"empty armor", message, []byte(gpgHead + "\n\n-----END PGP SIGNATURE-----\n"), now, ErrBadSignature},
	} {
		who, err := keys.Verify(tt.message, tt.sig, NamespaceGit, tt.at)
		if !errors.Is(err, tt.want) || tt.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if tt.name == "good" && (who.Name != "Ann <ann@example.org>" || who.Fingerprint != fingerprint) {
			t.Errorf("signer %+v, want %s", who, fingerprint)
		}
	}
	if _, err := keys.Verify(message, good, NamespaceApproval, now); !errors.Is(err, ErrNamespace) {
		t.Errorf("an OpenPGP signature for an approval: %v", err)
	}
	revocation, err := os.ReadFile(g.home + "/openpgp-revocs.d/" + fingerprint + ".rev")
	if err != nil {
		t.Fatal(err)
	}
	g.run([]byte(strings.ReplaceAll(string(revocation), ":-----BEGIN", "-----BEGIN")), "--import")
	revoked := &Keys{}
	if err := revoked.AddGPG(g.export("ann@example.org")); err != nil {
		t.Fatal(err)
	}
	if _, err := revoked.Verify(message, good, NamespaceGit, now); !errors.Is(err, ErrExpired) {
		t.Errorf("a revoked key: %v", err)
	}
	for _, armored := range [][]byte{nil, []byte("x"), good, g.run(nil, "--armor", "--export-secret-keys", "rsa@example.org"), g.export("rsa@example.org")[:300]} {
		if err := keys.AddGPG(armored); err == nil {
			t.Errorf("%.40q was taken for public keys", armored)
		}
	}
}
