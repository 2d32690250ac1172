package drift

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"reconciler/reconcile"
	"reconciler/spec"
)

// Proposal is how the specs would read if they matched what really runs.
type Proposal struct {
	Items []Item
	// Notes say what the specs cannot say, or what is not safely edited.
	Notes []Note
}

// Item is an object that drifted, or one that nobody declares.
type Item struct {
	Kind  spec.Kind
	Name  string
	UID   string
	Moved []Moved
	// Document declares an object that no file does, and File is where to.
	Document string `json:",omitempty"`
	File     string `json:",omitempty"`
}

// Moved is one field that differs.
type Moved struct {
	Field    string // as in a plan; spec.disks[data] for an entry that is gone
	Declared string
	Real     string // empty where it is gone
	File     string
	Edit     FieldEdit
}

// Note is something a person has to know, or do by hand.
type Note struct {
	Object string // KIND/NAME, or what an unmanaged thing is called
	Text   string
}

// Propose collects the drift that a plan leaves alone because it is reported.
// set is the tree that the plan was made for.
func Propose(p *reconcile.Plan, set *spec.Set) Proposal {
	b := builder{set: set, plan: p}
	for i := range p.Actions {
		if a := &p.Actions[i]; a.Drift == spec.DriftReport && a.Want != nil && a.Have != nil {
			b.object(a)
		}
	}
	return b.out
}

type builder struct {
	set  *spec.Set
	plan *reconcile.Plan
	out  Proposal
}

func (b *builder) object(a *reconcile.Action) {
	o := b.set.ByUID(a.UID)
	if o == nil {
		return
	}
	item := Item{Kind: a.Kind, Name: a.Name, UID: a.UID}
	for _, c := range a.Changes {
		if !c.Drift {
			continue
		}
		m, note := b.field(a, c)
		if note != "" {
			b.note(a, "%s", note)
		}
		if m.Field == "" || slices.ContainsFunc(item.Moved, func(x Moved) bool { return x.Field == m.Field }) {
			continue
		}
		m.Edit.Kind, m.Edit.Name = a.Kind, a.Name
		m.File, _, _ = o.Position(m.Field)
		item.Moved = append(item.Moved, m)
	}
	if len(item.Moved) > 0 {
		b.out.Items = append(b.out.Items, item)
	}
}

func (b *builder) note(a *reconcile.Action, format string, args ...any) {
	n := Note{Object: string(a.Kind) + "/" + a.Name, Text: fmt.Sprintf(format, args...)}
	if !slices.Contains(b.out.Notes, n) {
		b.out.Notes = append(b.out.Notes, n)
	}
}

// field maps one difference back to what a user wrote. No Field means that
// there is nothing to edit.
func (b *builder) field(a *reconcile.Action, c reconcile.Change) (m Moved, note string) {
	now := observed(a, c.Field)
	set := Moved{Field: c.Field, Declared: a.Want.Get(c.Field), Real: now.Value, Edit: FieldEdit{Path: c.Field, Value: now.Value}}
	list, name, leaf := split(c.Field)
	switch {
	case c.Field == "spec.powerState" && a.Have.VM.Power == reconcile.PowerPaused:
		return m, "the guest is paused, for which the specs have no word; it stays paused until the drift is reverted"
	case a.Kind == spec.KindDisk && c.Field == "spec.size" && now.Value == set.Declared:
		return m, "the volume and what the target serves of it have different sizes; revert makes them one"
	case list == "spec.disks":
		return b.disk(a, set, name, leaf, now)
	case list == "spec.nics":
		return b.card(a, set, name, leaf, now)
	case now.Value == "":
		return m, c.Field + " is not there any more"
	}
	return set, ""
}

// split takes spec.disks[data].size apart; list is empty for other paths.
func split(path string) (list, entry, leaf string) {
	list, rest, ok := strings.Cut(path, "[")
	if !ok {
		return "", "", ""
	}
	entry, leaf, _ = strings.Cut(rest, "].")
	return list, entry, leaf
}

func observed(a *reconcile.Action, path string) reconcile.Field {
	for _, f := range a.Have.Fields {
		if f.Path == path {
			return f
		}
	}
	return reconcile.Field{}
}

// gone is a whole entry that is not there any more.
func (b *builder) gone(set Moved, list, name, declared string) Moved {
	at := list + "[" + name + "]"
	return Moved{Field: at, Declared: declared, Edit: FieldEdit{Path: at, Remove: true}}
}

