package spec

// Warnings are what is probably not meant, though it is valid: of the objects
// that were parsed from YAML, and, after Load, of the tree.
func (s *Set) Warnings() Errors {
	list := append(Errors(nil), s.warnings...)
	for _, e := range s.entries {
		if e.src.from == nil {
			continue
		}
		for _, w := range e.src.from.warnings {
			w.File = e.src.from.file
			list = append(list, w)
		}
	}
	list.sort()
	return list
}
