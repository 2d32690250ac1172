package policy

import (
	"cmp"
	"fmt"
	"math"
	"path"
	"reflect"
	"slices"
	"strings"

	"reconciler/spec"
)

// Tenant is what the files below one directory of the repository may declare.
// It comes from the host's configuration, never from the repository.
type Tenant struct {
	Name string
	// Path is a directory, slash-separated and clean; empty is the whole tree.
	Path  string
	Kinds []spec.Kind
	// Pools, Networks, Images and Hosts, declared outside of all tenants, may be
	// referred to. No hosts are all hosts.
	Pools, Networks, Images, Hosts []string
	// Bridges are what its own networks may connect to.
	Bridges []string
	// ImageFiles is where its own images may take files from, below the host's
	// image directory.
	ImageFiles string
	Quota      Quota
}

// Quota bounds the sum of what a tenant declares; zero is no bound.
type Quota struct {
	Machines, CPUs, Disks, Images int
	Memory, Storage               spec.Size // bytes
}

// TenantKinds are the kinds that can be left to a tenant. The others are the
// host's and the storage's own.
func TenantKinds() []spec.Kind {
	var list []spec.Kind
	for _, k := range spec.Kinds {
		switch k {
		case spec.KindCluster, spec.KindHost, spec.KindStoragePool:
		default:
			list = append(list, k)
		}
	}
	return list
}

// Rebase is the tenants as they are seen from a directory of the repository,
// for a tree that was read from there.
func Rebase(tenants []Tenant, dir string) []Tenant {
	dir = strings.Trim(path.Clean("/"+dir), "/")
	if dir == "" {
		return tenants
	}
	var list []Tenant
	if whole := longest(dir+"/.", tenants, same); whole != nil {
		t := *whole
		t.Path = ""
		list = append(list, t)
	}
	for _, t := range tenants {
		if under(t.Path, dir, same) {
			t.Path = t.Path[len(dir)+1:]
			list = append(list, t)
		}
	}
	return list
}

func same(a, b string) bool { return a == b }

// under says whether a file or directory lies below a directory.
func under(name, dir string, equal func(a, b string) bool) bool {
	if dir == "" {
		return true
	}
	// Folding case can change the length of a name, so the parts are compared.
	parts, above := strings.Split(name, "/"), strings.Split(dir, "/")
	return len(parts) > len(above) && slices.EqualFunc(parts[:len(above)], above, equal)
}

// tenantOf is whose a file is; nil is nobody's, which is the operators'.
func tenantOf(file string, tenants []Tenant) *Tenant { return longest(file, tenants, same) }

// longest is the innermost tenant of a file.
func longest(file string, tenants []Tenant, equal func(a, b string) bool) *Tenant {
	var found *Tenant
	for i := range tenants {
		t := &tenants[i]
		if under(file, t.Path, equal) && (found == nil || len(t.Path) > len(found.Path)) {
			found = t
		}
	}
	return found
}

func nameOf(t *Tenant) string {
	if t == nil {
		return ""
	}
	return t.Name
}

func fileOf(o *spec.Object) string {
	file, _, _ := o.Position("")
	return file
}

// CheckTenants finds what tenants declare and may not. The error is spec.Errors.
func CheckTenants(set *spec.Set, tenants []Tenant) error {
	if len(tenants) == 0 {
		return nil
	}
	c := tenancy{set: set, tenants: tenants, used: map[string]*usage{}}
	for _, o := range set.All() {
		c.object(o)
	}
	return c.result()
}

// CheckMoves finds what a tenant would take over from base: objects that
// another tenant or the operators declared there. The error is spec.Errors.
func CheckMoves(base, head *spec.Set, tenants []Tenant) error {
	c := tenancy{set: head, tenants: tenants}
	for _, o := range head.All() {
		t := tenantOf(fileOf(o), tenants)
		if t == nil {
			continue
		}
		was := base.ByUID(o.UID)
		if was == nil || was.Kind != o.Kind {
			continue
		}
		if from := tenantOf(fileOf(was), tenants); nameOf(from) != t.Name {
			at := "metadata.name"
			if len(o.Meta.MovedFrom) > 0 {
				at = "metadata.movedFrom"
			}
			c.fail(o, at, fmt.Sprintf("%s %q takes over what is %s", o.Kind, o.Meta.Name, whose(from)),
				"use another name, or raise metadata.incarnation for a fresh one")
		}
	}
	return c.result()
}

