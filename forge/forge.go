// Package forge talks to the program that hosts a repository, Gitea, GitHub or
// GitLab: commit statuses, the one comment on a pull request, pull requests of
// our own, and the webhooks it sends.
package forge

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Kind is whose API is spoken.
type Kind string

// The kinds. Forgejo speaks Gitea's.
const (
	Gitea  Kind = "gitea"
	GitHub Kind = "github"
	GitLab Kind = "gitlab"
)

// Kinds lists them.
var Kinds = []Kind{Gitea, GitHub, GitLab}

// DefaultTimeout bounds one operation, however many calls it takes.
const DefaultTimeout = 30 * time.Second

// Config says where a repository is hosted and who we are there.
type Config struct {
	Kind Kind
	// URL is the forge's address as in a browser, https://git.example.org for
	// instance, with the path below which it is served. GitHub's and GitLab's
	// own if empty.
	URL        string
	Repository string // OWNER/NAME; on GitLab GROUP/…/NAME
	// TokenFile holds the token. It is read for every operation, so that it can
	// be replaced at any time; of "user:token" the token counts.
	TokenFile string
	// Token is asked where TokenFile is empty.
	Token   func() (string, error)
	CAFile  string        // PEM certificates trusted beside the system's; read for every operation
	Timeout time.Duration // of one operation; DefaultTimeout if 0
}

// Locate fills in what the address of a Git repository tells: URL and
// Repository where they are empty. Of an unknown kind the repository is the
// whole path: it may be GitLab's, whose groups nest.
func (c Config) Locate(repo string) Config {
	scheme, host, path := splitRepo(repo)
	if host == "" {
		return c
	}
	path = plainRepo(path)
	twoNames := c.Kind == Gitea || c.Kind == GitHub
	if c.URL == "" {
		// A forge is served over https where Git is spoken over ssh, whose port
		// says nothing about that of https.
		base := &url.URL{Scheme: "https", Host: host}
		if strings.HasPrefix(scheme, "http") {
			base.Scheme = scheme
			if parts := strings.Split(path, "/"); twoNames && len(parts) > 2 {
				base.Path = "/" + strings.Join(parts[:len(parts)-2], "/")
			}
		}
		c.URL = base.String()
	}
	if c.Repository == "" {
		if u, err := url.Parse(c.URL); err == nil {
			path = strings.TrimPrefix(path, strings.Trim(u.Path, "/")+"/")
		}
		if parts := strings.Split(path, "/"); twoNames && len(parts) > 2 {
			path = strings.Join(parts[len(parts)-2:], "/")
		}
		c.Repository = path
	}
	return c
}

// plainRepo is the path of a repository without what an address may have around it.
func plainRepo(path string) string { return strings.TrimSuffix(strings.Trim(path, "/"), ".git") }

// scpLike is Git's short form of an ssh address, user@host:path.
var scpLike = regexp.MustCompile(`^(?:[^@/]+@)?([^:/]+):([^/].*)$`)

// splitRepo takes the address of a repository apart; the host is empty for one
// on this machine.
func splitRepo(repo string) (scheme, host, path string) {
	if !strings.Contains(repo, "://") {
		if m := scpLike.FindStringSubmatch(repo); m != nil {
			return "ssh", m[1], m[2]
		}
		return "", "", ""
	}
	u, err := url.Parse(repo)
	if err != nil {
		return "", "", ""
	}
	switch u.Scheme {
	case "http", "https":
		return u.Scheme, u.Host, u.Path
	case "ssh", "git+ssh":
		return "ssh", u.Hostname(), u.Path
	}
	return "", "", ""
}

// Forge is one repository on a forge. Its methods may be called from any
// number of goroutines.
type Forge struct {
	cfg Config
	api backend
	net *transport
}

// backend speaks one API. What all have in common is done above it.
type backend interface {
	// status is the one in force for a context; ok says whether there is one.
	status(ctx context.Context, commit, name string) (s Status, ok bool, err error)
	setStatus(ctx context.Context, commit string, s Status) error
	// me is how the forge calls us where it names the author of a comment.
	me(ctx context.Context) (string, error)
	// comments are read page by page, from 1.
	comments(ctx context.Context, pull, page int) (list []comment, more bool, err error)
	addComment(ctx context.Context, pull int, body string) (url string, err error)
	editComment(ctx context.Context, pull int, id int64, body string) (url string, err error)
	// findPull looks among the open ones between branches of this repository.
	findPull(ctx context.Context, head, base string) (*Pull, error)
	pull(ctx context.Context, number int) (Pull, error)
	openPull(ctx context.Context, p Pull) (Pull, error)
	editPull(ctx context.Context, number int, title, body string) (Pull, error)
	closePull(ctx context.Context, number int) error
}

type comment struct {
	id                int64
	author, body, url string
}

// repositoryPath is OWNER/NAME, for GitLab with more groups before it.
var repositoryPath = regexp.MustCompile(`^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+$`)

