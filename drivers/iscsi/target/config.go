package target

import (
	"errors"
	"log/slog"
	"time"
)

// Config is what Serve needs.
type Config struct {
	StateDir string // holds the records; must be on a local file system
	RunDir   string // holds the control socket
	Logger   *slog.Logger
	// Open opens an export's volume; nil opens it with package scsi.
	Open func(Export) (LogicalUnit, error)
	// Limits that are zero take their defaults.
	Limits Limits
}

// Limits bound what peers may make the server hold and how long they may take.
type Limits struct {
	Login    time.Duration // a login, from accept to its final response but for draining an older session; 15s
	Drain    time.Duration // how long a login waits for its initiator's older session; 25s
	HalfOpen int           // connections not logged in; the oldest gives way; 256
	// Discoveries are the sessions that list targets: each lasts no longer than a
	// login may, and the oldest gives way; 32.
	Discoveries int
	Sessions    int           // per export and epoch; 64
	QueueDepth  int           // commands a session may have outstanding; 128
	Workers     int           // commands of a session that may block at the volume at once; 16
	Nop         time.Duration // silence after which an initiator is asked, and again after which it is dropped; 15s
	Retry       time.Duration // between attempts to open a volume or a portal; 1s
}

func (l Limits) withDefaults() Limits {
	setDefault(&l.Login, 15*time.Second)
	setDefault(&l.Drain, 25*time.Second)
	setDefault(&l.HalfOpen, 256)
	setDefault(&l.Discoveries, 32)
	setDefault(&l.Sessions, 64)
	setDefault(&l.QueueDepth, 128)
	setDefault(&l.Workers, 16)
	setDefault(&l.Nop, 15*time.Second)
	setDefault(&l.Retry, time.Second)
	return l
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c Config) check() error {
	switch {
	case c.StateDir == "" || c.RunDir == "":
		return errors.New("the target needs a state and a run directory")
	case c.Logger == nil:
		return errors.New("the target needs a logger")
	case c.Limits.QueueDepth > maxQueueDepth:
		return errors.New("queue depth out of range")
	}
	return nil
}
