package drift

import (
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"reconciler/spec"
)

// form is how the language writes a value.
type form int

const (
	words form = iota
	number
	size
)

func kindOf(e FieldEdit) form {
	switch {
	case strings.HasPrefix(e.Path, "spec.cpu.") && e.Path != "spec.cpu.model":
		return number
	case e.Path == "spec.memory.size" || e.Path == "spec.memory.max" || e.Kind == spec.KindDisk && e.Path == "spec.size":
		return size
	}
	return words
}

// scalar writes a value as the old one is written: with its quotes, and a size
// in its unit. old is nil where there is none.
func scalar(v string, old *yaml.Node, flow bool, f form) string {
	if f == size && old != nil {
		v = inUnitOf(v, old.Value)
	}
	switch {
	case old != nil && old.Style&yaml.SingleQuotedStyle != 0:
		return "'" + strings.ReplaceAll(v, "'", "''") + "'"
	case old != nil && old.Style&yaml.DoubleQuotedStyle != 0:
		return strconv.Quote(v)
	case f == words && !plain(v, flow):
		return strconv.Quote(v)
	}
	return v
}

// inUnitOf writes a size with the unit of another, where that gives a whole number.
func inUnitOf(v, old string) string {
	bytes, err := spec.ParseSize(v)
	if err != nil {
		return v
	}
	unit := strings.TrimLeft(old, "0123456789")
	one, err := spec.ParseSize("1" + unit)
	if err != nil || one == 0 || bytes%one != 0 {
		return v
	}
	return strconv.FormatInt(int64(bytes/one), 10) + unit
}

// plain says whether a string needs no quotes: it is read back as itself, by
// readers of YAML 1.1 too, to which 52:54:00:00:00:01 is a number of base 60.
func plain(v string, flow bool) bool {
	if v == "" || strings.ContainsAny(v, "\n\"'#&*!|>%@`:") || flow && strings.ContainsAny(v, ",[]{}") {
		return false
	}
	var n yaml.Node
	if yaml.Unmarshal([]byte(v), &n) != nil || len(n.Content) != 1 {
		return false
	}
	s := n.Content[0]
	return s.Kind == yaml.ScalarNode && s.ShortTag() == "!!str" && s.Value == v && s.Style == 0
}
