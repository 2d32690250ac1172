package forge

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// push is what a webhook says of a push.
type push struct {
	refs          []string
	repository    string // as its forge calls it, or as another sender does; empty if it is not named
	paths         []string
	stranger      bool // who sent it is no forge
	defaultBranch string
}

// pushedRepo is a repository in a forge's words. The addresses have the path
// below which the forge is served, which its name has not.
type pushedRepo struct {
	FullName      string `json:"full_name"`
	Path          string `json:"path_with_namespace"`
	DefaultBranch string `json:"default_branch"`

	HTML  string `json:"html_url"`
	Clone string `json:"clone_url"`
	SSH   string `json:"ssh_url"`

	Web     string `json:"web_url"`
	GitHTTP string `json:"git_http_url"`
	GitSSH  string `json:"git_ssh_url"`
}

// readPush reads the body of any of the forges. Ours for other senders is
// {"ref": "refs/heads/BRANCH", "repository": "OWNER/NAME"}.
func readPush(body []byte) (push, error) {
	var in struct {
		Ref        json.RawMessage `json:"ref"`
		Event      json.RawMessage `json:"event_name"`
		Refs       json.RawMessage `json:"refs"`
		Repository json.RawMessage `json:"repository"`
		Project    json.RawMessage `json:"project"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return push{}, err
	}
	// Other events have other things under these names.
	var p push
	var ref, event string
	if json.Unmarshal(in.Ref, &ref) == nil {
		p.refs = []string{ref}
	}
	// GitLab's system hooks tell of all that a push has moved at once.
	if json.Unmarshal(in.Event, &event) == nil && event == "repository_update" {
		if json.Unmarshal(in.Refs, &p.refs) != nil {
			p.refs = nil
		}
	}
	if bytes.HasPrefix(in.Repository, []byte(`"`)) {
		p.stranger = true
		return p, json.Unmarshal(in.Repository, &p.repository)
	}
	var project, repository pushedRepo
	if json.Unmarshal(in.Project, &project) == nil && project.Path != "" {
		p.named(project.Path, project)
	} else if json.Unmarshal(in.Repository, &repository) == nil {
		p.named(repository.FullName, repository)
	}
	return p, nil
}

func (p *push) named(name string, r pushedRepo) {
	p.repository, p.defaultBranch = name, r.DefaultBranch
	for _, address := range []string{r.HTML, r.Clone, r.SSH, r.Web, r.GitHTTP, r.GitSSH} {
		if _, _, path := splitRepo(address); path != "" {
			p.paths = append(p.paths, plainRepo(path))
		}
	}
}

// concerns says whether the push is one to the branch of the repository.
func (p push) concerns(c ReceiverConfig) bool {
	branch := c.Branch
	if branch == "" {
		branch = p.defaultBranch
	}
	return p.to(c) && slices.ContainsFunc(p.refs, func(ref string) bool {
		name, ok := strings.CutPrefix(ref, "refs/heads/")
		return ok && name != "" && (branch == "" || name == branch)
	})
}

// to says whether the push is one to the repository. Paths are compared as a
// whole: group/sub/cluster and sub/cluster are two projects of one GitLab.
func (p push) to(c ReceiverConfig) bool {
	if c.Repository == "" || p.repository == "" {
		return true
	}
	for _, name := range append(p.paths, p.repository) {
		if strings.EqualFold(name, c.Repository) {
			return true
		}
	}
	// Who writes OWNER/NAME by hand may leave out where the forge is served.
	owner, name, ok := strings.Cut(p.repository, "/")
	return p.stranger && c.Kind == "" && ok && owner != "" && name != "" &&
		strings.HasSuffix(strings.ToLower(c.Repository), "/"+strings.ToLower(p.repository))
}
