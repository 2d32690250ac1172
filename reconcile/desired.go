package reconcile

import (
	"slices"
	"sort"
	"strings"

	"reconciler/spec"
)

// Desired is what one host is to be at one revision.
type Desired struct {
	Cluster  string // id
	IQNBase  string
	Host     string
	Revision string
	Objects  map[Key]*Object
	// Elsewhere are the objects of other hosts: Key to host. They are in the
	// tree, so a trace of them here is no reason to delete it.
	Elsewhere map[Key]string
	// Formerly are names that the host had before it was renamed.
	Formerly []string
	// Arriving are objects of this host that may still be on another, and why
	// they wait: what nothing here says was ever here is not made.
	Arriving map[Key]string
	// Restart are machines whose restart an operator asked for.
	Restart map[Key]Restart
	// Revert are objects whose drift an operator wants corrected, whatever their mode.
	Revert map[Key]bool
	// Known are objects that were here before by what the agent remembers or this
	// host last reported, and what says so: one that is not found is missed.
	Known map[Key]string
	// HostDrift, where set, is the host's mode of drift in place of the declared
	// one, which may not come into force yet.
	HostDrift *string
}

// Restart is an operator's request to restart one launch of a machine. When
// another launch runs it is fulfilled, also if nobody lived to write that down.
type Restart struct {
	Why    string `json:"why"`
	Launch string `json:"launch"` // empty for a machine that was off
}

// NewDesired picks from a tree what concerns one host.
func NewDesired(set *spec.Set, host, revision string) *Desired {
	d := &Desired{
		Cluster:   set.ClusterID(),
		IQNBase:   set.Cluster().Spec.(*spec.Cluster).IQNBase,
		Host:      host,
		Revision:  revision,
		Objects:   map[Key]*Object{},
		Elsewhere: map[Key]string{},
		Restart:   map[Key]Restart{},
	}
	if o := set.Get(spec.KindHost, host); o != nil {
		d.Formerly = o.Meta.MovedFrom
	}
	var flat []spec.Field
	for _, o := range set.All() {
		if at := set.HostOf(o); at != "" && at != host {
			d.Elsewhere[Key{o.Kind, o.UID}] = at
			continue
		}
		flat = spec.AppendFlat(flat[:0], o)
		d.Objects[Key{o.Kind, o.UID}] = newObject(o, flat)
	}
	for _, o := range set.All() {
		if w := d.Objects[Key{o.Kind, o.UID}]; w != nil {
			d.link(set, w)
			slices.SortFunc(w.Fields, func(a, b Field) int { return strings.Compare(a.Path, b.Path) })
		}
	}
	return d
}

// isHere says whether a name is, or was, this host's.
func (d *Desired) isHere(host string) bool {
	return host == d.Host || slices.Contains(d.Formerly, host)
}

// oldestHost is the host's first name: what was approved stays so when the host
// is renamed.
func (d *Desired) oldestHost() string {
	if len(d.Formerly) > 0 {
		return d.Formerly[0]
	}
	return d.Host
}

func newObject(o *spec.Object, flat []spec.Field) *Object {
	w := &Object{Kind: o.Kind, Name: o.Meta.Name, UID: o.UID, Incarnation: o.Meta.Incarnation, Spec: o.Spec}
	w.Fields = make([]Field, 0, len(flat)+2)
	for _, f := range flat {
		// The entry's name is its identity and stands in every path of it.
		if strings.HasSuffix(f.Path, "].name") {
			continue
		}
		w.Fields = append(w.Fields, Field{Path: f.Path, Value: f.Value, ID: f.Digest})
	}
	return w
}

