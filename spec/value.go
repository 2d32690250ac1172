package spec

import (
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// set reads the text of a scalar into v and holds it against the field's rules.
func (f *field) set(v reflect.Value, text string) *problem {
	switch f.shape {
	case shapeString:
		s, p := f.text(text)
		if p != nil {
			return p
		}
		v.SetString(s)
	case shapeInt:
		// No sign, no leading zero (octal to some readers), no 0x.
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || strconv.FormatInt(n, 10) != text {
			return &problem{quote(text) + " is not a whole number", "write decimal digits"}
		}
		if p := f.ranged(n, func(n int64) string { return strconv.FormatInt(n, 10) }); p != nil {
			return p
		}
		v.SetInt(n)
	case shapeFloat:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) || strings.ContainsAny(text, "_xXpP") {
			return &problem{quote(text) + " is not a number", ""}
		}
		if n < float64(f.min) || f.max != 0 && n > float64(f.max) {
			return &problem{text + " is out of range", "write a number from " + strconv.FormatInt(f.min, 10) + " to " + strconv.FormatInt(f.max, 10)}
		}
		v.SetFloat(n)
	case shapeSize:
		var size Size
		if err := size.UnmarshalText([]byte(text)); err != nil {
			return asProblem(err)
		}
		if p := f.ranged(int64(size), func(n int64) string { return Size(n).String() }); p != nil {
			if isDigits(text) && int64(size) < f.min {
				p.hint = "did you mean " + text + "Mi or " + text + "Gi?"
			}
			return p
		}
		v.SetInt(int64(size))
	case shapeDuration:
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil {
			if isDigits(text) {
				return &problem{quote(text) + " is not a duration", "did you mean " + text + "s?"}
			}
			return asProblem(err)
		}
		if p := f.ranged(int64(d), func(n int64) string { return Duration(n).String() }); p != nil {
			return p
		}
		v.SetInt(int64(d))
	default:
		panic("spec: " + f.path + " is not a scalar")
	}
	return nil
}

// text applies the rules of a string: of the field itself or of a list's entry.
func (f *field) text(s string) (string, *problem) {
	if s == "" && (f.required || f.format != nil || f.enum != nil) && f.shape != shapeMap {
		return "", &problem{"is empty", ""}
	}
	if sealed(s) && f.formatID != "sops" {
		return "", &problem{"the value is encrypted", "only the data of a Secret may be: " + sopsHint}
	}
	if f.enum != nil && !slices.Contains(f.enum, s) {
		p := &problem{msg: quote(s) + " is not a known value", hint: "write " + orList(f.enum)}
		if near := nearest(s, slices.Values(f.enum)); near != "" {
			p.hint = "did you mean " + near + "?"
		}
		return "", p
	}
	if f.format != nil {
		return f.format.parse(s)
	}
	return s, nil
}

func (f *field) ranged(n int64, write func(int64) string) *problem {
	switch {
	case n < f.min || f.max != 0 && n > f.max:
		return &problem{write(n) + " is out of range", "write " + write(f.min) + " to " + write(f.max)}
	case f.multiple > 1 && n%f.multiple != 0:
		return &problem{write(n) + " is not a multiple of " + write(f.multiple), ""}
	}
	return nil
}

func asProblem(err error) *problem {
	if p, ok := err.(*problem); ok {
		return p
	}
	return &problem{msg: err.Error()}
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func orList(values []string) string {
	if n := len(values); n > 1 {
		return strings.Join(values[:n-1], ", ") + " or " + values[n-1]
	}
	return strings.Join(values, "")
}

// write is the text of a scalar that is not zero, as set reads it.
func (f *field) write(v reflect.Value) string {
	switch f.shape {
	case shapeString:
		return v.String()
	case shapeInt:
		return strconv.FormatInt(v.Int(), 10)
	case shapeFloat:
		return formatFloat(v.Float())
	case shapeSize:
		return Size(v.Int()).String()
	case shapeDuration:
		return Duration(time.Duration(v.Int())).String()
	case shapeStrings:
		return strings.Join(v.Interface().([]string), ",")
	case shapeEmpty:
		return "{}"
	}
	panic("spec: " + f.path + " is not a scalar")
}

// formatFloat keeps a point in the text, as people write an overcommit.
func formatFloat(n float64) string {
	s := strconv.FormatFloat(n, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}
