package config

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"reconciler/policy"
	"reconciler/spec"
)

// Tenant limits what a directory of the repository may declare.
type Tenant struct {
	Name       string   `yaml:"name" doc:"Name of the tenant, for messages."`
	Path       string   `yaml:"path" doc:"Directory, from the root of the repository; what is declared below it is the tenant's. Of two that contain a file, the longer counts."`
	Kinds      []string `yaml:"kinds" doc:"Kinds it may declare, of VirtualMachine, Disk, Image, Network and Secret; VirtualMachine and Disk if empty."`
	Pools      []string `yaml:"pools" doc:"StoragePools that its disks may use."`
	Networks   []string `yaml:"networks" doc:"Networks, declared outside of all tenants, that its machines may use."`
	Images     []string `yaml:"images" doc:"Images, declared outside of all tenants, that it may use."`
	Hosts      []string `yaml:"hosts" doc:"Hosts its machines may run on; all if empty."`
	Bridges    []string `yaml:"bridges" doc:"Bridges that its own networks may name, of allowed.bridges. None if empty."`
	ImageFiles string   `yaml:"imageFiles" doc:"Directory below imageDir that its own images may take files from; the tenant's name if empty."`
	Quota      Quota    `yaml:"quota"`
}

// Quota bounds the sum of what a tenant declares; 0 or empty is no bound.
type Quota struct {
	Machines int    `yaml:"machines" doc:"Machines, those switched off included; as many as it likes if 0 or absent. So for the others."`
	CPUs     int    `yaml:"cpus" doc:"Virtual CPUs of all machines."`
	Memory   string `yaml:"memory" doc:"Memory of all machines, as 64Gi."`
	Disks    int    `yaml:"disks" doc:"Disks."`
	Images   int    `yaml:"images" doc:"Images of its own; each has limits.imageSize at most."`
	Storage  string `yaml:"storage" doc:"Size of all disks, as 2Ti."`
}

// LoadTenants reads the tenants of a configuration file.
func LoadTenants(file string) ([]policy.Tenant, error) {
	c, err := Load(file)
	if err != nil {
		return nil, err
	}
	return c.PolicyTenants(), nil
}

// PolicyTenants is the tenants as policy takes them, of a configuration in
// which Check finds nothing.
func (c *Config) PolicyTenants() []policy.Tenant {
	list := make([]policy.Tenant, 0, len(c.Tenants))
	for i := range c.Tenants {
		t, _ := c.Tenants[i].policy()
		list = append(list, t)
	}
	return list
}

// policy converts a tenant, and says what is wrong with it; keys begin with a dot.
func (t *Tenant) policy() (policy.Tenant, []Problem) {
	var list []Problem
	add := func(key, format string, args ...any) {
		list = append(list, Problem{key, fmt.Sprintf(format, args...)})
	}
	p := policy.Tenant{
		Name: t.Name, Path: t.Path, Pools: t.Pools, Networks: t.Networks, Images: t.Images, Hosts: t.Hosts,
		Bridges: t.Bridges, ImageFiles: t.ImageFiles,
		Quota: policy.Quota{Machines: t.Quota.Machines, CPUs: t.Quota.CPUs, Disks: t.Quota.Disks, Images: t.Quota.Images},
	}
	if !isPlainPath(p.Path) {
		add(".path", "%q is not a directory of the repository, such as tenants/acme", t.Path)
	}
	if p.ImageFiles == "" {
		p.ImageFiles = t.Name
	} else if !isPlainPath(p.ImageFiles) {
		add(".imageFiles", "%q is not a directory below imageDir", t.ImageFiles)
	}
	known := policy.TenantKinds()
	for _, k := range t.Kinds {
		if !slices.Contains(known, spec.Kind(k)) {
			add(".kinds", "%q is none of the kinds that a tenant can have: %v", k, known)
		}
		p.Kinds = append(p.Kinds, spec.Kind(k))
	}
	if len(p.Kinds) == 0 {
		p.Kinds = []spec.Kind{spec.KindVirtualMachine, spec.KindDisk}
	}
	for _, n := range []struct {
		key string
		n   int
	}{{"machines", t.Quota.Machines}, {"cpus", t.Quota.CPUs}, {"disks", t.Quota.Disks}, {"images", t.Quota.Images}} {
		if n.n < 0 {
			add(".quota."+n.key, "%d is less than 0", n.n)
		}
	}
	for _, s := range []struct {
		key, text string
		to        *spec.Size
	}{{"memory", t.Quota.Memory, &p.Quota.Memory}, {"storage", t.Quota.Storage, &p.Quota.Storage}} {
		if s.text == "" {
			continue
		}
		n, err := spec.ParseSize(s.text)
		if err != nil {
			add(".quota."+s.key, "%q is not a size, such as 64Gi", s.text)
		}
		*s.to = n
	}
	return p, list
}

// isPlainPath says whether a path stays where it starts, and is written in one way.
func isPlainPath(p string) bool {
	return p != "" && p != "." && path.Clean(p) == p && !path.IsAbs(p) && p != ".." && !strings.HasPrefix(p, "../") && !strings.ContainsAny(p, "\\\x00")
}

func isName(s string) bool {
	const chars = "abcdefghijklmnopqrstuvwxyz0123456789-"
	return s != "" && len(s) <= 63 && strings.Trim(s, chars) == "" && s[0] != '-' && s[len(s)-1] != '-'
}

func (c *Config) checkTenants() []Problem {
	var list []Problem
	names, paths := map[string]bool{}, map[string]string{}
	for i := range c.Tenants {
		t := &c.Tenants[i]
		at := fmt.Sprintf("tenants[%d]", i)
		p, problems := t.policy()
		switch {
		case !isName(t.Name):
			list = append(list, Problem{at, "it needs a name: lower-case letters, digits and -"})
		case names[t.Name]:
			list = append(list, Problem{at + ".name", fmt.Sprintf("there is another tenant %q", t.Name)})
		}
		folded := strings.ToLower(p.Path)
		if other, ok := paths[folded]; ok && p.Path != "" {
			list = append(list, Problem{at + ".path", fmt.Sprintf("tenant %s has the same path", other)})
		}
		names[t.Name], paths[folded] = true, t.Name
		for _, q := range problems {
			list = append(list, Problem{at + q.Key, q.Msg})
		}
	}
	return list
}
