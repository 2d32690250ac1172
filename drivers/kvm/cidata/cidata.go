// Package cidata makes the volume that cloud-init's data source NoCloud reads:
// a file system labelled cidata with user-data, meta-data and network-config.
// It is made in memory, because secrets may be in it.
package cidata

import (
	"errors"

	"gopkg.in/yaml.v3"
)

// Seed is what a guest is told at its first boot.
type Seed struct {
	// InstanceID says whether a guest has seen the seed before: cloud-init
	// repeats what it does once for each instance when it changes.
	InstanceID string
	Hostname   string
	UserData   string
	// MetaData is a YAML mapping, or empty. What it says wins over InstanceID
	// and Hostname.
	MetaData      string
	NetworkConfig string // empty: the guest's own default
}

// ErrMetaData does not repeat the text, which may be secret.
var ErrMetaData = errors.New("the meta-data is not a YAML mapping")

// Image is the volume, an ISO 9660 image. It follows from the seed alone.
func (s *Seed) Image() ([]byte, error) {
	meta, err := s.metaData()
	if err != nil {
		return nil, err
	}
	// In the order of their names, as a directory must be.
	files := []file{{"meta-data", "METADATA.;1", meta}}
	if s.NetworkConfig != "" {
		files = append(files, file{"network-config", "NETWORK.;1", []byte(s.NetworkConfig)})
	}
	return image("cidata", append(files, file{"user-data", "USERDATA.;1", []byte(s.UserData)})), nil
}

func (s *Seed) metaData() (text []byte, err error) {
	defer func() {
		if recover() != nil { // yaml.v3 is known to panic on input it did not expect
			text, err = nil, ErrMetaData
		}
	}()
	mapping := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	if s.MetaData != "" {
		var root yaml.Node
		if yaml.Unmarshal([]byte(s.MetaData), &root) != nil || len(root.Content) != 1 || root.Content[0].Kind != yaml.MappingNode {
			return nil, ErrMetaData
		}
		mapping = root.Content[0]
	}
	said := map[string]bool{}
	for i := 0; i < len(mapping.Content); i += 2 {
		said[mapping.Content[i].Value] = true
	}
	for _, add := range []struct{ key, value string }{{"instance-id", s.InstanceID}, {"local-hostname", s.Hostname}} {
		if !said[add.key] {
			mapping.Content = append(mapping.Content,
				&yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: add.key},
				&yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: add.value, Style: yaml.DoubleQuotedStyle})
		}
	}
	text, err = yaml.Marshal(mapping)
	if err != nil {
		return nil, ErrMetaData
	}
	return text, nil
}
