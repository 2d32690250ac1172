package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"gitlab.com/gitlab-org/api/client-go"
)

// gitlabAPI speaks version 4 of GitLab's API.
type gitlabAPI struct {
	net           *transport
	base, project string
}

// gitlabPage is small because a note may have a million characters.
const gitlabPage = 20

func (g *gitlabAPI) client() (*gitlab.Client, error) {
	return gitlab.NewAuthSourceClient(gitlab.Unauthenticated{}, gitlab.WithBaseURL(g.base), gitlab.WithHTTPClient(g.net.client), gitlab.WithoutRetries())
}

// states are ours in GitLab's words; error is failed, too.
var gitlabStates = map[State]gitlab.BuildStateValue{
	Pending: gitlab.Pending, Success: gitlab.Success, Failure: gitlab.Failed, Errored: gitlab.Failed,
}

func (g *gitlabAPI) status(ctx context.Context, commit, name string) (Status, bool, error) {
	s, ok, err := g.newest(ctx, commit, name)
	out := Status{Context: name, Description: s.Description, URL: s.TargetURL}
	switch s.Status {
	case "failed", "canceled":
		out.State = Failure
	case "success":
		out.State = Success
	default:
		out.State = Pending
	}
	return out, ok, err
}

func (g *gitlabAPI) newest(ctx context.Context, commit, name string) (gitlab.CommitStatus, bool, error) {
	c, err := g.client()
	if err != nil {
		return gitlab.CommitStatus{}, false, err
	}
	list, _, err := c.Commits.GetCommitStatuses(g.project, commit, &gitlab.GetCommitStatusesOptions{
		Name: &name, ListOptions: gitlab.ListOptions{PerPage: gitlabPage},
	}, gitlab.WithContext(ctx))
	if err != nil {
		return gitlab.CommitStatus{}, false, err
	}
	// One for each pipeline that has the name.
	var found gitlab.CommitStatus
	for _, s := range list {
		if s != nil && s.Name == name && s.ID > found.ID {
			found = *s
		}
	}
	return found, found.ID != 0, nil
}

func (g *gitlabAPI) setStatus(ctx context.Context, commit string, s Status) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	in := &gitlab.SetCommitStatusOptions{State: gitlabStates[s.State], Name: &s.Context, Description: &s.Description}
	if s.URL != "" {
		in.TargetURL = &s.URL
	}
	_, resp, err := c.Commits.SetCommitStatus(g.project, commit, in, gitlab.WithContext(ctx))
	// A status that waits cannot be made to wait again, not even for its
	// description: 400, "Cannot transition status". It stands as it is wanted.
	if err != nil && resp != nil && resp.StatusCode == http.StatusBadRequest && s.State == Pending {
		refused := *ctx.Value(answerKey{}).(*answer)
		old, ok, readErr := g.newest(ctx, commit, s.Context)
		if readErr == nil && ok && old.Status == string(gitlab.Pending) {
			return nil
		}
		*ctx.Value(answerKey{}).(*answer) = refused
	}
	return err
}

func (g *gitlabAPI) me(ctx context.Context) (string, error) {
	c, err := g.client()
	if err != nil {
		return "", err
	}
	u, err := got(c.Users.CurrentUser(gitlab.WithContext(ctx)))
	if err != nil {
		return "", err
	}
	return u.Username, nil
}

func (g *gitlabAPI) note(pull int, id int64) string {
	return fmt.Sprintf("%s/%s/-/merge_requests/%d#note_%d", g.base, g.project, pull, id)
}

func (g *gitlabAPI) comments(ctx context.Context, pull, page int) ([]comment, bool, error) {
	c, err := g.client()
	if err != nil {
		return nil, false, err
	}
	list, _, err := c.Notes.ListMergeRequestNotes(g.project, int64(pull), &gitlab.ListMergeRequestNotesOptions{
		Sort: gitlab.Ptr("asc"), OrderBy: gitlab.Ptr("created_at"), ListOptions: gitlab.ListOptions{Page: int64(page), PerPage: gitlabPage},
	}, gitlab.WithContext(ctx))
	out := make([]comment, 0, len(list))
	for _, n := range list {
		if n != nil {
			out = append(out, comment{id: n.ID, author: n.Author.Username, body: n.Body, url: g.note(pull, n.ID)})
		}
	}
	return out, len(list) >= gitlabPage, err
}

