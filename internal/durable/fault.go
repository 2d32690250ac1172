package durable

import "sync/atomic"

// When is the moment of a fault: the record is as it was, or as it is to be and
// perhaps not on stable storage.
type When int

// Before and After an operation was carried out.
const (
	Before When = iota
	After
)

// fault, if set, is asked before and after every operation of every directory;
// its error is the operation's.
var fault atomic.Pointer[func(path, op string, when When) error]

// Inject has operations fail, as a disk that is full or breaks makes them, until
// undo is called: a test of what they leave behind.
func Inject(f func(path, op string, when When) error) (undo func()) {
	fault.Store(&f)
	return func() { fault.Store(nil) }
}

func (d *Dir) fault(op string, when When) error {
	if f := fault.Load(); f != nil {
		return (*f)(d.path, op, when)
	}
	return nil
}
