package qmp

import (
	"context"
	"errors"
	"fmt"
)

// Error is QEMU's refusal of a command.
type Error struct {
	Command string
	Class   string // GenericError, CommandNotFound, DeviceNotFound, …
	Desc    string
}

func (e *Error) Error() string { return fmt.Sprintf("qmp %s: %s: %s", e.Command, e.Class, e.Desc) }

// ErrClosed says that the connection is gone: QEMU ended, or somebody closed it.
var ErrClosed = errors.New("qmp: connection closed")

// ErrProtocol says that the other end does not speak QMP. The connection is closed.
var ErrProtocol = errors.New("qmp: protocol violated")

// SilentError says that QEMU is there and did not answer in time. The command
// may still be carried out later.
type SilentError struct {
	Command string // "greeting" before the first command
}

func (e *SilentError) Error() string { return fmt.Sprintf("qmp %s: no answer in time", e.Command) }

// Is makes a silent QEMU a passed deadline, too.
func (e *SilentError) Is(target error) bool { return target == context.DeadlineExceeded }

// waited turns the end of a context into the error of a command that waited.
func waited(ctx context.Context, command string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &SilentError{command}
	}
	return fmt.Errorf("qmp %s: %w", command, context.Cause(ctx))
}
