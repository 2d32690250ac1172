package spec

import (
	"bytes"
	"fmt"

	"gopkg.in/yaml.v3"
)

// Marshal writes objects as the YAML documents that Parse reads.
func Marshal(objects ...*Object) ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	for _, o := range objects {
		if o.Kind == KindSecret {
			return nil, fmt.Errorf("Secret %s: only sops can write it", quote(o.Meta.Name))
		}
		err := enc.Encode(struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       Kind   `yaml:"kind"`
			Metadata   Meta   `yaml:"metadata"`
			Spec       any    `yaml:"spec"`
		}{APIVersion, o.Kind, o.Meta, o.Spec})
		if err != nil {
			return nil, err
		}
	}
	if err := enc.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