// Open checks the configuration. It does not call the forge and does not read
// the token.
func Open(c Config) (*Forge, error) {
	if c.URL == "" {
		c.URL = map[Kind]string{GitHub: "https://github.com", GitLab: "https://gitlab.com"}[c.Kind]
	}
	u, err := url.Parse(c.URL)
	switch {
	case !slices.Contains(Kinds, c.Kind):
		return nil, fmt.Errorf("forge: kind %q is none of gitea, github, gitlab", c.Kind)
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("forge: %q is not the http(s) address of a forge", redactURL(c.URL))
	case u.User != nil:
		return nil, errors.New("forge: credentials must not stand in the address; use a token file")
	case !repositoryPath.MatchString(c.Repository) || strings.Contains("/"+c.Repository+"/", "/../") || strings.Contains("/"+c.Repository+"/", "/./"):
		return nil, fmt.Errorf("forge: repository %q is not of the form owner/name", c.Repository)
	case c.Kind != GitLab && strings.Count(c.Repository, "/") != 1:
		return nil, fmt.Errorf("forge: repository %q is not of the form owner/name, which is all that %s has", c.Repository, c.Kind)
	case c.TokenFile == "" && c.Token == nil:
		return nil, errors.New("forge: no token file is given")
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	base := strings.TrimRight(u.Scheme+"://"+u.Host+u.Path, "/")
	f := &Forge{cfg: c}
	owner, name, _ := strings.Cut(c.Repository, "/")
	switch c.Kind {
	case Gitea:
		f.net = newTransport(u, c, "Authorization", "token ")
		f.api = &giteaAPI{net: f.net, base: base, owner: owner, name: name}
	case GitHub:
		if u.Host == "github.com" {
			u = &url.URL{Scheme: u.Scheme, Host: "api.github.com"}
			base = u.String()
		}
		f.net = newTransport(u, c, "Authorization", "Bearer ")
		f.api = &githubAPI{net: f.net, base: base, owner: owner, name: name}
	case GitLab:
		f.net = newTransport(u, c, "PRIVATE-TOKEN", "")
		f.api = &gitlabAPI{net: f.net, base: base, project: c.Repository}
	}
	return f, nil
}

func redactURL(s string) string {
	if u, err := url.Parse(s); err == nil {
		return u.Redacted()
	}
	return "the address given"
}

// Kind is whose API is spoken.
func (f *Forge) Kind() Kind { return f.cfg.Kind }

// Repository is OWNER/NAME as the forge has it.
func (f *Forge) Repository() string { return f.cfg.Repository }

// State of a commit status.
type State string

// The states. GitLab shows Error as a failure.
const (
	Pending State = "pending"
	Success State = "success"
	Failure State = "failure"
	Errored State = "error"
)

// Status is a commit status.
type Status struct {
	Context     string // who says so, reconciler/HOST for instance
	State       State
	Description string // one line; what is too long for the forge is cut at a word
	URL         string // where to read more; may be empty
}

// descriptionLimit is how many characters of a description the forge keeps.
// Gitea has no limit; what is longer than GitLab's does not fit its page.
var descriptionLimit = map[Kind]int{Gitea: 255, GitHub: 140, GitLab: 255}

var commitHash = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)

// SetStatus sets the status of a commit. Where the same one is in force
// already, nothing is written.
func (f *Forge) SetStatus(ctx context.Context, commit string, s Status) error {
	if !commitHash.MatchString(commit) || s.Context == "" {
		return fmt.Errorf("forge: status %q of %q: no commit or no context", s.Context, commit)
	}
	switch s.State {
	case Pending, Success, Failure, Errored:
	default:
		return fmt.Errorf("forge: %q is no state of a commit", s.State)
	}
	if s.State == Errored && f.cfg.Kind == GitLab {
		s.State = Failure // which it would read back as
	}
	s.Description = cut(s.Description, descriptionLimit[f.cfg.Kind])
	return f.do(ctx, "set the status of commit "+commit[:12], func(ctx context.Context) error {
		old, ok, err := f.api.status(ctx, commit, s.Context)
		if err != nil {
			return err
		}
		if ok && old == s {
			return nil
		}
		return f.api.setStatus(ctx, commit, s)
	})
}

// cut makes one line of at most n characters of a text.
func cut(text string, n int) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	text = strings.ToValidUTF8(text, "\uFFFD")
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	r := []rune(text)[:n-1]
	if at := strings.LastIndexByte(string(r), ' '); at > len(string(r))/2 {
		return strings.TrimRight(string(r)[:at], " ,;:") + "…"
	}
	return string(r) + "…"
}

// commentLimit is how many bytes a comment may have. GitHub and GitLab count
// characters, of which there are no more than bytes; Gitea has no limit of its
// own, and nobody reads more than this.
var commentLimit = map[Kind]int{Gitea: 65536, GitHub: 65536, GitLab: 1000000}

// CommentLimit is how many bytes a comment may have, its marker included.
func (f *Forge) CommentLimit() int { return commentLimit[f.cfg.Kind] }

// maxPages bounds a search through pages of comments.
const maxPages = 100

