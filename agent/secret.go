package agent

import (
	"errors"
	"fmt"

	"reconciler/claim"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Secrets decrypts what the tree says in secret.
type Secrets interface {
	// Value decrypts the file that a Secret stands in, and returns one value of
	// it. No error contains any part of one.
	Value(file, name, key string) (claim.Secret, error)
}

var errNoSecrets = errors.New("this agent decrypts no Secrets")

// secrets decrypts what the start of a machine needs, by the path of what names
// it. It comes before anything is done to the machine: one that runs goes on
// when its Secret cannot be read. The values live as long as the action.
func (a *Agent) secrets(want *reconcile.Object) (map[string]claim.Secret, error) {
	vm, ok := want.Spec.(*spec.VirtualMachine)
	if !ok {
		return nil, nil
	}
	values := map[string]claim.Secret{}
	for _, part := range vm.CloudInit.Parts() {
		if part.Secret == "" {
			continue
		}
		path := "spec.cloudInit." + part.Field
		value, err := a.secret(want, path, part.Key)
		if err != nil {
			return nil, fmt.Errorf("%s: Secret/%s (%s): %w", path, part.Secret, a.fileOf(spec.KindSecret, part.Secret), err)
		}
		if part.Field != "userData" && !spec.IsMapping(value.Reveal()) {
			return nil, fmt.Errorf("%s: key %q of Secret/%s (%s) is not a YAML mapping", path, part.Key, part.Secret, a.fileOf(spec.KindSecret, part.Secret))
		}
		values[path] = value
	}
	return values, nil
}

// secret decrypts the value that a path of a machine names.
func (a *Agent) secret(want *reconcile.Object, path, key string) (claim.Secret, error) {
	if a.cfg.Secrets == nil {
		return claim.Secret{}, errNoSecrets
	}
	for _, r := range want.Refs {
		if s, ok := r.To.Spec.(*spec.Secret); ok && r.Path == path+".secret" {
			return a.cfg.Secrets.Value(s.File, r.To.Name, key)
		}
	}
	return claim.Secret{}, errors.New("it is not in the tree")
}

// fileOf is the file of the tree in force that declares an object.
func (a *Agent) fileOf(kind spec.Kind, name string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set != nil {
		if o := a.set.Get(kind, name); o != nil {
			file, _, _ := o.Position("")
			return file
		}
	}
	return "in no file"
}
