package secret

import (
	"crypto/hmac"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"gopkg.in/yaml.v3"

	"reconciler/spec"
)

// What sops writes into a file beside the encrypted values.
type metadata struct {
	Age []struct {
		Recipient string `yaml:"recipient"`
		Enc       string `yaml:"enc"`
	} `yaml:"age"`
	KeyGroups       []yaml.Node `yaml:"key_groups"`
	ShamirThreshold int         `yaml:"shamir_threshold"`
	LastModified    string      `yaml:"lastmodified"`
	MAC             string      `yaml:"mac"`
	MACOnly         bool        `yaml:"mac_only_encrypted"`

	UnencryptedSuffix       string `yaml:"unencrypted_suffix"`
	EncryptedSuffix         string `yaml:"encrypted_suffix"`
	UnencryptedRegex        string `yaml:"unencrypted_regex"`
	EncryptedRegex          string `yaml:"encrypted_regex"`
	UnencryptedCommentRegex string `yaml:"unencrypted_comment_regex"`
	EncryptedCommentRegex   string `yaml:"encrypted_comment_regex"`
}

// Errors of a file that is not for us, or not as it was written.
var (
	ErrNotSOPS = errors.New("not encrypted by sops")
	ErrMAC     = errors.New("its authentication code does not match: the file was changed by something else than sops (use sops edit)")
)

// RecipientError says that a file is encrypted for others.
type RecipientError struct {
	Recipients []string
	damage     error // other than that no identity fits
}

func (e *RecipientError) Error() string {
	s := "this host's age key is for none of the recipients " + strings.Join(e.Recipients, ", ")
	if e.damage != nil {
		s += ", or what it is for is damaged: " + e.damage.Error()
	}
	return s
}

// file is a decrypted file: its documents without what sops added.
type file struct{ documents []map[string]any }

// open decrypts a file and verifies all of it.
func open(data []byte, ids []age.Identity) (*file, error) {
	roots, err := documents(data)
	if err != nil {
		return nil, err
	}
	m, err := readMetadata(roots)
	if err != nil {
		return nil, err
	}
	encrypted, err := m.rule()
	if err != nil {
		return nil, err
	}
	modified, err := time.Parse(time.RFC3339, m.LastModified)
	if err != nil {
		return nil, errors.New("sops.lastmodified is no time")
	}
	key, err := m.dataKey(ids)
	if err != nil {
		return nil, err
	}
	mac, err := unseal(m.MAC, key, modified.Format(time.RFC3339))
	if err != nil {
		return nil, ErrMAC
	}
	w := &walker{key: key, encrypted: encrypted, macOnly: m.MACOnly, mac: sha512.New(), left: maxNodes}
	if m.MACOnly {
		w.mac.Write(macOnlyStart)
	}
	f := &file{}
	for _, root := range roots {
		d, err := w.mapping(root, nil, true)
		if err != nil {
			return nil, err
		}
		f.documents = append(f.documents, d)
	}
	computed := fmt.Sprintf("%X", w.mac.Sum(nil))
	if stored, ok := mac.(string); !ok || !hmac.Equal([]byte(stored), []byte(computed)) {
		return nil, ErrMAC
	}
	return f, nil
}

// documents reads YAML.
func documents(data []byte) (roots []*yaml.Node, err error) {
	list, err := spec.Documents(data)
	if err != nil { // which may repeat what it could not read
		return nil, errors.New("not YAML")
	}
	for _, root := range list {
		if len(root.Content) == 1 && root.Content[0].Kind == yaml.MappingNode {
			roots = append(roots, root.Content[0])
		} else if len(root.Content) == 1 && root.Content[0].ShortTag() != "!!null" {
			return nil, errors.New("a document is not a mapping")
		}
	}
	return roots, nil
}

// readMetadata takes what the first document says of all of them.
func readMetadata(roots []*yaml.Node) (*metadata, error) {
	var m metadata
	if len(roots) == 0 {
		return nil, ErrNotSOPS
	}
	n := lookup(roots[0], "sops")
	if n == nil {
		return nil, ErrNotSOPS
	}
	if err := n.Decode(&m); err != nil {
		return nil, errors.New("what sops wrote about the file cannot be read")
	}
	if len(m.KeyGroups) > 0 || m.ShamirThreshold > 0 {
		return nil, errors.New("key groups are not supported: encrypt for age recipients, without a threshold")
	}
	if len(m.Age) == 0 {
		return nil, errors.New("no age recipient is among those that the file is encrypted for")
	}
	return &m, nil
}

