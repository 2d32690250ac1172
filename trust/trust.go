// Package trust decides whose signature counts: SSH signatures (SSHSIG) against
// allowed signers, OpenPGP signatures against a key ring, and it makes SSH
// signatures. It reads no files and knows no clock.
package trust

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"
)

// The namespaces say what a signature is for: one made for another purpose does
// not count.
const (
	NamespaceGit      = "git" // commits, as git uses it
	NamespaceApproval = "reconciler-approval"
	NamespaceOverride = "reconciler-override"
)

// Why a signature does not count. Verify returns errors that match exactly one
// of them.
var (
	ErrUnsigned     = errors.New("it is not signed")
	ErrUnknownKey   = errors.New("the signing key is not known")
	ErrExpired      = errors.New("the signing key is not valid at this time")
	ErrNamespace    = errors.New("the signature is for another purpose")
	ErrBadSignature = errors.New("the signature is not good")
)

// Signer is who signed.
type Signer struct {
	Name        string // as the list of keys names it
	Fingerprint string // "SHA256:…" of an SSH key, hexadecimal of an OpenPGP key
}

// maxSignature bounds a signature; the largest of RSA keys take a few KiB.
const maxSignature = 64 << 10

const (
	sshHead = "-----BEGIN SSH SIGNATURE-----"
	gpgHead = "-----BEGIN PGP SIGNATURE-----"
)

// Verify tells who signed a message in a namespace. The key must be valid at the
// time given, which should be now: when a signature was made only its maker
// knows. A signature tells of its kind by its armor; those of OpenPGP have no
// namespace and count as signatures of commits only.
//
// The Signer has the fingerprint even with an error, where there is one to tell.
func (k *Keys) Verify(message, signature []byte, namespace string, at time.Time) (Signer, error) {
	signature = bytes.TrimSpace(signature)
	switch {
	case len(signature) == 0:
		return Signer{}, ErrUnsigned
	case len(signature) > maxSignature:
		return Signer{}, fmt.Errorf("%w: it has %d bytes", ErrBadSignature, len(signature))
	case bytes.HasPrefix(signature, []byte(sshHead)):
		return k.verifySSH(message, signature, namespace, at)
	case bytes.HasPrefix(signature, []byte(gpgHead)):
		if namespace != NamespaceGit {
			return Signer{}, fmt.Errorf("%w: an OpenPGP signature has none, and %s is needed", ErrNamespace, namespace)
		}
		return k.verifyGPG(message, signature, at)
	}
	first, _, _ := strings.Cut(string(signature), "\n")
	return Signer{}, fmt.Errorf("%w: %.40q begins neither an SSH nor an OpenPGP signature", ErrBadSignature, first)
}
