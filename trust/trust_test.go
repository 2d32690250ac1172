package trust

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

var message = []byte("tree 1234\nauthor A\n\nmessage\n")

func run(t testing.TB, dir string, stdin []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, stderr.Bytes())
	}
	return out
}

// keygen makes a key with ssh-keygen and returns its path and public line.
func keygen(t testing.TB, args ...string) (path, public string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "key")
	run(t, "", nil, "ssh-keygen", append([]string{"-q", "-N", "", "-C", "ann@example.org", "-f", path}, args...)...)
	b, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return path, strings.TrimSpace(string(b))
}

func sshSign(t testing.TB, key, namespace string, message []byte, args ...string) []byte {
	t.Helper()
	return run(t, "", message, "ssh-keygen", append([]string{"-q", "-Y", "sign", "-f", key, "-n", namespace}, args...)...)
}

func signers(t testing.TB, lines ...string) *Keys {
	t.Helper()
	k, err := ParseAllowedSigners([]byte(strings.Join(lines, "\n") + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestVerifySSH(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, args := range [][]string{{"-t", "ed25519"}, {"-t", "ecdsa"}, {"-t", "ecdsa", "-b", "521"}, {"-t", "rsa", "-b", "2048"}} {
		key, public := keygen(t, args...)
		for _, hash := range []string{"sha256", "sha512"} {
			sig := sshSign(t, key, "git", message, "-O", "hashalg="+hash)
			who, err := signers(t, "# the team", "", "ann@example.org,ann "+public).Verify(message, sig, NamespaceGit, now)
			if err != nil || who.Name != "ann@example.org,ann" || !strings.HasPrefix(who.Fingerprint, "SHA256:") {
				t.Errorf("%v %s: %+v, %v", args, hash, who, err)
			}
		}
	}
	key, public := keygen(t, "-t", "ed25519")
	_, other := keygen(t, "-t", "ed25519")
	good := sshSign(t, key, "git", message)
	fingerprint := strings.Fields(string(run(t, "", nil, "ssh-keygen", "-l", "-f", key)))[1]
	for _, tt := range []struct {
		name    string
		signers string
		message []byte
		sig     []byte
		want    error
	}{
		{"good", "a " + public, message, good, nil},
		{"unsigned", "a " + public, message, nil, ErrUnsigned},
		{"blank", "a " + public, message, []byte(" \n"), ErrUnsigned},
		{"removed key", "a " + other, message, good, ErrUnknownKey},
		{"no keys", "", message, good, ErrUnknownKey},
		{"changed message", "a " + public, append(bytes.Clone(message), ' '), good, ErrBadSignature},
		{"for files", "a " + public, message, sshSign(t, key, "file", message), ErrNamespace},
		{"allowed", `a namespaces="file,git" ` + public, message, good, nil},
		{"not allowed", `a namespaces="file,email" ` + public, message, good, ErrNamespace},
		{"valid", `a valid-after="20261122",valid-before="202611221201Z" ` + public, message, good, nil},
		{"expired", `a valid-before="20261122115959Z" ` + public, message, good, ErrExpired},
		{"not yet", `a valid-after="202611221201Z" ` + public, message, good, ErrExpired},
		{"expired and renewed", `a valid-before="20200101" ` + public + "\nb " + public, message, good, nil},
		{"cut short", "a " + public, message, good[:len(good)-20], ErrBadSignature},
		{"garbage in the armor", "a " + public, message, bytes.Replace(good, []byte("U1NIU0lH"), []byte("U1NIU0lI"), 1), ErrBadSignature},
		{"X.509", "a " + public, message, []byte("-----BEGIN SIGNED MESSAGE-----\nMII\n-----END SIGNED MESSAGE-----\n"), ErrBadSignature},
		{"huge", "a " + public, message, append(bytes.Clone(good), bytes.Repeat([]byte("A"), maxSignature)...), ErrBadSignature},
	} {
		who, err := signers(t, tt.signers).Verify(tt.message, tt.sig, NamespaceGit, now)
		if !errors.Is(err, tt.want) || tt.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		matched := 0
		for _, e := range []error{ErrUnsigned, ErrUnknownKey, ErrExpired, ErrNamespace, ErrBadSignature} {
			if errors.Is(err, e) {
				matched++
			}
		}
		if tt.want != nil && matched != 1 {
			t.Errorf("%s: %v matches %d errors", tt.name, err, matched)
		}
		if tt.want == ErrUnknownKey && (who.Fingerprint != fingerprint || !strings.Contains(err.Error(), fingerprint)) {
			t.Errorf("%s: the key is not named: %v", tt.name, err)
		}
	}
}

// rsaSignature signs with an RSA key in a way ssh-keygen no longer does.
func rsaSignature(t *testing.T, bits int, algorithm string) (public string, sig []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := signedData(message, NamespaceGit, "sha512")
	if err != nil {
		t.Fatal(err)
	}
	s, err := signer.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, data, algorithm)
	if err != nil {
		t.Fatal(err)
	}
	blob := append([]byte(sigMagic), ssh.Marshal(sshSignature{
		Version: 1, PublicKey: signer.PublicKey().Marshal(), Namespace: NamespaceGit, HashAlgorithm: "sha512", Signature: ssh.Marshal(s),
	})...)
	armored := pem.EncodeToMemory(&pem.Block{Type: "SSH SIGNATURE", Bytes: blob})
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))), armored
}

