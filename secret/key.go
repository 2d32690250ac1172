package secret

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"filippo.io/age"

	"reconciler/claim"
)

// Reader decrypts with the age identities of a file, which is read at every
// use, so that it can be replaced.
type Reader struct{ keyFile string }

// New returns a Reader; an empty name stands for a host without a key, which
// can decrypt nothing.
func New(keyFile string) *Reader { return &Reader{keyFile} }

// ErrNoKey says that the host has no age key.
var ErrNoKey = errors.New("this host has no age key (secrets.ageKeyFile in its configuration)")

// Value decrypts a file and returns one value of a Secret in it. No error
// contains anything that was encrypted.
func (r *Reader) Value(file, name, key string) (claim.Secret, error) {
	ids, err := r.identities()
	if err != nil {
		return claim.Secret{}, err
	}
	f, err := open([]byte(file), ids)
	if err != nil {
		return claim.Secret{}, err
	}
	text, err := f.value(name, key)
	return claim.NewSecret(text), err
}

const maxKeyFile = 64 << 10

// identities reads the key file, which nobody else may be able to read.
func (r *Reader) identities() ([]age.Identity, error) {
	if r.keyFile == "" {
		return nil, ErrNoKey
	}
	f, err := os.OpenFile(r.keyFile, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not hold the agent
	if err != nil {
		return nil, fmt.Errorf("age key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("age key: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("age key %s: not a regular file", r.keyFile)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("age key %s: others may use it, its mode is %#o (chmod 600)", r.keyFile, info.Mode().Perm())
	case owner != 0 && owner != uint32(os.Geteuid()):
		return nil, fmt.Errorf("age key %s: it belongs to user %d (chown root)", r.keyFile, owner)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("age key: %w", err)
	}
	var ids []age.Identity
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, err := age.ParseIdentities(strings.NewReader(line))
		if err != nil { // which may repeat what it could not read
			return nil, fmt.Errorf("age key %s: line %d is no age identity (age-keygen makes one)", r.keyFile, number)
		}
		ids = append(ids, id...)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("age key %s: no age identity in it (age-keygen makes one)", r.keyFile)
	}
	return ids, nil
}
