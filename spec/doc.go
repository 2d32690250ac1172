// Package spec is the language users write: the YAML kinds, their strict
// loading, defaults, validation, identity and JSON Schema. It does no I/O of its
// own: Parse takes bytes, Load the file system it is given.
package spec