// Comment posts the one comment of ours that carries marker, or updates it.
// The marker is the comment's first line, an HTML comment for instance; one in
// a comment of somebody else's counts for nothing.
func (f *Forge) Comment(ctx context.Context, pull int, marker, body string) (address string, err error) {
	if marker == "" || strings.Contains(marker, "\n") {
		return "", fmt.Errorf("forge: %q is no marker of a comment", marker)
	}
	if !strings.HasPrefix(body, marker) {
		body = marker + "\n" + body
	}
	if len(body) > f.CommentLimit() {
		return "", fmt.Errorf("forge: a comment of %d bytes is too long: %d are allowed", len(body), f.CommentLimit())
	}
	err = f.do(ctx, fmt.Sprintf("comment on pull request %d", pull), func(ctx context.Context) error {
		old, err := f.ownComment(ctx, pull, marker)
		switch {
		case err != nil:
			return err
		case old == nil:
			address, err = f.api.addComment(ctx, pull, body)
		case old.body == body:
			address = old.url
		default:
			address, err = f.api.editComment(ctx, pull, old.id, body)
		}
		return err
	})
	return address, err
}

// ownComment finds the comment of ours that starts with marker; nil if there
// is none.
func (f *Forge) ownComment(ctx context.Context, pull int, marker string) (*comment, error) {
	me, err := f.api.me(ctx)
	if err != nil {
		return nil, err
	}
	if me == "" {
		return nil, errors.New("it does not say whose the token is")
	}
	seen := int64(-1)
	for page := 1; page <= maxPages; page++ {
		list, more, err := f.api.comments(ctx, pull, page)
		if err != nil {
			return nil, err
		}
		for i := range list {
			if strings.EqualFold(list[i].author, me) && strings.HasPrefix(list[i].body, marker) {
				return &list[i], nil
			}
		}
		// Some releases of Gitea take no notice of the page and always answer
		// with all.
		if !more || len(list) == 0 || list[0].id == seen {
			return nil, nil
		}
		seen = list[0].id
	}
	return nil, fmt.Errorf("it has more than %d pages of comments", maxPages)
}

// States of a pull request.
const (
	PullOpen   = "open"
	PullClosed = "closed"
	PullMerged = "merged"
)

// Pull is a pull request between two branches of the repository.
type Pull struct {
	Number      int
	Head, Base  string // branches
	Title, Body string
	URL         string // its page
	State       string // PullOpen, PullClosed, PullMerged
	HeadCommit  string
}

// FindPull returns the open pull request from head to base, nil if there is
// none. One from a fork is none, whatever its branch is called.
func (f *Forge) FindPull(ctx context.Context, head, base string) (p *Pull, err error) {
	err = f.do(ctx, "find the pull request of "+head, func(ctx context.Context) error {
		p, err = f.api.findPull(ctx, head, base)
		return err
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// GetPull reads a pull request.
func (f *Forge) GetPull(ctx context.Context, number int) (p Pull, err error) {
	err = f.do(ctx, fmt.Sprintf("read pull request %d", number), func(ctx context.Context) error {
		p, err = f.api.pull(ctx, number)
		return err
	})
	return p, err
}

// EnsurePull opens the pull request from p.Head to p.Base, or gives the open
// one p's title and body.
func (f *Forge) EnsurePull(ctx context.Context, p Pull) (out Pull, err error) {
	if p.Head == "" || p.Base == "" || p.Title == "" {
		return Pull{}, errors.New("forge: a pull request needs two branches and a title")
	}
	err = f.do(ctx, "open the pull request of "+p.Head, func(ctx context.Context) error {
		old, err := f.api.findPull(ctx, p.Head, p.Base)
		switch {
		case err != nil:
			return err
		case old == nil:
			out, err = f.api.openPull(ctx, p)
		case old.Title == p.Title && sameText(old.Body, p.Body):
			out = *old
		default:
			out, err = f.api.editPull(ctx, old.Number, p.Title, p.Body)
		}
		return err
	})
	return out, err
}

// sameText compares texts as a forge keeps them: it may trim them and write
// the ends of lines its own way.
func sameText(a, b string) bool {
	clean := func(s string) string { return strings.TrimSpace(strings.ReplaceAll(s, "\r\n", "\n")) }
	return clean(a) == clean(b)
}

// closing marks the comment that says why a pull request was closed, so that a
// crash in between leaves no second one.
const closing = "<!-- reconciler: closed -->"

// ClosePull closes a pull request with a comment that says why. One that is
// closed or merged stays as it is.
func (f *Forge) ClosePull(ctx context.Context, number int, why string) error {
	p, err := f.GetPull(ctx, number)
	if err != nil || p.State != PullOpen {
		return err
	}
	if why != "" {
		if _, err := f.Comment(ctx, number, closing, why); err != nil {
			return err
		}
	}
	return f.do(ctx, fmt.Sprintf("close pull request %d", number), func(ctx context.Context) error {
		return f.api.closePull(ctx, number)
	})
}