// whose says to whom something belongs.
func whose(t *Tenant) string {
	if t == nil {
		return "not a tenant's"
	}
	return "tenant " + t.Name + "'s"
}

type tenancy struct {
	set     *spec.Set
	tenants []Tenant
	used    map[string]*usage
	errs    spec.Errors
}

func (c *tenancy) fail(o *spec.Object, at, msg, hint string) {
	file, line, col := o.Position(at)
	c.errs = append(c.errs, spec.Error{File: file, Line: line, Col: col, Msg: msg, Hint: hint})
}

func (c *tenancy) result() error {
	if len(c.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(c.errs, func(a, b spec.Error) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col), cmp.Compare(a.Msg, b.Msg))
	})
	return c.errs
}

func (c *tenancy) object(o *spec.Object) {
	file := fileOf(o)
	t := tenantOf(file, c.tenants)
	// A path that differs in case only would be nobody's, and bound by nothing.
	if near := longest(file, c.tenants, strings.EqualFold); near != nil && (t == nil || len(near.Path) > len(t.Path)) {
		c.fail(o, "", fmt.Sprintf("the path differs from %s, tenant %s's, in upper and lower case only", near.Path, near.Name), "move the file")
		return
	}
	if t == nil {
		return
	}
	if !slices.Contains(t.Kinds, o.Kind) {
		c.fail(o, "", fmt.Sprintf("tenant %s may not declare %s %q", t.Name, o.Kind, o.Meta.Name), "it may declare "+listKinds(t.Kinds))
		return
	}
	for _, r := range references(o) {
		c.reference(t, o, r)
	}
	switch s := o.Spec.(type) {
	case *spec.Secret:
		// sops authenticates the readable values as one text: with labels, what
		// another's copy of the file says in its name could be cut in two, and the
		// copy be a Secret of another name.
		if m := o.Meta; len(m.Labels)+len(m.Annotations)+len(m.MovedFrom)+m.Incarnation > 0 || m.Drift != "" {
			c.fail(o, "metadata", fmt.Sprintf("a Secret of tenant %s may have a name, and nothing else in its metadata", t.Name),
				"sops does not say where one readable value ends and the next begins")
		}
	case *spec.Network:
		// A user network reaches whatever listens on the host itself.
		if s.Bridge == nil {
			c.fail(o, "spec", fmt.Sprintf("tenant %s may declare networks of a bridge only", t.Name), "one of the operators' networks may be used where the configuration allows it")
		} else if !slices.Contains(t.Bridges, s.Bridge.Name) {
			c.fail(o, "spec.bridge.name", fmt.Sprintf("tenant %s may not use the bridge %s", t.Name, s.Bridge.Name), mayUse(t.Bridges))
		}
	case *spec.Image:
		if f := s.Source.File; f != nil && !under(f.Path, t.ImageFiles, same) {
			c.fail(o, "spec.source.file.path", fmt.Sprintf("tenant %s may not use the file %s", t.Name, f.Path), "its files are below "+t.ImageFiles+"/")
		}
	}
	c.count(t, o)
}

// reference checks what an object of a tenant refers to.
func (c *tenancy) reference(t *Tenant, o *spec.Object, r reference) {
	target := c.set.Get(r.kind, r.name)
	if target == nil {
		return // the set says so itself
	}
	owner := tenantOf(fileOf(target), c.tenants)
	if owner != nil && owner.Name == t.Name {
		return
	}
	shared := map[spec.Kind][]string{
		spec.KindStoragePool: t.Pools, spec.KindNetwork: t.Networks, spec.KindImage: t.Images, spec.KindHost: t.Hosts,
	}[r.kind]
	switch {
	case owner != nil:
		c.fail(o, r.path, fmt.Sprintf("%s %q belongs to tenant %s", r.kind, r.name, owner.Name), "a tenant uses what is its own or what is shared with it")
	case slices.Contains(shared, r.name), r.kind == spec.KindHost && len(shared) == 0:
	default:
		c.fail(o, r.path, fmt.Sprintf("tenant %s may not use %s %q", t.Name, r.kind, r.name), mayUse(shared))
	}
}

