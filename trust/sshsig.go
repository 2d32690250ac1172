package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// The format is OpenSSH's PROTOCOL.sshsig.
const (
	sshTail      = "-----END SSH SIGNATURE-----"
	sigMagic     = "SSHSIG"
	sigVersion   = 1
	armorColumns = 70
)

// sshSignature is the blob after the magic.
type sshSignature struct {
	Version       uint32
	PublicKey     []byte
	Namespace     string
	Reserved      string
	HashAlgorithm string
	Signature     []byte
}

// signedData is what the key signs.
func signedData(message []byte, namespace, hashAlgorithm string) ([]byte, error) {
	var sum []byte
	switch hashAlgorithm {
	case "sha256":
		h := sha256.Sum256(message)
		sum = h[:]
	case "sha512":
		h := sha512.Sum512(message)
		sum = h[:]
	default:
		return nil, fmt.Errorf("hash %q", hashAlgorithm)
	}
	return append([]byte(sigMagic), ssh.Marshal(struct {
		Namespace, Reserved, HashAlgorithm string
		Sum                                []byte
	}{namespace, "", hashAlgorithm, sum})...), nil
}

// algorithms are the signatures that count, by type of key. Those with SHA-1 and
// DSA do not.
var algorithms = map[string][]string{
	ssh.KeyAlgoED25519:    {ssh.KeyAlgoED25519},
	ssh.KeyAlgoSKED25519:  {ssh.KeyAlgoSKED25519},
	ssh.KeyAlgoECDSA256:   {ssh.KeyAlgoECDSA256},
	ssh.KeyAlgoECDSA384:   {ssh.KeyAlgoECDSA384},
	ssh.KeyAlgoECDSA521:   {ssh.KeyAlgoECDSA521},
	ssh.KeyAlgoSKECDSA256: {ssh.KeyAlgoSKECDSA256},
	ssh.KeyAlgoRSA:        {ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256},
}

func parseSSH(armored []byte) (s sshSignature, key ssh.PublicKey, err error) {
	body, ok := strings.CutPrefix(string(armored), sshHead)
	if ok {
		body, ok = strings.CutSuffix(body, sshTail)
	}
	if !ok {
		return s, nil, errors.New("its armor is cut short")
	}
	blob, err := base64.StdEncoding.Strict().DecodeString(strings.Join(strings.Fields(body), ""))
	if err != nil {
		return s, nil, errors.New("its armor is damaged")
	}
	rest, ok := bytes.CutPrefix(blob, []byte(sigMagic))
	if !ok || ssh.Unmarshal(rest, &s) != nil {
		return s, nil, errors.New("it is malformed")
	}
	if s.Version != sigVersion {
		return s, nil, fmt.Errorf("version %d is not known", s.Version)
	}
	if key, err = ssh.ParsePublicKey(s.PublicKey); err != nil {
		return s, nil, errors.New("its key is malformed")
	}
	return s, key, nil
}

func (k *Keys) verifySSH(message, armored []byte, namespace string, at time.Time) (Signer, error) {
	s, key, err := parseSSH(armored)
	if err != nil {
		return Signer{}, fmt.Errorf("%w: %w", ErrBadSignature, err)
	}
	who := Signer{Fingerprint: ssh.FingerprintSHA256(key)}
	if err := checkKey(key); err != nil {
		return who, fmt.Errorf("%w: %w", ErrBadSignature, err)
	}
	var entries []*entry
	for i := range k.ssh {
		if bytes.Equal(k.ssh[i].key.Marshal(), key.Marshal()) {
			entries = append(entries, &k.ssh[i])
		}
	}
	if len(entries) == 0 {
		return who, fmt.Errorf("%w: %s", ErrUnknownKey, who.Fingerprint)
	}
	who.Name = entries[0].name
	if s.Namespace != namespace {
		return who, fmt.Errorf("%w: %q, and %q is needed", ErrNamespace, s.Namespace, namespace)
	}
	if err := verifyBlob(s, key, message); err != nil {
		return who, fmt.Errorf("%w: %w", ErrBadSignature, err)
	}
	for _, e := range entries {
		if err = e.allows(namespace, at); err == nil {
			who.Name = e.name
			return who, nil
		}
	}
	return who, err
}

func verifyBlob(s sshSignature, key ssh.PublicKey, message []byte) error {
	var sig ssh.Signature
	if err := ssh.Unmarshal(s.Signature, &sig); err != nil {
		return errors.New("it is malformed")
	}
	counts := false
	for _, a := range algorithms[key.Type()] {
		counts = counts || a == sig.Format
	}
	if !counts {
		return fmt.Errorf("signatures of the kind %q do not count", sig.Format)
	}
	data, err := signedData(message, s.Namespace, s.HashAlgorithm)
	if err != nil {
		return err
	}
	if err := key.Verify(data, &sig); err != nil {
		return errors.New("the content was changed, or another key signed it")
	}
	return nil
}