func TestWeakSignaturesDoNotCount(t *testing.T) {
	public, good := rsaSignature(t, 2048, ssh.KeyAlgoRSASHA256)
	keys := signers(t, "a "+public)
	if _, err := keys.Verify(message, good, NamespaceGit, time.Now()); err != nil {
		t.Fatal(err)
	}
	public, sha1 := rsaSignature(t, 2048, ssh.KeyAlgoRSA)
	if _, err := signers(t, "a "+public).Verify(message, sha1, NamespaceGit, time.Now()); !errors.Is(err, ErrBadSignature) || !strings.Contains(err.Error(), "ssh-rsa") {
		t.Errorf("RSA with SHA-1: %v", err)
	}
	_, small := keygen(t, "-t", "rsa", "-b", "1024")
	_, dsa := keygen(t, "-t", "dsa")
	for _, key := range []string{small, dsa} {
		if _, err := ParseAllowedSigners([]byte("a " + key)); err == nil {
			t.Errorf("%.20s was accepted", key)
		}
		if _, err := ParsePublicKeys([]string{key}); err == nil {
			t.Errorf("%.20s was accepted", key)
		}
	}
	dsaKey, _ := keygen(t, "-t", "dsa")
	if _, err := keys.Verify(message, sshSign(t, dsaKey, "git", message), NamespaceGit, time.Now()); !errors.Is(err, ErrBadSignature) {
		t.Errorf("DSA: %v", err)
	}
}