func mayUse(names []string) string {
	if len(names) == 0 {
		return "none is shared with it"
	}
	return "it may use " + strings.Join(names, ", ")
}

func listKinds(kinds []spec.Kind) string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k)
	}
	return strings.Join(names, ", ")
}

// usage is what a tenant has declared so far.
type usage struct {
	machines, cpus, memory, disks, storage, images int64
	over                                           map[string]bool // told once
}

func (c *tenancy) count(t *Tenant, o *spec.Object) {
	u := c.used[t.Name]
	if u == nil {
		u = &usage{over: map[string]bool{}}
		c.used[t.Name] = u
	}
	add := func(sum *int64, n int64, quota int64, at, what string, write func(int64) string) {
		*sum += min(n, math.MaxInt64-*sum)
		if quota == 0 || *sum <= quota || u.over[what] {
			return
		}
		u.over[what] = true
		c.fail(o, at, fmt.Sprintf("tenant %s would have %s %s, and its quota is %s", t.Name, write(*sum), what, write(quota)),
			"the sum of all that it declares counts, what is switched off included")
	}
	number := func(n int64) string { return fmt.Sprint(n) }
	size := func(n int64) string { return spec.Size(n).String() }
	switch s := o.Spec.(type) {
	case *spec.VirtualMachine:
		add(&u.machines, 1, int64(t.Quota.Machines), "", "machines", number)
		add(&u.cpus, int64(s.CPU.Count()), int64(t.Quota.CPUs), "spec.cpu", "virtual CPUs", number)
		add(&u.memory, int64(s.Memory.Size), int64(t.Quota.Memory), "spec.memory.size", "of memory", size)
	case *spec.Disk:
		add(&u.disks, 1, int64(t.Quota.Disks), "", "disks", number)
		add(&u.storage, int64(s.Size), int64(t.Quota.Storage), "spec.size", "of storage", size)
	case *spec.Image:
		add(&u.images, 1, int64(t.Quota.Images), "", "images", number)
	}
}

// reference is one name of another object, and where it stands.
type reference struct {
	path string
	kind spec.Kind
	name string
}

// references are all names of other objects in an object. The tags of the
// fields say which they are, so that a new one is never forgotten here.
func references(o *spec.Object) []reference {
	return appendReferences(nil, reflect.ValueOf(o.Spec), "spec")
}

func appendReferences(list []reference, v reflect.Value, at string) []reference {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return list
		}
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return list
	}
	for i := range v.NumField() {
		f, fv := v.Type().Field(i), v.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		p := at + "." + name
		kind := spec.Kind(f.Tag.Get("ref"))
		switch {
		case fv.Kind() == reflect.String && kind != "":
			if fv.String() != "" {
				list = append(list, reference{p, kind, fv.String()})
			}
		case fv.Kind() == reflect.Slice:
			for j := range fv.Len() {
				entry := fv.Index(j)
				if entry.Kind() == reflect.String && kind != "" {
					list = append(list, reference{p, kind, entry.String()})
					continue
				}
				list = appendReferences(list, entry, p+"["+keyOf(entry, f.Tag.Get("key"))+"]")
			}
		default:
			list = appendReferences(list, fv, p)
		}
	}
	return list
}

// keyOf is the name of an entry of a list.
func keyOf(entry reflect.Value, key string) string {
	if entry.Kind() != reflect.Struct {
		return ""
	}
	for i := range entry.NumField() {
		if name, _, _ := strings.Cut(entry.Type().Field(i).Tag.Get("yaml"), ","); name == key && key != "" {
			return entry.Field(i).String()
		}
	}
	return ""
}
