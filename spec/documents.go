package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"gopkg.in/yaml.v3"
)

// Documents reads the YAML documents of a file, without what they mean. An
// alias that stands for another document's anchor is an error, as it is in YAML.
func Documents(data []byte) ([]*yaml.Node, error) {
	var roots []*yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		root, err := next(dec)
		if errors.Is(err, io.EOF) {
			return roots, nil
		}
		if err != nil {
			return nil, err
		}
		if len(roots) > 0 {
			if list := borrowed(root); len(list) > 0 {
				return nil, fmt.Errorf("yaml: line %d: the anchor %s is another document's", list[0].Line, quote(list[0].Value))
			}
		}
		roots = append(roots, root)
	}
}

// Explain finds the place of an error of Documents, and what may be behind it.
func Explain(data []byte, err error) Error {
	line, col, msg, hint := explain(data, err)
	return Error{Line: line, Col: col, Msg: "not YAML: " + msg, Hint: hint}
}

// next reads one document. yaml.v3 is known to panic on input it did not
// expect; a file from Git must not end the daemon.
func next(dec *yaml.Decoder) (root *yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	root = new(yaml.Node)
	return root, dec.Decode(root)
}

// borrowed are the aliases of a document for anchors that are not its own:
// yaml.v3 forgets none of a file's, so that a value would depend on the order
// of documents.
func borrowed(root *yaml.Node) (list []*yaml.Node) {
	own := make(map[*yaml.Node]bool)
	var walk func(n *yaml.Node, visit func(*yaml.Node))
	walk = func(n *yaml.Node, visit func(*yaml.Node)) {
		visit(n)
		for _, c := range n.Content {
			walk(c, visit)
		}
	}
	walk(root, func(n *yaml.Node) {
		if n.Anchor != "" {
			own[n] = true
		}
	})
	walk(root, func(n *yaml.Node) {
		if n.Kind == yaml.AliasNode && !own[n.Alias] {
			list = append(list, n)
		}
	})
	return list
}
