package forge

import (
	"context"

	"code.gitea.io/sdk/gitea"
)

// giteaAPI speaks Gitea's and Forgejo's API, release 1.20 and later.
type giteaAPI struct {
	net               *transport
	base, owner, name string
}

const giteaPage = 50 // MAX_RESPONSE_ITEMS is 50 where nobody changed it

func (g *giteaAPI) client(ctx context.Context) (*gitea.Client, error) {
	// The context belongs to the client; without a version it asks for none.
	return gitea.NewClient(g.base, gitea.SetHTTPClient(g.net.client), gitea.SetContext(ctx), gitea.SetGiteaVersion(""))
}

func (g *giteaAPI) status(ctx context.Context, commit, name string) (Status, bool, error) {
	c, err := g.client(ctx)
	if err != nil {
		return Status{}, false, err
	}
	for page := 1; page <= maxPages; page++ {
		list, _, err := c.ListStatuses(g.owner, g.name, commit, gitea.ListStatusesOption{ListOptions: gitea.ListOptions{Page: page, PageSize: giteaPage}})
		if err != nil {
			return Status{}, false, err
		}
		// Newest first, but those of one second in no order.
		var found *gitea.Status
		for _, s := range list {
			if s != nil && s.Context == name && (found == nil || s.ID > found.ID) {
				found = s
			}
		}
		if found != nil {
			return Status{Context: name, State: State(found.State), Description: found.Description, URL: found.TargetURL}, true, nil
		}
		if len(list) < giteaPage {
			break
		}
	}
	return Status{}, false, nil
}

func (g *giteaAPI) setStatus(ctx context.Context, commit string, s Status) error {
	c, err := g.client(ctx)
	if err != nil {
		return err
	}
	_, _, err = c.CreateStatus(g.owner, g.name, commit, gitea.CreateStatusOption{
		Context: s.Context, State: gitea.StatusState(s.State), Description: s.Description, TargetURL: s.URL,
	})
	return err
}

func (g *giteaAPI) me(ctx context.Context) (string, error) {
	c, err := g.client(ctx)
	if err != nil {
		return "", err
	}
	u, _, err := c.GetMyUserInfo()
	if err != nil {
		return "", err
	}
	return u.UserName, nil
}

func (g *giteaAPI) comments(ctx context.Context, pull, page int) ([]comment, bool, error) {
	c, err := g.client(ctx)
	if err != nil {
		return nil, false, err
	}
	list, _, err := c.ListIssueComments(g.owner, g.name, int64(pull), gitea.ListIssueCommentOptions{ListOptions: gitea.ListOptions{Page: page, PageSize: giteaPage}})
	out := make([]comment, 0, len(list))
	for _, m := range list {
		if m != nil && m.Poster != nil {
			out = append(out, comment{id: m.ID, author: m.Poster.UserName, body: m.Body, url: m.HTMLURL})
		}
	}
	return out, len(list) >= giteaPage, err
}

func (g *giteaAPI) addComment(ctx context.Context, pull int, body string) (string, error) {
	c, err := g.client(ctx)
	if err != nil {
		return "", err
	}
	m, _, err := c.CreateIssueComment(g.owner, g.name, int64(pull), gitea.CreateIssueCommentOption{Body: body})
	if err != nil {
		return "", err
	}
	return m.HTMLURL, nil
}

func (g *giteaAPI) editComment(ctx context.Context, _ int, id int64, body string) (string, error) {
	c, err := g.client(ctx)
	if err != nil {
		return "", err
	}
	m, _, err := c.EditIssueComment(g.owner, g.name, id, gitea.EditIssueCommentOption{Body: body})
	if err != nil {
		return "", err
	}
	return m.HTMLURL, nil
}

func (g *giteaAPI) findPull(ctx context.Context, head, base string) (*Pull, error) {
	c, err := g.client(ctx)
	if err != nil {
		return nil, err
	}
	for page := 1; page <= maxPages; page++ {
		list, _, err := c.ListRepoPullRequests(g.owner, g.name, gitea.ListPullRequestsOptions{
			ListOptions: gitea.ListOptions{Page: page, PageSize: giteaPage}, State: gitea.StateOpen,
		})
		if err != nil {
			return nil, err
		}
		for _, p := range list {
			// A fork's branch of the same name is not ours.
			if p != nil && p.Head != nil && p.Base != nil && p.Head.Ref == head && p.Base.Ref == base && p.Head.RepoID == p.Base.RepoID {
				out := giteaPull(p)
				return &out, nil
			}
		}
		if len(list) < giteaPage {
			break
		}
	}
	return nil, nil
}

func giteaPull(p *gitea.PullRequest) Pull {
	out := Pull{Number: int(p.Index), Title: p.Title, Body: p.Body, URL: p.HTMLURL, State: PullOpen}
	if p.Head != nil {
		out.Head, out.HeadCommit = p.Head.Ref, p.Head.Sha
	}
	if p.Base != nil {
		out.Base = p.Base.Ref
	}
	switch {
	case p.HasMerged:
		out.State = PullMerged
	case p.State != gitea.StateOpen:
		out.State = PullClosed
	}
	return out
}

func (g *giteaAPI) pull(ctx context.Context, number int) (Pull, error) {
	c, err := g.client(ctx)
	if err != nil {
		return Pull{}, err
	}
	p, _, err := c.GetPullRequest(g.owner, g.name, int64(number))
	if err != nil {
		return Pull{}, err
	}
	return giteaPull(p), nil
}

func (g *giteaAPI) openPull(ctx context.Context, p Pull) (Pull, error) {
	c, err := g.client(ctx)
	if err != nil {
		return Pull{}, err
	}
	made, _, err := c.CreatePullRequest(g.owner, g.name, gitea.CreatePullRequestOption{Head: p.Head, Base: p.Base, Title: p.Title, Body: p.Body})
	if err != nil {
		return Pull{}, err
	}
	return giteaPull(made), nil
}

func (g *giteaAPI) editPull(ctx context.Context, number int, title, body string) (Pull, error) {
	c, err := g.client(ctx)
	if err != nil {
		return Pull{}, err
	}
	p, _, err := c.EditPullRequest(g.owner, g.name, int64(number), gitea.EditPullRequestOption{Title: title, Body: &body})
	if err != nil {
		return Pull{}, err
	}
	return giteaPull(p), nil
}

func (g *giteaAPI) closePull(ctx context.Context, number int) error {
	c, err := g.client(ctx)
	if err != nil {
		return err
	}
	closed := gitea.StateClosed
	_, _, err = c.EditPullRequest(g.owner, g.name, int64(number), gitea.EditPullRequestOption{State: &closed})
	return err
}
