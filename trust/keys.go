package trust

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"golang.org/x/crypto/ssh"
)

// Keys are those whose signatures count. The zero value has none.
type Keys struct {
	ssh []entry
	gpg openpgp.EntityList
}

// entry is one line of allowed signers.
type entry struct {
	key           ssh.PublicKey
	name          string
	namespaces    []string // nil: any
	after, before time.Time
}

func (e *entry) allows(namespace string, at time.Time) error {
	switch {
	case !e.after.IsZero() && at.Before(e.after):
		return fmt.Errorf("%w: %s is valid after %s", ErrExpired, e.name, e.after.UTC().Format(time.RFC3339))
	case !e.before.IsZero() && at.After(e.before):
		return fmt.Errorf("%w: %s was valid before %s", ErrExpired, e.name, e.before.UTC().Format(time.RFC3339))
	case e.namespaces != nil && !slices.Contains(e.namespaces, namespace):
		return fmt.Errorf("%w: %s may sign for %s, not for %s", ErrNamespace, e.name, strings.Join(e.namespaces, ", "), namespace)
	}
	return nil
}

// Len is the number of keys.
func (k *Keys) Len() int { return len(k.ssh) + len(k.gpg) }

const minRSABits = 2048

// checkKey refuses keys that no signature of which counts.
func checkKey(key ssh.PublicKey) error {
	if algorithms[key.Type()] == nil {
		return fmt.Errorf("keys of the kind %s do not count", key.Type())
	}
	if c, ok := key.(ssh.CryptoPublicKey); ok {
		if r, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok && r.N.BitLen() < minRSABits {
			return fmt.Errorf("RSA keys need %d bits; it has %d", minRSABits, r.N.BitLen())
		}
	}
	return nil
}

// ParseAllowedSigners reads keys as ssh-keygen(1) describes under ALLOWED
// SIGNERS: principals, options, key. The options namespaces, valid-after and
// valid-before are kept; times without a Z are local. Certificate authorities,
// patterns of namespaces and unknown options are errors, as all that is wrong is,
// by line: a key that is left out silently would be a puzzle, one that is let in
// a hole. Principals name the signer; they are not compared with what a commit
// says of its author.
func ParseAllowedSigners(data []byte) (*Keys, error) {
	k := &Keys{}
	var errs []error
	for n, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		e, err := parseSigner(line)
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n+1, err))
			continue
		}
		k.ssh = append(k.ssh, e)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return k, nil
}

func parseSigner(line string) (e entry, err error) {
	e.name, line, err = word(line)
	if err != nil {
		return e, err
	}
	// What ParseAuthorizedKey takes for options stands before the key here, too.
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return e, errors.New("it is not PRINCIPALS [OPTIONS] KEYTYPE KEY")
	}
	e.key = key
	if err := checkKey(key); err != nil {
		return e, err
	}
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		value = strings.Trim(value, `"`)
		switch strings.ToLower(name) {
		case "namespaces":
			e.namespaces = strings.Split(value, ",")
			if strings.ContainsAny(value, "*?!") {
				err = fmt.Errorf("namespaces=%q: patterns are not supported", value)
			}
		case "valid-after":
			e.after, err = parseTime(value)
		case "valid-before":
			e.before, err = parseTime(value)
		case "cert-authority":
			err = errors.New("certificate authorities are not supported; list the keys themselves")
		default:
			err = fmt.Errorf("option %q is not known", name)
		}
		if err != nil {
			return e, err
		}
	}
	return e, nil
}

// word takes the first word of a line, which may be quoted.
func word(line string) (first, rest string, err error) {
	if quoted, ok := strings.CutPrefix(line, `"`); ok {
		if first, rest, ok = strings.Cut(quoted, `"`); !ok {
			return "", "", errors.New("a quote is not closed")
		}
	} else if i := strings.IndexAny(line, " \t"); i > 0 {
		first, rest = line[:i], line[i:]
	}
	rest = strings.TrimSpace(rest)
	if first == "" || rest == "" {
		return "", "", errors.New("it is not PRINCIPALS [OPTIONS] KEYTYPE KEY")
	}
	return first, rest, nil
}

func parseTime(s string) (time.Time, error) {
	zone := time.Local
	digits, utc := strings.CutSuffix(s, "Z")
	if utc {
		zone = time.UTC
	}
	for _, layout := range []string{"20060102", "200601021504", "20060102150405"} {
		if len(digits) != len(layout) {
			continue
		}
		if t, err := time.ParseInLocation(layout, digits, zone); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time (YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS, Z behind it for UTC)", s)
}

// ParsePublicKeys reads keys as they stand in .pub files: "ssh-ed25519 AAAA…
// comment". They count for every namespace, for ever; the comment names the
// signer.
func ParsePublicKeys(lines []string) (*Keys, error) {
	k := &Keys{}
	for i, line := range lines {
		key, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
		if err == nil && (len(options) > 0 || len(bytes.TrimSpace(rest)) > 0) {
			err = errors.New("more than a key and a comment")
		}
		if err == nil {
			err = checkKey(key)
		}
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		if comment == "" {
			comment = ssh.FingerprintSHA256(key)
		}
		k.ssh = append(k.ssh, entry{key: key, name: comment})
	}
	return k, nil
}
