package spec

// Warnings are what is probably not meant, though it is valid: of the objects
// that were parsed from YAML, and, after Load, of the tree.
func (s *Set) Warnings() Errors {
	list := append(Errors(nil), s.warnings...)
	for _, e := range s.entries {
		if e.src.from != nil {
			list = append(list, e.src.from.warnings...)
		}
	}
	list.sort()
	return list
}