// link resolves the references of an object, and adds the fields that follow
// from the objects referred to: a machine changes when its disk grows.
func (d *Desired) link(set *spec.Set, w *Object) {
	switch s := w.Spec.(type) {
	case *spec.Secret:
		// Who can decrypt the file is part of what a reviewer approves.
		digest := spec.Digest(s.File)
		w.Fields = append(w.Fields, Field{Path: "sops", Value: "sha256:" + shortID(digest), ID: digest})
	case *spec.Disk:
		d.refer(set, w, "spec.pool", spec.KindStoragePool, s.Pool)
		if s.Source.Image != "" {
			d.refer(set, w, "spec.source.image", spec.KindImage, s.Source.Image)
		}
	case *spec.VirtualMachine:
		for _, e := range s.Disks {
			p := "spec.disks[" + e.Name + "]"
			if disk := d.refer(set, w, p+".disk", spec.KindDisk, e.Disk); disk != nil {
				w.Fields = append(w.Fields, Field{Path: p + ".size", Value: disk.Spec.(*spec.Disk).Size.String()})
			}
		}
		// Firmware boots from the first disk: another order is another machine at
		// its next start.
		if s.Boot.Kernel == nil && len(s.Disks) > 0 {
			if disk := set.Get(spec.KindDisk, s.Disks[0].Disk); disk != nil {
				w.Fields = append(w.Fields, Field{Path: "spec.boot.disk", Value: s.Disks[0].Name, ID: disk.UID})
			}
		}
		for _, n := range s.NICs {
			p := "spec.nics[" + n.Name + "]"
			if net := d.refer(set, w, p+".network", spec.KindNetwork, n.Network); net != nil {
				w.Fields = append(w.Fields, Field{Path: p + ".backend", Value: Backend(net.Spec.(*spec.Network))})
			}
		}
		for _, part := range s.CloudInit.Parts() {
			d.secretText(set, w, "spec.cloudInit."+part.Field, part.CloudInitPart)
		}
		d.bootFile(set, w, "spec.boot.kernel.image", s.Boot.Kernel)
		d.bootFile(set, w, "spec.boot.initrd.image", s.Boot.Initrd)
	}
}

// Backend writes what a NIC connects to: "user" or "bridge NAME".
func Backend(n *spec.Network) string {
	if n.Bridge != nil {
		return "bridge " + n.Bridge.Name
	}
	return "user"
}

// bootFile compares a kernel by content: a new image under the same name is a change.
func (d *Desired) bootFile(set *spec.Set, w *Object, path string, ref *spec.ImageRef) {
	if ref == nil {
		return
	}
	if img := d.refer(set, w, path, spec.KindImage, ref.Image); img != nil {
		w.field(path).ID = img.Spec.(*spec.Image).SHA256
	}
}

// secretText compares a text in a Secret by its encrypted value.
func (d *Desired) secretText(set *spec.Set, w *Object, path string, part *spec.CloudInitPart) {
	if part.Secret == "" {
		return
	}
	if o := d.refer(set, w, path+".secret", spec.KindSecret, part.Secret); o != nil {
		w.field(path + ".key").ID = spec.Digest(o.Spec.(*spec.Secret).Data[part.Key])
	}
}

// refer records a reference; the field at its path is then compared by UID.
// The object of another host is not known here: nil.
func (d *Desired) refer(set *spec.Set, w *Object, path string, kind spec.Kind, name string) *spec.Object {
	o := set.Get(kind, name)
	if o == nil {
		return nil
	}
	to := d.Objects[Key{kind, o.UID}]
	if to == nil {
		to = &Object{Kind: kind, Name: name, UID: o.UID}
	}
	w.Refs = append(w.Refs, Ref{path, to})
	if f := w.field(path); f != nil {
		f.ID = o.UID
	}
	return o
}

func (o *Object) field(path string) *Field {
	for i := range o.Fields {
		if o.Fields[i].Path == path {
			return &o.Fields[i]
		}
	}
	return nil
}

// Get returns the value at a path, empty if the field is not set. Fields must be sorted.
func (o *Object) Get(path string) string {
	i := sort.Search(len(o.Fields), func(i int) bool { return o.Fields[i].Path >= path })
	if i < len(o.Fields) && o.Fields[i].Path == path {
		return o.Fields[i].Value
	}
	return ""
}

// Generation is a digest of the fields: two objects with one want the same.
func (o *Object) Generation() string {
	h := newHash()
	for _, f := range o.Fields {
		h.add(f.Path, f.Value, f.ID)
	}
	return h.sum()
}
