package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"gopkg.in/yaml.v3"
)

const dataKeySize = 32 // AES-256

var (
	sealedValue = regexp.MustCompile(`^ENC\[AES256_GCM,data:(.+),iv:(.+),tag:(.+),type:(.+)\]$`)

	errNotSealed = errors.New("not encrypted, although the file says that it is")
	errTampered  = errors.New("cannot be decrypted: it was changed, or moved, after sops wrote it")
)

// comment is a comment in a list, which sops turns into an entry.
type comment struct{}

// unseal decrypts one value. Its place in the file is authenticated with it.
func unseal(s string, key []byte, place string) (any, error) {
	if s == "" { // sops leaves it as it is
		return "", nil
	}
	m := sealedValue.FindStringSubmatch(s)
	if m == nil {
		return nil, errNotSealed
	}
	var parts [3][]byte
	for i := range parts {
		var err error
		if parts[i], err = base64.StdEncoding.DecodeString(m[i+1]); err != nil {
			return nil, errTampered
		}
	}
	data, iv, tag := parts[0], parts[1], parts[2]
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if len(iv) != 32 || len(tag) != block.BlockSize() {
		return nil, errTampered
	}
	gcm, err := cipher.NewGCMWithNonceSize(block, len(iv))
	if err != nil {
		return nil, err
	}
	plain, err := gcm.Open(nil, iv, append(data, tag...), []byte(place))
	if err != nil {
		return nil, errTampered
	}
	v, err := typed(string(plain), m[4])
	if err != nil { // which repeats the value
		return nil, fmt.Errorf("is not of its type, %.10s", m[4])
	}
	return v, nil
}

func typed(s, kind string) (any, error) {
	switch kind {
	case "str", "bytes":
		return s, nil
	case "int":
		return strconv.Atoi(s)
	case "float":
		return strconv.ParseFloat(s, 64)
	case "bool":
		return strconv.ParseBool(s)
	case "time":
		var t time.Time
		err := t.UnmarshalText([]byte(s))
		return t, err
	case "comment":
		return comment{}, nil
	}
	return nil, errors.New("unknown type")
}

// plain is a value that is not encrypted.
func plain(n *yaml.Node) (any, error) {
	var v any
	if err := n.Decode(&v); err != nil {
		return nil, fmt.Errorf("line %d is not a value", n.Line)
	}
	return v, nil
}

// text writes a value as sops authenticates it, ok unless it is no scalar.
func text(v any) (s string, ok bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case int:
		return strconv.Itoa(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	case bool:
		if v {
			return "True", true
		}
		return "False", true
	case time.Time:
		b, err := v.MarshalText()
		return string(b), err == nil
	}
	return "", false
}
