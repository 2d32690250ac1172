// Package claims is the durable store of who may write, and read, a disk: the
// arbiter that there is one writer at most, and that epochs only grow.
package claims

import (
	"slices"
	"time"

	"reconciler/claim"
	"reconciler/deadline"
)

// State of an admission.
type State string

// An admission is Held until its release begins. Releasing is written before
// the target is asked to fence, so that a crash between the two is seen: what is
// Releasing is never admitted again, and the next release finishes it.
const (
	Held      State = "Held"
	Releasing State = "Releasing"
)

// Admission is one owner's right to a disk. It never changes within its epoch
// but for its state.
type Admission struct {
	Epoch uint64      `json:"epoch"`
	State State       `json:"state"`
	Owner claim.Owner `json:"owner"`
	// Initiators are the iSCSI names it admits: one for a machine.
	Initiators []string     `json:"initiators"`
	User       string       `json:"user"`
	Password   claim.Secret `json:"-"`
	ReadOnly   bool         `json:"readOnly,omitempty"`
	Portal     string       `json:"portal"` // ADDRESS:PORT
	Target     string       `json:"target"` // IQN
	LUN        int          `json:"lun"`
	// Volume is the id of the volume that it admits to, and Inode its file's; empty
	// where an earlier build gave it.
	Volume string    `json:"volume,omitempty"`
	Inode  uint64    `json:"inode,omitempty"`
	Since  time.Time `json:"since"`
	By     string    `json:"by,omitempty"` // who asked for it
	// Deadline ends an operator's access.
	deadline.Deadline
}

// Other says that it was given for another volume than the one of this id in this
// file.
func (a Admission) Other(volume string, inode uint64) bool {
	return a.Volume != "" && volume != "" && a.Volume != volume || a.Inode != 0 && inode != 0 && a.Inode != inode
}

// Record is what is known of one disk.
type Record struct {
	Disk string // UID
	// Epoch is the highest that was ever given.
	Epoch uint64
	// Writer is the claim; nil when the disk is free.
	Writer *Admission
	// Readers are the read-only accesses, which stand beside a claim.
	Readers []Admission
	// Written is when the last claim ended: the disk was last in use then.
	Written time.Time
}

// Admissions lists the writer and the readers.
func (r Record) Admissions() []Admission {
	if r.Writer == nil {
		return slices.Clone(r.Readers)
	}
	return append([]Admission{*r.Writer}, r.Readers...)
}

// Idle says that nobody has the disk.
func (r Record) Idle() bool { return r.Writer == nil && len(r.Readers) == 0 }

func (r Record) clone() Record {
	if r.Writer != nil {
		w := *r.Writer
		r.Writer = &w
	}
	r.Readers = slices.Clone(r.Readers)
	return r
}

// find returns the admission of an epoch.
func (r *Record) find(epoch uint64) *Admission {
	if r.Writer != nil && r.Writer.Epoch == epoch {
		return r.Writer
	}
	for i := range r.Readers {
		if r.Readers[i].Epoch == epoch {
			return &r.Readers[i]
		}
	}
	return nil
}

func (r *Record) drop(epoch uint64) {
	if r.Writer != nil && r.Writer.Epoch == epoch {
		r.Writer = nil
	}
	r.Readers = slices.DeleteFunc(r.Readers, func(a Admission) bool { return a.Epoch == epoch })
}

// The file, mode 0600, is the only place where a password is written.
type recordFile struct {
	Disk    string          `json:"disk"`
	Epoch   uint64          `json:"epoch"`
	Writer  *admissionFile  `json:"writer,omitempty"`
	Readers []admissionFile `json:"readers,omitempty"`
	Written time.Time       `json:"written,omitzero"`
}

type admissionFile struct {
	Admission
	Password string `json:"password"`
}

func (a Admission) file() admissionFile {
	return admissionFile{a, a.Password.Reveal()}
}

func (f admissionFile) admission() Admission {
	f.Admission.Password = claim.NewSecret(f.Password)
	return f.Admission
}

func (r Record) file() recordFile {
	f := recordFile{Disk: r.Disk, Epoch: r.Epoch, Written: r.Written}
	if r.Writer != nil {
		w := r.Writer.file()
		f.Writer = &w
	}
	for _, a := range r.Readers {
		f.Readers = append(f.Readers, a.file())
	}
	return f
}

func (f recordFile) record() Record {
	r := Record{Disk: f.Disk, Epoch: f.Epoch, Written: f.Written}
	if f.Writer != nil {
		w := f.Writer.admission()
		r.Writer = &w
	}
	for _, a := range f.Readers {
		r.Readers = append(r.Readers, a.admission())
	}
	return r
}
