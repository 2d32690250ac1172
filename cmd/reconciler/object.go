package main

import (
	"slices"
	"strings"

	"reconciler/spec"
)

// kindNames are what a kind may be called on the command line, in lower case;
// the first is the one that help and completion show.
var kindNames = map[spec.Kind][]string{
	spec.KindCluster:        {"cluster", "clusters"},
	spec.KindHost:           {"host", "hosts"},
	spec.KindStoragePool:    {"pool", "pools", "storagepool", "storagepools"},
	spec.KindImage:          {"image", "images"},
	spec.KindSecret:         {"secret", "secrets"},
	spec.KindNetwork:        {"network", "networks"},
	spec.KindDisk:           {"disk", "disks"},
	spec.KindVirtualMachine: {"vm", "vms", "virtualmachine", "virtualmachines"},
}

// parseKind understands vm, vms, VirtualMachine and the like.
func parseKind(s string) (spec.Kind, bool) {
	for _, k := range spec.Kinds {
		if slices.Contains(kindNames[k], strings.ToLower(s)) {
			return k, true
		}
	}
	return "", false
}

// object names one object, as KIND/NAME.
type object struct {
	kind spec.Kind
	name string
}

func (o object) String() string { return string(o.kind) + "/" + o.name }

func parseObject(s string) (object, error) {
	kind, name, ok := strings.Cut(s, "/")
	k, known := parseKind(kind)
	switch {
	case !ok || name == "":
		return object{}, usagef("%q is not KIND/NAME, as in vm/web-1", s)
	case !known:
		return object{}, usagef("%q is no kind of object (%s)", kind, strings.Join(kindList(), ", "))
	}
	return object{k, name}, nil
}

func kindList() []string {
	var names []string
	for _, k := range spec.Kinds {
		names = append(names, kindNames[k][0])
	}
	return names
}

// parseOf is for a command that takes objects of one kind only.
func parseOf(kind spec.Kind, s string) (string, error) {
	o, err := parseObject(s)
	if err != nil {
		return "", err
	}
	if o.kind != kind {
		return "", usagef("%s is not a %s; give %s/NAME", s, kind, kindNames[kind][0])
	}
	return o.name, nil
}
