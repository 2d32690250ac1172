package forge

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/google/go-github/v88/github"
)

// githubAPI speaks the REST API of github.com and of GitHub Enterprise Server.
type githubAPI struct {
	net               *transport
	base, owner, name string
}

const githubPage = 100

func (g *githubAPI) client() (*github.Client, error) {
	// Rate limits are the caller's business: an answer says when to come back,
	// and the library would remember that for a token that was replaced.
	return github.NewClient(github.WithHTTPClient(g.net.client), github.WithDisableRateLimitCheck(), github.WithEnterpriseURLs(g.base+"/", g.base+"/"))
}

func (g *githubAPI) status(ctx context.Context, commit, name string) (Status, bool, error) {
	c, err := g.client()
	if err != nil {
		return Status{}, false, err
	}
	for page := 1; page <= maxPages; page++ {
		// The combined status has the newest of each context.
		all, _, err := c.Repositories.GetCombinedStatus(ctx, g.owner, g.name, commit, &github.ListOptions{Page: page, PerPage: githubPage})
		if err != nil {
			return Status{}, false, err
		}
		if all == nil {
			return Status{}, false, errors.New("no statuses in it")
		}
		for _, s := range all.Statuses {
			if s.GetContext() == name {
				return Status{Context: name, State: State(s.GetState()), Description: s.GetDescription(), URL: s.GetTargetURL()}, true, nil
			}
		}
		if len(all.Statuses) < githubPage {
			break
		}
	}
	return Status{}, false, nil
}

func (g *githubAPI) setStatus(ctx context.Context, commit string, s Status) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	in := github.RepoStatus{State: github.Ptr(string(s.State)), Context: &s.Context, Description: &s.Description}
	if s.URL != "" {
		in.TargetURL = &s.URL
	}
	_, _, err = c.Repositories.CreateStatus(ctx, g.owner, g.name, commit, in)
	return err
}

// me asks REST, which refuses the token of a workflow or of an app; GraphQL
// answers those, too.
func (g *githubAPI) me(ctx context.Context) (string, error) {
	c, err := g.client()
	if err != nil {
		return "", err
	}
	u, resp, err := c.Users.Get(ctx, "")
	if err == nil {
		return u.GetLogin(), nil
	}
	if resp == nil || resp.StatusCode != http.StatusForbidden || ctx.Value(answerKey{}).(*answer).retryAfter > 0 {
		return "", err
	}
	address := strings.TrimSuffix(c.BaseURL(), "v3/") + "graphql"
	req, err := c.NewRequest(ctx, http.MethodPost, address, map[string]string{"query": "query{viewer{login}}"})
	if err != nil {
		return "", err
	}
	var out struct {
		Data struct {
			Viewer struct {
				Login string `json:"login"`
			} `json:"viewer"`
		} `json:"data"`
	}
	if _, err := c.Do(req, &out); err != nil {
		return "", err
	}
	return out.Data.Viewer.Login, nil
}

func (g *githubAPI) comments(ctx context.Context, pull, page int) ([]comment, bool, error) {
	c, err := g.client()
	if err != nil {
		return nil, false, err
	}
	list, _, err := c.Issues.ListComments(ctx, g.owner, g.name, pull, &github.IssueListCommentsOptions{ListOptions: github.ListOptions{Page: page, PerPage: githubPage}})
	out := make([]comment, 0, len(list))
	for _, m := range list {
		out = append(out, comment{id: m.GetID(), author: m.GetUser().GetLogin(), body: m.GetBody(), url: m.GetHTMLURL()})
	}
	return out, len(list) >= githubPage, err
}

func (g *githubAPI) addComment(ctx context.Context, pull int, body string) (string, error) {
	c, err := g.client()
	if err != nil {
		return "", err
	}
	m, _, err := c.Issues.CreateComment(ctx, g.owner, g.name, pull, &github.IssueComment{Body: &body})
	return m.GetHTMLURL(), err
}

func (g *githubAPI) editComment(ctx context.Context, _ int, id int64, body string) (string, error) {
	c, err := g.client()
	if err != nil {
		return "", err
	}
	m, _, err := c.Issues.EditComment(ctx, g.owner, g.name, id, &github.IssueComment{Body: &body})
	return m.GetHTMLURL(), err
}

func (g *githubAPI) findPull(ctx context.Context, head, base string) (*Pull, error) {
	c, err := g.client()
	if err != nil {
		return nil, err
	}
	list, _, err := c.PullRequests.List(ctx, g.owner, g.name, &github.PullRequestListOptions{
		State: "open", Head: g.owner + ":" + head, Base: base, ListOptions: github.ListOptions{PerPage: githubPage},
	})
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		// The filter goes by the owner, who may have another fork.
		if p.GetHead().GetRef() == head && p.GetBase().GetRef() == base && p.GetHead().GetRepo().GetID() == p.GetBase().GetRepo().GetID() {
			out := githubPull(p)
			return &out, nil
		}
	}
	return nil, nil
}

func githubPull(p *github.PullRequest) Pull {
	out := Pull{
		Number: p.GetNumber(), Head: p.GetHead().GetRef(), Base: p.GetBase().GetRef(), HeadCommit: p.GetHead().GetSHA(),
		Title: p.GetTitle(), Body: p.GetBody(), URL: p.GetHTMLURL(), State: PullOpen,
	}
	switch {
	case p.GetMerged() || !p.GetMergedAt().IsZero():
		out.State = PullMerged
	case p.GetState() != "open":
		out.State = PullClosed
	}
	return out
}

func (g *githubAPI) pull(ctx context.Context, number int) (Pull, error) {
	c, err := g.client()
	if err != nil {
		return Pull{}, err
	}
	p, _, err := c.PullRequests.Get(ctx, g.owner, g.name, number)
	if err != nil {
		return Pull{}, err
	}
	return githubPull(p), nil
}

func (g *githubAPI) openPull(ctx context.Context, p Pull) (Pull, error) {
	c, err := g.client()
	if err != nil {
		return Pull{}, err
	}
	made, _, err := c.PullRequests.Create(ctx, g.owner, g.name, &github.NewPullRequest{Title: &p.Title, Head: &p.Head, Base: &p.Base, Body: &p.Body})
	if err != nil {
		return Pull{}, err
	}
	return githubPull(made), nil
}

func (g *githubAPI) editPull(ctx context.Context, number int, title, body string) (Pull, error) {
	c, err := g.client()
	if err != nil {
		return Pull{}, err
	}
	p, _, err := c.PullRequests.Edit(ctx, g.owner, g.name, number, &github.PullRequest{Title: &title, Body: &body})
	if err != nil {
		return Pull{}, err
	}
	return githubPull(p), nil
}

func (g *githubAPI) closePull(ctx context.Context, number int) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	_, _, err = c.PullRequests.Edit(ctx, g.owner, g.name, number, &github.PullRequest{State: github.Ptr("closed")})
	return err
}
