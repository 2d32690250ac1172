package spec

import (
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written with Ki, Mi, Gi or Ti.
type Size int64

// Units of Size.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

var sizeUnits = []struct {
	suffix string
	bytes  Size
}{{"Ti", TiB}, {"Gi", GiB}, {"Mi", MiB}, {"Ki", KiB}}

// likelyUnits are units people write, and the one they may have meant.
var likelyUnits = map[string]string{
	"k": "Ki", "K": "Ki", "kB": "Ki", "KB": "Ki", "KiB": "Ki", "ki": "Ki",
	"m": "Mi", "M": "Mi", "mB": "Mi", "MB": "Mi", "MiB": "Mi", "mi": "Mi", "mb": "Mi",
	"g": "Gi", "G": "Gi", "gB": "Gi", "GB": "Gi", "GiB": "Gi", "gi": "Gi", "gb": "Gi",
	"t": "Ti", "T": "Ti", "tB": "Ti", "TB": "Ti", "TiB": "Ti", "ti": "Ti", "tb": "Ti",
}

// ParseSize reads a whole number with a binary unit, such as 10Gi, or 0.
func ParseSize(s string) (Size, error) {
	if s == "0" {
		return 0, nil
	}
	n := len(s) - len(strings.TrimLeft(s, "0123456789"))
	digits, suffix := s[:n], s[n:]
	if n == 0 {
		return 0, &problem{quote(s) + " is not a size", "write a whole number with Ki, Mi, Gi or Ti"}
	}
	for _, u := range sizeUnits {
		if suffix != u.suffix {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil || n > uint64(1<<63-1)/uint64(u.bytes) {
			return 0, &problem{"size " + quote(s) + " is too large", ""}
		}
		return Size(n) * u.bytes, nil
	}
	if unit := likelyUnits[strings.TrimSpace(suffix)]; unit != "" {
		return 0, &problem{quote(s) + " is not a size", "did you mean " + digits + unit + "?"}
	}
	return 0, &problem{quote(s) + " is not a size", "write a whole number with Ki, Mi, Gi or Ti"}
}

// String writes the size with the largest unit that divides it.
func (s Size) String() string {
	if s == 0 {
		return "0"
	}
	for _, u := range sizeUnits {
		if s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// MarshalText writes the size as String does.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what ParseSize reads, or a plain number of bytes.
func (s *Size) UnmarshalText(b []byte) error {
	v, err := ParseSize(string(b))
	if err != nil {
		if n, nerr := strconv.ParseInt(string(b), 10, 64); nerr == nil && n >= 0 {
			*s = Size(n)
			return nil
		}
		return err
	}
	*s = v
	return nil
}

// Duration is a time span, written as Go writes it: 30s, 168h.
type Duration time.Duration

// String writes whole hours, minutes or seconds without zero parts: 168h, 5m, 60s.
func (d Duration) String() string {
	t := time.Duration(d)
	switch {
	case t == 0:
		return "0s"
	case t%time.Hour == 0:
		return strconv.FormatInt(int64(t/time.Hour), 10) + "h"
	case t%time.Minute == 0 && t >= 2*time.Minute:
		return strconv.FormatInt(int64(t/time.Minute), 10) + "m"
	case t%time.Second == 0:
		return strconv.FormatInt(int64(t/time.Second), 10) + "s"
	}
	return t.String()
}

// MarshalText writes the duration as String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a duration with a unit.
func (d *Duration) UnmarshalText(b []byte) error {
	t, err := time.ParseDuration(string(b))
	if err != nil || t < 0 {
		return &problem{quote(string(b)) + " is not a duration", "write a number with a unit, such as 30s, 5m or 168h"}
	}
	*d = Duration(t)
	return nil
}
