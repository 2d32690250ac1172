package durable

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// VersionError says that a record was written by a later build. It is left as
// it is: what this build does not know of would be lost.
type VersionError struct {
	File    string // empty where the caller knows
	Version int    // of the record
	Reads   int    // the highest that this build reads
}

func (e *VersionError) Error() string {
	name := e.File
	if name == "" {
		name = "the record"
	}
	return fmt.Sprintf("%s has version %d and this build reads up to %d: a newer reconciler wrote it, install that one again; nothing was changed", name, e.Version, e.Reads)
}

// DamagedError says that a record was read, and that what it says makes no sense.
// A record that cannot be read at all is not damaged: it may be there again.
type DamagedError struct {
	File string
	Err  error
}

func (e *DamagedError) Error() string { return e.File + ": " + e.Err.Error() }
func (e *DamagedError) Unwrap() error { return e.Err }

// Marshal is the content of a record: v, which is a struct without a key of that
// name, with its version in front.
func Marshal(version int, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(body, []byte("{"))
	if !ok {
		return nil, fmt.Errorf("a record is an object, not %.20s", body)
	}
	comma := ","
	if len(rest) == 1 {
		comma = ""
	}
	return fmt.Appendf(nil, "{\"version\":%d%s%s", version, comma, rest), nil
}

// Unmarshal reads a record of at most the given version; the error is a
// *VersionError for a later one. The first builds wrote some records without a
// version: they count as of version 1.
func Unmarshal(data []byte, version int, v any) error {
	found, err := Version(data)
	if err != nil {
		return err
	}
	if found > version {
		return &VersionError{Version: found, Reads: version}
	}
	return json.Unmarshal(data, v)
}

// Version is what a record says of its version; 0 if nothing. A record is one
// object, whole: a file that is empty, cut off or garbled is an error, so that
// nothing is taken for said that was not.
func Version(data []byte) (int, error) {
	var head struct {
		Version *json.RawMessage `json:"version"`
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return 0, fmt.Errorf("the record is empty")
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return 0, fmt.Errorf("the record is damaged: %w", err)
	}
	if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return 0, fmt.Errorf("the record is damaged: it is no object")
	}
	if head.Version == nil {
		return 0, nil
	}
	var n int
	if err := json.Unmarshal(*head.Version, &n); err != nil || n < 1 {
		return 0, fmt.Errorf("the record is damaged: its version is %s", *head.Version)
	}
	return n, nil
}

// ReadAll reads the records whose names end with suffix, by name without it. One
// that cannot be read, or that check refuses, is in broken and harms no other.
func ReadAll[T any](d *Dir, suffix string, version int, check func(name string, r *T) error) (good map[string]T, broken map[string]error, err error) {
	names, err := d.Names(suffix)
	if err != nil {
		return nil, nil, err
	}
	good, broken = make(map[string]T, len(names)), map[string]error{}
	for _, name := range names {
		var r T
		err := d.ReadJSON(name+suffix, version, &r)
		switch {
		case isAbsent(err): // removed since it was listed
			continue
		case err == nil && check != nil:
			if err = check(name, &r); err != nil {
				err = &DamagedError{d.file(name + suffix), err}
			}
		}
		if err != nil {
			broken[name] = err
			continue
		}
		good[name] = r
	}
	return good, broken, nil
}

// AsideSuffix is at the end of the name of a record that was set aside.
const AsideSuffix = ".damaged"

// SetAside takes a record that is damaged out of the way, for somebody to look
// at, and says where it is. why is what was wrong with it: a record that is not a
// *DamagedError stays where it is, and why is the error.
func (d *Dir) SetAside(name string, why error) (path string, err error) {
	if _, damaged := errors.AsType[*DamagedError](why); !damaged {
		return "", why
	}
	return d.file(name + AsideSuffix), d.Rename(name, name+AsideSuffix)
}

// Has says whether there is a file of that name.
func (d *Dir) Has(name string) bool {
	_, err := os.Lstat(d.file(name))
	return err == nil
}

// guard remembers a record that cannot be written without losing what a later
// build said; nil: there is none.
func (d *Dir) guard(name string, later *VersionError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if later == nil {
		delete(d.later, name)
		return
	}
	if d.later == nil {
		d.later = map[string]*VersionError{}
	}
	d.later[name] = later
}
