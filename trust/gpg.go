package trust

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// AddGPG adds the OpenPGP keys of an armored export (gpg --armor --export).
// Several blocks may follow each other.
func (k *Keys) AddGPG(armored []byte) error {
	head := []byte("-----BEGIN PGP PUBLIC KEY BLOCK-----")
	blocks := bytes.Split(armored, head)[1:]
	if len(blocks) == 0 || bytes.Contains(armored, []byte("PRIVATE KEY BLOCK")) {
		return errors.New("it is not an armored OpenPGP public key")
	}
	var all openpgp.EntityList
	for _, block := range blocks {
		list, err := openpgp.ReadArmoredKeyRing(io.MultiReader(bytes.NewReader(head), bytes.NewReader(block)))
		if err != nil {
			return fmt.Errorf("read an OpenPGP key: %w", err)
		}
		for _, e := range list {
			if self, _ := e.PrimarySelfSignature(); self == nil {
				return fmt.Errorf("OpenPGP key %X has no valid user name", e.PrimaryKey.Fingerprint)
			}
		}
		all = append(all, list...)
	}
	k.gpg = append(k.gpg, all...)
	return nil
}

// signaturePacket takes the one signature from its armor.
func signaturePacket(armored []byte) (*packet.Signature, []byte, error) {
	block, err := armor.Decode(bytes.NewReader(armored))
	if err != nil {
		return nil, nil, errors.New("its armor is damaged")
	}
	raw, err := io.ReadAll(block.Body)
	if err != nil {
		return nil, nil, errors.New("its armor is damaged")
	}
	packets := packet.NewReader(bytes.NewReader(raw))
	p, err := packets.Next()
	if err != nil {
		return nil, nil, errors.New("it is malformed")
	}
	sig, ok := p.(*packet.Signature)
	if !ok || sig.IssuerKeyId == nil || sig.SigType != packet.SigTypeBinary {
		return nil, nil, errors.New("it is not the signature of a file")
	}
	if _, err := packets.Next(); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("there is more than one")
	}
	return sig, raw, nil
}

func (k *Keys) verifyGPG(message, armored []byte, at time.Time) (Signer, error) {
	sig, raw, err := signaturePacket(armored)
	if err != nil {
		return Signer{}, fmt.Errorf("%w: %w", ErrBadSignature, err)
	}
	who := Signer{Fingerprint: fmt.Sprintf("%X", sig.IssuerFingerprint)}
	if len(sig.IssuerFingerprint) == 0 {
		who.Fingerprint = fmt.Sprintf("%016X", *sig.IssuerKeyId)
	}
	switch sig.Hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return who, fmt.Errorf("%w: signatures with %s do not count", ErrBadSignature, sig.Hash)
	}
	for _, key := range k.gpg.KeysById(*sig.IssuerKeyId) {
		bits, _ := key.PublicKey.BitLength()
		switch key.PublicKey.PubKeyAlgo {
		case packet.PubKeyAlgoDSA, packet.PubKeyAlgoElGamal:
			return who, fmt.Errorf("%w: DSA keys do not count", ErrBadSignature)
		case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSASignOnly:
			if bits < minRSABits {
				return who, fmt.Errorf("%w: RSA keys need %d bits; it has %d", ErrBadSignature, minRSABits, bits)
			}
		}
	}
	_, signer, err := openpgp.VerifyDetachedSignature(k.gpg, bytes.NewReader(message), bytes.NewReader(raw), &packet.Config{Time: func() time.Time { return at }})
	if signer != nil {
		who.Fingerprint = fmt.Sprintf("%X", signer.PrimaryKey.Fingerprint)
		if id := signer.PrimaryIdentity(); id != nil {
			who.Name = id.Name
		}
	}
	switch {
	case err == nil:
		return who, nil
	case errors.Is(err, pgperrors.ErrUnknownIssuer):
		return who, fmt.Errorf("%w: %s", ErrUnknownKey, who.Fingerprint)
	case errors.Is(err, pgperrors.ErrKeyExpired), errors.Is(err, pgperrors.ErrSignatureExpired), errors.Is(err, pgperrors.ErrKeyRevoked):
		return who, fmt.Errorf("%w: %w", ErrExpired, err)
	}
	return who, fmt.Errorf("%w: %w", ErrBadSignature, err)
}
