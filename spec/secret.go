package spec

import (
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// A Secret is a file that sops wrote: the documents, with some of their values
// encrypted, and in each the mapping sops, which says how. A file may hold other
// kinds as well, as long as nothing of theirs is encrypted.

const sopsHint = "sops encrypt --in-place --encrypted-regex '^data$' --age RECIPIENT FILE"

// sealed says that sops encrypted a value.
func sealed(s string) bool { return strings.HasPrefix(s, "ENC[AES256_GCM,") }

// sealedEnvelope reports a document that sops encrypted as a whole, so that not
// even its kind can be read.
func (p *parser) sealedEnvelope(n *yaml.Node) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Value == "kind" && value.Kind == yaml.ScalarNode && sealed(value.Value) {
			p.lose(value.Line, value.Column, "the whole document is encrypted", "decrypt it, then "+sopsHint)
			return true
		}
	}
	return false
}

// sops holds what sops wrote about the file against the object.
func (p *parser) sops(o *Object, root, n *yaml.Node) {
	_, secret := o.Spec.(*Secret)
	if n == nil {
		if secret {
			p.at(root, "the Secret is not encrypted: sops is missing", sopsHint)
		}
		return
	}
	if n.Kind != yaml.MappingNode {
		p.at(n, "sops: expected a mapping, found "+describe(n), "only the sops program writes it")
		return
	}
	if !secret {
		return
	}
	fields := make(map[string]*yaml.Node)
	for i := 0; i+1 < len(n.Content); i += 2 {
		fields[n.Content[i].Value] = n.Content[i+1]
	}
	for _, name := range []string{"mac", "lastmodified"} {
		if f := fields[name]; f == nil || f.Kind != yaml.ScalarNode || f.Value == "" {
			p.at(n, "sops."+name+" is missing", "only the sops program writes it")
		}
	}
	for _, rule := range []string{"encrypted_comment_regex", "unencrypted_comment_regex"} {
		if f := fields[rule]; f != nil && f.Value != "" {
			p.at(f, "sops."+rule+" is not supported", sopsHint)
		}
	}
	if f := fields["key_groups"]; f != nil && len(f.Content) > 0 {
		p.at(f, "sops.key_groups are not supported", "encrypt for age recipients, without a threshold")
		return
	}
	if f := fields["age"]; f == nil || f.Kind != yaml.SequenceNode || len(f.Content) == 0 {
		p.at(n, "sops.age is empty: no host can decrypt the Secret", "add a host's recipient: sops rotate --in-place --add-age RECIPIENT FILE")
	}
}

// textOrSecret reports what is wrong with the choice between a text and a
// Secret. given are the fields of CloudInitPart, by place.
func (p *parser) textOrSecret(n *yaml.Node, given uint64, prefix string) {
	const (
		inline, secret, key = 1, 2, 4
		hint                = "give inline, or secret and key"
	)
	switch {
	case given == 0 && len(n.Content) == 0:
		p.at(n, prefix+" is empty", hint)
	case given&inline != 0 && given != inline:
		p.at(n, prefix+" has both inline text and a Secret", hint)
	case given == secret:
		p.at(n, prefix+".key is missing", "which key of the Secret?")
	case given == key:
		p.at(n, prefix+".secret is missing", "whose key?")
	}
}

// checkCloudInit holds the texts that cloud-init takes for YAML against that.
func (p *parser) checkCloudInit(n *yaml.Node, c *CloudInit) {
	for _, part := range c.Parts() {
		if part.Field != "userData" && part.Inline != "" && !IsMapping(part.Inline) {
			at := "spec.cloudInit." + part.Field + ".inline"
			p.errAt(n, at, 0, at+" is not a YAML mapping", "")
		}
		if part.Field == "userData" && part.Inline != "" {
			p.warnUserData(part.Inline)
		}
	}
}

// IsMapping says whether a text is one YAML mapping.
func IsMapping(text string) bool {
	root, err := next(yaml.NewDecoder(strings.NewReader(text)))
	return err == nil && len(root.Content) == 1 && root.Content[0].Kind == yaml.MappingNode
}

// checkKey holds the key that a machine names against the Secret.
func (s *Set) checkKey(errs Errors, e *entry, f *field, target *Secret) Errors {
	vm, ok := e.obj.Spec.(*VirtualMachine)
	if !ok {
		return errs
	}
	for _, part := range vm.CloudInit.Parts() {
		at := "spec.cloudInit." + part.Field
		if f.path != at+".secret" || part.Key == "" {
			continue
		}
		if _, ok := target.Data[part.Key]; ok {
			continue
		}
		keys := sorted(target.Data)
		hint := "it has " + strings.Join(keys[:min(len(keys), 12)], ", ")
		if near := nearest(part.Key, slices.Values(keys)); near != "" {
			hint = "did you mean " + near + "?"
		}
		errs = append(errs, e.fail(at+".key", 0, at+".key: Secret "+quote(part.Secret)+" has no key "+quote(part.Key), hint))
	}
	return errs
}
