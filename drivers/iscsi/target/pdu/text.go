package pdu

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"math/big"
	"strconv"
	"strings"
)

// MaxKeyLen and MaxValueLen bound a key and its value in bytes (RFC 7143 §6.1;
// longer values exist only for keys that this target does not know).
const (
	MaxKeyLen   = 63
	MaxValueLen = 8192
)

// Pair is one key=value of a login or text request.
type Pair struct{ Key, Value string }

// ErrText is a text segment that is not a list of key=value.
var ErrText = errors.New("malformed text segment")

// ParseText splits a whole text segment (RFC 7143 §6.1). limit bounds the number
// of pairs.
func ParseText(data []byte, limit int) ([]Pair, error) {
	var pairs []Pair
	s := string(data)
	for s != "" {
		item, rest, found := strings.Cut(s, "\x00")
		if !found {
			return nil, ErrText
		}
		s = rest
		if item == "" { // padding that some initiators count in
			continue
		}
		key, value, found := strings.Cut(item, "=")
		if !found || !validKey(key) || len(value) > MaxValueLen || len(pairs) == limit {
			return nil, ErrText
		}
		pairs = append(pairs, Pair{key, value})
	}
	return pairs, nil
}

func validKey(key string) bool {
	if key == "" || len(key) > MaxKeyLen {
		return false
	}
	for i := range len(key) {
		c := key[i]
		switch {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case strings.IndexByte(".-+@_#", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// AppendText encodes one key=value.
func AppendText(b []byte, key, value string) []byte {
	b = append(b, key...)
	b = append(b, '=')
	b = append(b, value...)
	return append(b, 0)
}

// Number decodes a numerical value: decimal, or hexadecimal after 0x
// (RFC 7143 §6.1, "numerical-value"), up to 2^32-1.
func Number(v string) (uint32, bool) {
	base := 10
	if strings.HasPrefix(v, "0x") || strings.HasPrefix(v, "0X") {
		v, base = v[2:], 16
	}
	if v == "" || v[0] == '+' || v[0] == '-' {
		return 0, false
	}
	n, err := strconv.ParseUint(v, base, 32)
	return uint32(n), err == nil
}

// Binary decodes a binary value, 0x… or 0b… (RFC 7143 §6.1, "large-binary-value"),
// of at most limit bytes. A decimal constant is accepted for small numbers, as
// the section asks.
func Binary(v string, limit int) ([]byte, bool) {
	if len(v) > 2 && v[0] == '0' {
		switch v[1] {
		case 'x', 'X':
			v = v[2:]
			if len(v)%2 == 1 {
				v = "0" + v
			}
			if len(v)/2 > limit {
				return nil, false
			}
			b, err := hex.DecodeString(v)
			return b, err == nil
		case 'b', 'B':
			v = v[2:]
			if base64.StdEncoding.DecodedLen(len(v)) > limit+2 {
				return nil, false
			}
			b, err := base64.StdEncoding.DecodeString(v)
			return b, err == nil && len(b) <= limit
		}
	}
	if v == "" || len(v) > 20 {
		return nil, false
	}
	for i := range len(v) {
		if v[i] < '0' || v[i] > '9' {
			return nil, false
		}
	}
	n, ok := new(big.Int).SetString(v, 10)
	if !ok || len(n.Bytes()) > limit {
		return nil, false
	}
	return n.Bytes(), true
}

// List splits a comma-separated list value.
func List(v string) []string { return strings.Split(v, ",") }
