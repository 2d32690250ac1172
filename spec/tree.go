package spec

import (
	"io/fs"
	"path"
	"strings"
	"unicode/utf8"
)

// Bounds of a tree.
const (
	MaxFiles     = 250_000   // spec files
	MaxEntries   = 1_000_000 // of any sort
	MaxDepth     = 128       // of directories
	MaxTreeBytes = 512 << 20 // of all spec files
)

// EntryType is what a tree has under a name.
type EntryType int

const (
	FileEntry EntryType = iota
	DirEntry
	LinkEntry
	SubmoduleEntry
	OtherEntry // a device, a pipe
)

// Use is what becomes of an entry.
type Use int

const (
	PassOver Use = iota
	ReadFile
	ReadDir
)

// Refusal is why a tree with an entry is refused. Reason is one of a few.
type Refusal struct{ Reason, Msg, Hint string }

// Reasons of a Refusal.
const (
	ReasonName      = "unsafe name"
	ReasonNotUTF8   = "name is not UTF-8"
	ReasonLink      = "symbolic link"
	ReasonSubmodule = "submodule"
	ReasonOther     = "not a regular file"
)

// UseOf says what becomes of an entry, whoever lists the tree, so that a tree
// which validates is one that hosts read. name is its path from the root of the
// repository; target tells where a link leads. What is no spec and leads nowhere
// else is harmless, whatever it is called.
func UseOf(name string, t EntryType, target func() (string, error)) (Use, *Refusal) {
	base := path.Base(name)
	isSpec := specName(base)
	if strings.HasPrefix(base, ".") || t == FileEntry && !isSpec {
		return PassOver, nil
	}
	if reason := UnfitName(base); reason != "" {
		return PassOver, &Refusal{reason, "the name is not fit for a message: it is not UTF-8, or has a backslash or a control character", "rename it"}
	}
	switch {
	case t == DirEntry:
		return ReadDir, nil
	case t == FileEntry:
		return ReadFile, nil
	case t == LinkEntry && isSpec:
		return PassOver, &Refusal{ReasonLink, "the file is a symbolic link, which is not followed", linkHint}
	case t == LinkEntry:
		return PassOver, badLink(name, target)
	case t == SubmoduleEntry && isSpec:
		return PassOver, &Refusal{ReasonSubmodule, "the file is a submodule, which is not read", linkHint}
	case isSpec:
		return PassOver, &Refusal{ReasonOther, "not a regular file", linkHint}
	}
	return PassOver, nil
}

const linkHint = "put the file itself in the tree"

// badLink says what is wrong with a symbolic link. One inside the repository is
// harmless: what it leads to is read under its own name.
func badLink(name string, target func() (string, error)) *Refusal {
	to, err := target()
	switch {
	case err != nil:
		return &Refusal{ReasonLink, "a symbolic link that cannot be read: " + reason(err), linkHint}
	case path.IsAbs(to), !utf8.ValidString(to), !fs.ValidPath(path.Join(path.Dir(name), to)):
		return &Refusal{ReasonLink, "a symbolic link that leads out of the tree", linkHint}
	}
	return nil
}

// UnfitName says why a name would mislead in a message; empty if it does not.
func UnfitName(name string) string {
	if !utf8.ValidString(name) {
		return ReasonNotUTF8
	}
	for _, r := range name {
		if r < 0x20 || r == 0x7f || r == '\\' || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return ReasonName
		}
	}
	return ""
}

// IsSpecFile says whether a file of the tree, by its slash-separated path, is
// read: *.yaml and *.yml, but nothing whose name or folder starts with a dot
// (.git, .github, .schema).
func IsSpecFile(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(part, ".") {
			return false
		}
	}
	return specName(path.Base(name))
}

func specName(base string) bool {
	ext := path.Ext(base)
	return ext == ".yaml" || ext == ".yml"
}

// almostSpec says that a file is called as a spec, but in capitals.
func almostSpec(base string) bool {
	return !specName(base) && specName(strings.ToLower(base)) && !strings.HasPrefix(base, ".")
}