func (g *gitlabAPI) addComment(ctx context.Context, pull int, body string) (string, error) {
	c, err := g.client()
	if err != nil {
		return "", err
	}
	n, err := got(c.Notes.CreateMergeRequestNote(g.project, int64(pull), &gitlab.CreateMergeRequestNoteOptions{Body: &body}, gitlab.WithContext(ctx)))
	if err != nil {
		return "", err
	}
	return g.note(pull, n.ID), nil
}

func (g *gitlabAPI) editComment(ctx context.Context, pull int, id int64, body string) (string, error) {
	c, err := g.client()
	if err != nil {
		return "", err
	}
	_, _, err = c.Notes.UpdateMergeRequestNote(g.project, int64(pull), id, &gitlab.UpdateMergeRequestNoteOptions{Body: &body}, gitlab.WithContext(ctx))
	return g.note(pull, id), err
}

// got takes a success without what it is about for an error.
func got[T any](v *T, _ *gitlab.Response, err error) (*T, error) {
	if err == nil && v == nil {
		err = errors.New("nothing in it")
	}
	return v, err
}

func (g *gitlabAPI) findPull(ctx context.Context, head, base string) (*Pull, error) {
	c, err := g.client()
	if err != nil {
		return nil, err
	}
	list, _, err := c.MergeRequests.ListProjectMergeRequests(g.project, &gitlab.ListProjectMergeRequestsOptions{
		State: gitlab.Ptr("opened"), SourceBranch: &head, TargetBranch: &base, ListOptions: gitlab.ListOptions{PerPage: gitlabPage},
	}, gitlab.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	for _, m := range list {
		if m != nil && m.SourceBranch == head && m.TargetBranch == base && m.SourceProjectID == m.TargetProjectID {
			out := gitlabPull(m)
			return &out, nil
		}
	}
	return nil, nil
}

func gitlabPull(m *gitlab.BasicMergeRequest) Pull {
	out := Pull{
		Number: int(m.IID), Head: m.SourceBranch, Base: m.TargetBranch, HeadCommit: m.SHA,
		Title: m.Title, Body: m.Description, URL: m.WebURL, State: PullOpen,
	}
	switch m.State {
	case "merged":
		out.State = PullMerged
	case "closed":
		out.State = PullClosed
	}
	return out
}

func (g *gitlabAPI) pull(ctx context.Context, number int) (Pull, error) {
	c, err := g.client()
	if err != nil {
		return Pull{}, err
	}
	m, err := got(c.MergeRequests.GetMergeRequest(g.project, int64(number), nil, gitlab.WithContext(ctx)))
	if err != nil {
		return Pull{}, err
	}
	return gitlabPull(&m.BasicMergeRequest), nil
}

func (g *gitlabAPI) openPull(ctx context.Context, p Pull) (Pull, error) {
	c, err := g.client()
	if err != nil {
		return Pull{}, err
	}
	m, err := got(c.MergeRequests.CreateMergeRequest(g.project, &gitlab.CreateMergeRequestOptions{
		Title: &p.Title, Description: &p.Body, SourceBranch: &p.Head, TargetBranch: &p.Base,
	}, gitlab.WithContext(ctx)))
	if err != nil {
		return Pull{}, err
	}
	return gitlabPull(&m.BasicMergeRequest), nil
}

func (g *gitlabAPI) editPull(ctx context.Context, number int, title, body string) (Pull, error) {
	return g.update(ctx, number, &gitlab.UpdateMergeRequestOptions{Title: &title, Description: &body})
}

func (g *gitlabAPI) closePull(ctx context.Context, number int) error {
	_, err := g.update(ctx, number, &gitlab.UpdateMergeRequestOptions{StateEvent: gitlab.Ptr("close")})
	return err
}

func (g *gitlabAPI) update(ctx context.Context, number int, in *gitlab.UpdateMergeRequestOptions) (Pull, error) {
	c, err := g.client()
	if err != nil {
		return Pull{}, err
	}
	m, err := got(c.MergeRequests.UpdateMergeRequest(g.project, int64(number), in, gitlab.WithContext(ctx)))
	if err != nil {
		return Pull{}, err
	}
	return gitlabPull(&m.BasicMergeRequest), nil
}
