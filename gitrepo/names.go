package gitrepo

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"
)

// CleanBranch returns a branch's name without refs/heads/, which may be written
// before it; empty is the remote's HEAD.
func CleanBranch(s string) (string, error) {
	name := strings.TrimPrefix(s, "refs/heads/")
	switch {
	case s == "":
		return "", nil
	case strings.HasPrefix(name, "refs/"):
		return s, fmt.Errorf("%q is no branch; give its name, as main", s)
	case !validRef("refs/heads/" + name):
		return s, fmt.Errorf("%q is not the name of a branch", s)
	}
	return name, nil
}

// CleanPath returns a directory of a repository in the one form that trees are
// searched for: ./clusters/demo and clusters/demo/ are clusters/demo. Empty is
// the whole repository.
func CleanPath(s string) (string, error) {
	for name := range strings.SplitSeq(s, "/") {
		if name != "" && name != "." && checkName([]byte(name)) != "" {
			return s, fmt.Errorf("%q is not a directory of the repository, such as clusters/demo", s)
		}
	}
	return strings.Trim(path.Clean("/"+s), "/"), nil
}

// CheckURL says what is wrong with the address of a repository that can be told
// without opening it.
func CheckURL(url string) error {
	if p, ok := localPath(url); ok && !filepath.IsAbs(p) {
		out := "give a URL, or the whole path"
		if full, err := filepath.Abs(p); err == nil && p == url {
			out += ", which is " + full + " from here"
		}
		return fmt.Errorf("%q is not an absolute path (%s)", url, out)
	}
	return nil
}