func TestParseAllowedSigners(t *testing.T) {
	_, key := keygen(t, "-t", "ed25519")
	k := signers(t, "\t", `"ann and bob" `+key, "bob "+strings.Join(strings.Fields(key)[:2], " "), "cc\tNAMESPACES=\"git\" "+key)
	if k.Len() != 3 || k.ssh[0].name != "ann and bob" || len(k.ssh[2].namespaces) != 1 {
		t.Errorf("%+v", k.ssh)
	}
	for line, want := range map[string]string{
		"a cert-authority " + key:          "certificate authorities are not supported",
		`a namespaces="g*" ` + key:         "patterns",
		`a no-such-thing ` + key:           "not known",
		`a valid-before="2026" ` + key:     "is not a time",
		`a valid-before="20261340" ` + key: "is not a time",
		`a valid-after ` + key:             "is not a time",
		"a":                                "PRINCIPALS",
		"a ssh-ed25519 AAAA":               "PRINCIPALS",
		key:                                "PRINCIPALS",
		`"a ` + key:                        "quote",
		`a namespaces="git ` + key:         "PRINCIPALS",
		"a " + strings.Repeat("x", 70<<10) + "\n": "line 1: it is not PRINCIPALS",
		"a " + key + "\nb cert-authority " + key:  "line 2",
	} {
		if _, err := ParseAllowedSigners([]byte(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80q: %v, want %q", line, err, want)
		}
	}
}

func TestParsePublicKeys(t *testing.T) {
	path, key := keygen(t, "-t", "ed25519")
	k, err := ParsePublicKeys([]string{key + "\n"})
	if err != nil {
		t.Fatal(err)
	}
	who, err := k.Verify(message, sshSign(t, path, NamespaceApproval, message), NamespaceApproval, time.Now())
	if err != nil || who.Name != "ann@example.org" {
		t.Errorf("%+v, %v", who, err)
	}
	for _, line := range []string{"", "x", `command="x" ` + key, key + "\n" + key} {
		if _, err := ParsePublicKeys([]string{line}); err == nil {
			t.Errorf("%q was accepted", line)
		}
	}
}

// TestKeySigns has ssh-keygen verify what Key.Sign made.
func TestKeySigns(t *testing.T) {
	generated, private, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParsePrivateKey(private)
	if err != nil || again.Public() != generated.Public() {
		t.Fatalf("the generated key reads back as %v, %v", again, err)
	}
	keys := []*Key{generated}
	for _, args := range [][]string{{"-t", "ecdsa"}, {"-t", "rsa"}} {
		path, _ := keygen(t, args...)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		k, err := ParsePrivateKey(b)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	dir := t.TempDir()
	for _, k := range keys {
		sig, err := k.Sign(message, NamespaceGit)
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{"signers": "host " + k.Public() + "\n", "sig": string(sig)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		run(t, dir, message, "ssh-keygen", "-q", "-Y", "verify", "-f", "signers", "-I", "host", "-n", "git", "-s", "sig")
		who, err := signers(t, "host "+k.Public()).Verify(message, sig, NamespaceGit, time.Now())
		if err != nil || who.Fingerprint != k.Fingerprint() {
			t.Errorf("%+v, %v", who, err)
		}
		s := fmt.Sprintf("%v %+v %#v %s", k, k, k, k)
		s = strings.ReplaceAll(s, k.Public(), "") // in which anything may stand
		if strings.Contains(s, "PRIVATE") || strings.Contains(s, "0x") {
			t.Errorf("a key prints as %s", s)
		}
	}
	locked := filepath.Join(t.TempDir(), "locked")
	run(t, "", nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked)
	b, err := os.ReadFile(locked)
	if err != nil {
		t.Fatal(err)
	}
	for _, pem := range [][]byte{b, nil, []byte("x")} {
		if _, err := ParsePrivateKey(pem); err == nil {
			t.Errorf("%.30q was accepted", pem)
		}
	}
}

func FuzzVerify(f *testing.F) {
	k, _, err := GenerateKey()
	if err != nil {
		f.Fatal(err)
	}
	sig, err := k.Sign(message, NamespaceGit)
	if err != nil {
		f.Fatal(err)
	}
	keys := signers(f, "a "+k.Public())
	if err := keys.AddGPG([]byte(gpgPublic)); err != nil {
		f.Fatal(err)
	}
	f.Add(sig)
	f.Add([]byte(gpgSignature))
	f.Fuzz(func(t *testing.T, got []byte) {
		who, err := keys.Verify(message, got, NamespaceGit, time.Unix(1795000000, 0))
		if err == nil && who.Name == "" {
			t.Errorf("accepted from nobody: %q", got)
		}
		if _, err := keys.Verify(append(bytes.Clone(message), 'x'), got, NamespaceGit, time.Unix(1795000000, 0)); err == nil {
			t.Errorf("accepted for another message: %q", got)
		}
	})
}

func FuzzParseAllowedSigners(f *testing.F) {
	k, _, err := GenerateKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("a " + k.Public() + "\n# x\nb namespaces=\"git\",valid-after=\"20260101Z\" " + k.Public()))
	f.Fuzz(func(t *testing.T, data []byte) {
		if keys, err := ParseAllowedSigners(data); err == nil {
			for _, e := range keys.ssh {
				if e.key == nil || e.name == "" {
					t.Errorf("%q gives %+v", data, e)
				}
			}
		}
	})
}
