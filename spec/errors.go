package spec

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"
)

// Error is one thing wrong with a tree.
type Error struct {
	File      string
	Line, Col int // from 1; 0 where the file has no such place (it cannot be read)
	Msg       string
	Hint      string // how to put it right; may be empty

	// lost: documents could not be read, so what they define is unknown;
	// but where lostName is set, it is one object of this name.
	lost     bool
	lostName string
	// empty: there is not one object in the tree.
	empty bool
	// dangling is what the error is about until it has a hint.
	dangling reference
}

// Error writes FILE:LINE:COL: message (hint).
func (e Error) Error() string {
	var b strings.Builder
	b.WriteString(place(e.File, e.Line, e.Col))
	b.WriteString(": ")
	b.WriteString(e.Msg)
	if e.Hint != "" {
		b.WriteString(" (")
		b.WriteString(e.Hint)
		b.WriteByte(')')
	}
	return b.String()
}

func place(file string, line, col int) string {
	b := make([]byte, 0, len(file)+10)
	b = append(b, file...)
	b = append(b, ':')
	b = strconv.AppendInt(b, int64(max(line, 1)), 10)
	b = append(b, ':')
	b = strconv.AppendInt(b, int64(max(col, 1)), 10)
	return string(b)
}

// Errors is everything wrong with a file or a tree, sorted by place.
type Errors []Error

// ErrEmpty is what errors.Is finds in the Errors of a tree without any object.
var ErrEmpty = errors.New("the tree declares nothing")

// Is finds ErrEmpty.
func (e Errors) Is(target error) bool {
	return target == ErrEmpty && slices.ContainsFunc(e, func(e Error) bool { return e.empty })
}

// Error writes one error a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// sorted returns the errors by place without repetitions, as an error; nil if there are none.
func (e Errors) sorted() error {
	if len(e) == 0 {
		return nil
	}
	e.sort()
	return slices.Compact(e)
}

func (e Errors) sort() {
	slices.SortFunc(e, func(a, b Error) int {
		return cmp.Or(
			cmp.Compare(a.File, b.File),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Col, b.Col),
			cmp.Compare(a.Msg, b.Msg),
			cmp.Compare(a.Hint, b.Hint),
		)
	})
}

// asErrors returns the Errors that err is made of, or err itself as one.
func asErrors(err error) Errors {
	if err == nil {
		return nil
	}
	var list Errors
	if errors.As(err, &list) {
		return slices.Clone(list)
	}
	var one Error
	if errors.As(err, &one) {
		return Errors{one}
	}
	return Errors{{File: ".", Msg: err.Error(), lost: true}}
}

// problem is what is wrong with a value, before its place is known.
type problem struct{ msg, hint string }

func (p *problem) Error() string {
	if p.hint == "" {
		return p.msg
	}
	return p.msg + " (" + p.hint + ")"
}
