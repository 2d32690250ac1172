package trust

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Key signs. It never prints as anything but its public part.
type Key struct{ signer ssh.Signer }

// ParsePrivateKey reads an SSH private key without a passphrase.
func ParsePrivateKey(data []byte) (*Key, error) {
	signer, err := ssh.ParsePrivateKey(data)
	if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked {
		return nil, errors.New("the key has a passphrase, which nobody can enter here")
	}
	if err != nil {
		// The parser's words may quote what it read.
		return nil, errors.New("it is not an SSH private key")
	}
	if err := checkKey(signer.PublicKey()); err != nil {
		return nil, err
	}
	return &Key{signer}, nil
}

// GenerateKey makes an ed25519 key, and its form to keep in a file.
func GenerateKey() (*Key, []byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, nil, err
	}
	return &Key{signer}, pem.EncodeToMemory(block), nil
}

// Public is the public key as a line of authorized_keys, without a comment.
func (k *Key) Public() string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.signer.PublicKey())))
}

// Fingerprint is "SHA256:…".
func (k *Key) Fingerprint() string { return ssh.FingerprintSHA256(k.signer.PublicKey()) }

func (k *Key) String() string { return k.Public() }

// GoString keeps the private part out of %#v.
func (k *Key) GoString() string { return "trust.Key(" + k.Fingerprint() + ")" }

// Sign makes an armored SSH signature, as ssh-keygen -Y sign does.
func (k *Key) Sign(message []byte, namespace string) ([]byte, error) {
	const hash = "sha512"
	data, err := signedData(message, namespace, hash)
	if err != nil {
		return nil, err
	}
	public := k.signer.PublicKey()
	var sig *ssh.Signature
	if a, ok := k.signer.(ssh.AlgorithmSigner); ok {
		sig, err = a.SignWithAlgorithm(rand.Reader, data, algorithms[public.Type()][0])
	} else {
		sig, err = k.signer.Sign(rand.Reader, data)
	}
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	blob := append([]byte(sigMagic), ssh.Marshal(sshSignature{
		Version: sigVersion, PublicKey: public.Marshal(), Namespace: namespace, HashAlgorithm: hash, Signature: ssh.Marshal(sig),
	})...)
	text := base64.StdEncoding.EncodeToString(blob)
	var b strings.Builder
	b.WriteString(sshHead + "\n")
	for len(text) > 0 {
		n := min(armorColumns, len(text))
		b.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	b.WriteString(sshTail + "\n")
	return []byte(b.String()), nil
}