func (b *builder) disk(a *reconcile.Action, set Moved, name, leaf string, now reconcile.Field) (m Moved, note string) {
	at := "spec.disks[" + name + "]"
	declared := a.Want.Get(at + ".disk")
	has := observed(a, at+".disk")
	switch {
	case declared != "" && has.ID == "":
		return b.gone(set, "spec.disks", name, declared), ""
	case declared == "" && b.nameOf(has.ID) == "":
		return m, fmt.Sprintf("a disk was plugged in as %s (QEMU's node %s), which is none that the tree declares", name, has.Value)
	case declared == "":
		disk := b.nameOf(has.ID)
		pairs := []Pair{{"disk", disk}}
		if name != disk {
			pairs = append([]Pair{{"name", name}}, pairs...)
		}
		return Moved{Field: at, Real: disk, Edit: FieldEdit{Path: at, Entry: pairs}}, ""
	case leaf == "disk":
		set.Real = b.nameOf(has.ID)
		set.Edit.Value = set.Real
		if set.Real == "" {
			return m, fmt.Sprintf("under %s another disk is attached than the tree declares", name)
		}
		return set, ""
	}
	// The size the guest sees follows from the Disk.
	for i := range b.plan.Actions {
		if d := &b.plan.Actions[i]; d.Kind == spec.KindDisk && d.UID == has.ID && d.Drift != "" {
			return m, ""
		}
	}
	return m, fmt.Sprintf("the guest sees disk %s with %s, and Disk/%s has %s: the size of the device was changed, and only that", name, now.Value, declared, set.Declared)
}

func (b *builder) card(a *reconcile.Action, set Moved, name, leaf string, now reconcile.Field) (m Moved, note string) {
	at := "spec.nics[" + name + "]"
	declared := a.Want.Get(at + ".network")
	switch {
	case declared == "":
		return m, fmt.Sprintf("a network card was plugged in as %s (%s), of which the tree knows nothing", name, observed(a, at+".mac").Value)
	case observed(a, at+".network").ID == "":
		return b.gone(set, "spec.nics", name, declared), ""
	case leaf == "mac":
		return set, ""
	}
	var fitting []string
	for _, n := range b.set.Of(spec.KindNetwork) {
		if reconcile.Backend(n.Spec.(*spec.Network)) == observed(a, at+".backend").Value {
			fitting = append(fitting, n.Meta.Name)
		}
	}
	if len(fitting) != 1 {
		return m, fmt.Sprintf("card %s is connected to %s, and %d networks of the tree are", name, observed(a, at+".backend").Value, len(fitting))
	}
	path := at + ".network"
	return Moved{Field: path, Declared: declared, Real: fitting[0], Edit: FieldEdit{Path: path, Value: fitting[0]}}, ""
}

func (b *builder) nameOf(uid string) string {
	if o := b.set.ByUID(uid); uid != "" && o != nil {
		return o.Meta.Name
	}
	return ""
}

// Files makes the edits. read returns a file of the tree; the error is
// fs.ErrNotExist where there is none. What cannot be edited becomes a note, and
// the rest goes on.
func (p *Proposal) Files(read func(file string) ([]byte, error)) (map[string][]byte, error) {
	edits, names := map[string][]FieldEdit{}, []string(nil)
	for _, item := range p.Items {
		for _, m := range item.Moved {
			if edits[m.File] == nil {
				names = append(names, m.File)
			}
			edits[m.File] = append(edits[m.File], m.Edit)
		}
	}
	out := map[string][]byte{}
	for _, file := range names {
		data, err := read(file)
		if err != nil {
			return nil, err
		}
		for list := edits[file]; len(list) > 0; {
			edited, err := Edit(file, data, list)
			var unsafe *UnsafeError
			if errors.As(err, &unsafe) {
				p.Notes = append(p.Notes, Note{
					Object: string(unsafe.Edit.Kind) + "/" + unsafe.Edit.Name,
					Text:   fmt.Sprintf("%s is not edited in %s: %v", unsafe.Edit.Path, file, unsafe.Why),
				})
				list = slices.DeleteFunc(slices.Clone(list), func(e FieldEdit) bool {
					return e.Kind == unsafe.Edit.Kind && e.Name == unsafe.Edit.Name && e.Path == unsafe.Edit.Path
				})
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("edit %s: %w", file, err)
			}
			out[file] = edited
			break
		}
	}
	for _, item := range p.Items {
		if item.Document == "" {
			continue
		}
		data, ok := out[item.File]
		if !ok {
			var err error
			if data, err = read(item.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		out[item.File] = AddDocument(data, []byte(item.Document))
	}
	return out, nil
}

// Empty says that nothing drifted.
func (p Proposal) Empty() bool { return len(p.Items) == 0 && len(p.Notes) == 0 }
