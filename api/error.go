package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// ErrNoAgent is a run directory in which no agent listens.
var ErrNoAgent = errors.New("no agent is running")

// Code tells errors apart where a caller must.
type Code string

// The codes. An error of an Agent that is no *Error is Internal to the caller.
const (
	Invalid     Code = "invalid"     // the request makes no sense
	Denied      Code = "denied"      // the caller may not
	NotFound    Code = "notFound"    // what it names is not there
	Conflict    Code = "conflict"    // what it asks for contradicts the state of things
	Unavailable Code = "unavailable" // not now; later may work
	Internal    Code = "internal"
)

var httpStatus = map[Code]int{
	Invalid:     http.StatusBadRequest,
	Denied:      http.StatusForbidden,
	NotFound:    http.StatusNotFound,
	Conflict:    http.StatusConflict,
	Unavailable: http.StatusServiceUnavailable,
	Internal:    http.StatusInternalServerError,
}

// Error is an error as it crosses the socket.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Hint says how to put it right; may be empty.
	Hint string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error without a hint.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeOf is the code of an error, Internal if it has none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

// toWire keeps what an error says around an *Error, along with its code and hint.
func toWire(err error) *Error {
	out := &Error{Code: Internal, Message: err.Error()}
	var e *Error
	switch {
	case errors.As(err, &e):
		out.Code, out.Hint = e.Code, e.Hint
		if httpStatus[e.Code] == 0 {
			out.Code = Internal
		}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		out.Code = Unavailable
	}
	return out
}