func lookup(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// dataKey decrypts the key of the file with the first identity that fits.
func (m *metadata) dataKey(ids []age.Identity) ([]byte, error) {
	refused := &RecipientError{}
	for _, r := range m.Age {
		key, err := unwrap(r.Enc, ids)
		if err == nil {
			return key, nil
		}
		refused.Recipients = append(refused.Recipients, r.Recipient)
		var other *age.NoIdentityMatchError
		if !errors.As(err, &other) {
			refused.damage = err
		}
	}
	return nil, refused
}

func unwrap(enc string, ids []age.Identity) ([]byte, error) {
	r, err := age.Decrypt(armor.NewReader(strings.NewReader(enc)), ids...)
	if err != nil {
		return nil, err
	}
	key, err := io.ReadAll(io.LimitReader(r, dataKeySize+1))
	if err != nil {
		return nil, err
	}
	if len(key) != dataKeySize {
		return nil, errors.New("the data key has another size than it should")
	}
	return key, nil
}

const defaultSuffix = "_unencrypted"

// rule says by its path whether a value is encrypted.
func (m *metadata) rule() (func(path []string) bool, error) {
	given := 0
	for _, s := range []string{m.UnencryptedSuffix, m.EncryptedSuffix, m.UnencryptedRegex, m.EncryptedRegex, m.UnencryptedCommentRegex, m.EncryptedCommentRegex} {
		if s != "" {
			given++
		}
	}
	if given > 1 {
		return nil, errors.New("sops takes one rule of what is encrypted, the file has several")
	}
	when := func(match func(string) bool, result bool) func([]string) bool {
		return func(path []string) bool {
			for _, part := range path {
				if match(part) {
					return result
				}
			}
			return !result
		}
	}
	suffix := func(s string) func(string) bool {
		return func(part string) bool { return strings.HasSuffix(part, s) }
	}
	switch {
	case m.UnencryptedCommentRegex+m.EncryptedCommentRegex != "":
		return nil, errors.New("rules about comments are not supported: use --encrypted-regex '^data$'")
	case m.EncryptedRegex != "":
		re, err := regexp.Compile(m.EncryptedRegex)
		if err != nil {
			return nil, errors.New("sops.encrypted_regex is no regular expression")
		}
		return when(re.MatchString, true), nil
	case m.UnencryptedRegex != "":
		re, err := regexp.Compile(m.UnencryptedRegex)
		if err != nil {
			return nil, errors.New("sops.unencrypted_regex is no regular expression")
		}
		return when(re.MatchString, false), nil
	case m.EncryptedSuffix != "":
		return when(suffix(m.EncryptedSuffix), true), nil
	case m.UnencryptedSuffix != "":
		return when(suffix(m.UnencryptedSuffix), false), nil
	}
	return when(suffix(defaultSuffix), false), nil
}

// macOnlyStart tells an authentication code over the encrypted values from one
// over all: SHA-256 of "sops".
var macOnlyStart = []byte{
	0x8a, 0x3f, 0xd2, 0xad, 0x54, 0xce, 0x66, 0x52, 0x7b, 0x10, 0x34, 0xf3, 0xd1, 0x47, 0xbe, 0x0b,
	0x0b, 0x97, 0x5b, 0x3b, 0xf4, 0x4f, 0x72, 0xc6, 0xfd, 0xad, 0xec, 0x81, 0x76, 0xf2, 0x7d, 0x69,
}

// maxNodes bounds what aliases can make of a small file.
const maxNodes = 100_000

// walker decrypts the values of a file in their order, which is authenticated.
type walker struct {
	key       []byte
	encrypted func(path []string) bool
	macOnly   bool
	mac       hash.Hash
	left      int
}

func (w *walker) value(n *yaml.Node, path []string) (any, error) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if w.left--; w.left < 0 {
		return nil, errors.New("aliases stand for too much")
	}
	switch n.Kind {
	case yaml.MappingNode:
		return w.mapping(n, path, false)
	case yaml.SequenceNode:
		list := []any{}
		for _, e := range n.Content {
			v, err := w.value(e, path)
			if err != nil {
				return nil, err
			}
			if _, ok := v.(comment); !ok {
				list = append(list, v)
			}
		}
		return list, nil
	}
	v, err := plain(n)
	if err != nil || v == nil { // nothing is not encrypted
		return nil, err
	}
	encrypted := w.encrypted(path)
	if encrypted {
		s, ok := v.(string)
		if !ok {
			err = errNotSealed
		} else {
			v, err = unseal(s, w.key, strings.Join(path, ":")+":")
		}
		if err != nil {
			return nil, fmt.Errorf("%s %w", strings.Join(path, "."), err)
		}
	}
	if _, ok := v.(comment); ok || w.macOnly && !encrypted {
		return v, nil
	}
	s, ok := text(v)
	if !ok {
		return nil, fmt.Errorf("%s is of a type that sops does not know", strings.Join(path, "."))
	}
	io.WriteString(w.mac, s)
	return v, nil
}

func (w *walker) mapping(n *yaml.Node, path []string, top bool) (map[string]any, error) {
	m := make(map[string]any, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" && key.ShortTag() != "!!merge" {
			return nil, fmt.Errorf("line %d: a key is not a string", key.Line)
		}
		if top && key.Value == "sops" {
			continue
		}
		if _, ok := m[key.Value]; ok {
			return nil, fmt.Errorf("line %d: duplicate key", key.Line)
		}
		v, err := w.value(n.Content[i+1], append(path[:len(path):len(path)], key.Value))
		if err != nil {
			return nil, err
		}
		m[key.Value] = v
	}
	return m, nil
}

// value finds a value of the Secret with a name.
func (f *file) value(name, key string) (string, error) {
	for _, d := range f.documents {
		meta, _ := d["metadata"].(map[string]any)
		if d["kind"] != "Secret" || meta["name"] != name {
			continue
		}
		spec, _ := d["spec"].(map[string]any)
		data, _ := spec["data"].(map[string]any)
		v, ok := data[key]
		if b, isBool := v.(bool); isBool {
			return fmt.Sprint(b), nil
		}
		s, isText := text(v)
		switch {
		case !ok:
			return "", fmt.Errorf("there is no key %q", key)
		case !isText:
			return "", fmt.Errorf("key %q is not a text", key)
		}
		return s, nil
	}
	return "", fmt.Errorf("there is no Secret %q in the file", name)
}
