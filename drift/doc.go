// Package drift says how the specs of a tree would read if they matched what
// really runs, and edits their YAML in place: comments, order, quoting and
// layout stay. It is pure.
package drift
