package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"reconciler/gitrepo"
	"reconciler/policy"
	"reconciler/review"
	"reconciler/spec"
	"reconciler/status"
	"reconciler/trust"
)

// ciJob is the open repositories of one job.
type ciJob struct {
	setup  ciSetup
	path   string
	policy ciPolicy
	now    func() time.Time

	*repos
}

// openCI opens the repositories with caches below dir.
func openCI(s ciSetup, path, dir string, p ciPolicy, now func() time.Time) (*ciJob, error) {
	branch := s.base
	if isCommit(branch) {
		branch = ""
	}
	r, err := openRepos(s.gitConfig(s.repo, branch, path, filepath.Join(dir, "specs")),
		s.gitConfig(s.statusRepo, "", "", filepath.Join(dir, "status")), filepath.Join(dir, "parsed"))
	if err != nil {
		return nil, err
	}
	return &ciJob{setup: s, path: path, policy: p, now: now, repos: r}, nil
}

func isCommit(s string) bool { return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == "" }

// ciResult is what a job found out. Report is nil where Problem or Errors say
// why there is none.
type ciResult struct {
	base, head, merge gitrepo.Commit
	moved             bool // the pull request has a newer head by now
	report            *review.Report
	errors            spec.Errors // of the merge
	warnings          spec.Errors // of the merge that base has not
	problem           string      // why it cannot be merged
}

// compute makes the plan. The error is for what is nobody's fault in the pull
// request.
func (j *ciJob) compute(ctx context.Context) (*ciResult, error) {
	r := &ciResult{}
	var err error
	if err = j.revisions(ctx, r); err != nil {
		return nil, err
	}
	r.merge, err = j.specs.Merge(ctx, r.base.Hash, r.head.Hash)
	var conflict *gitrepo.ConflictError
	if errors.As(err, &conflict) {
		r.problem = conflict.Error()
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("merge: %w", err)
	}
	base, note, err := j.lastGood(ctx, r.base)
	if err != nil {
		return nil, err
	}
	merge, err := j.source.Load(ctx, r.merge.Hash)
	if err == nil {
		err = j.checkTenants(base, merge)
	}
	if errors.As(err, &r.errors) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	r.warnings = newWarnings(base, merge)
	hosts, err := j.hosts(ctx, base, merge)
	if err != nil {
		return nil, err
	}
	if note != "" {
		for i := range hosts {
			hosts[i].Notes = append(hosts[i].Notes, note)
		}
	}
	now := j.now()
	r.report = review.Compare(review.Input{
		BaseRevision: r.base.Hash, HeadRevision: r.head.Hash, Tree: r.merge.Tree,
		Base: base, Merge: merge, Hosts: hosts, Restrain: j.policy.restrain(now), Now: now,
	})
	return r, nil
}

// newWarnings are those that the pull request brings.
func newWarnings(base, merge *spec.Set) (list spec.Errors) {
	if base == nil {
		return merge.Warnings()
	}
	known := map[string]bool{}
	for _, e := range base.Warnings() {
		known[e.File+"\x00"+e.Msg] = true
	}
	for _, e := range merge.Warnings() {
		if !known[e.File+"\x00"+e.Msg] {
			list = append(list, e)
		}
	}
	return list
}

// revisions finds base and head.
func (j *ciJob) revisions(ctx context.Context, r *ciResult) (err error) {
	if !isCommit(j.setup.base) {
		if _, err := j.source.Fetch(ctx); err != nil {
			return err
		}
	}
	if r.base, err = j.specs.Commit(ctx, j.setup.base); err != nil {
		return fmt.Errorf("--base: %w", err)
	}
	var tip gitrepo.Commit
	if at := j.setup.headRef(); at != "" {
		// A server need not give a bare commit; with the ref it comes along.
		if tip, err = j.specs.Commit(ctx, at); err != nil && j.setup.head == "" {
			return fmt.Errorf("the head of pull request %d: %w", j.setup.pull, err)
		}
	}
	want := j.setup.head
	if want == "" && j.setup.pull != 0 && j.setup.pull == j.setup.env.pull {
		want = j.setup.env.head
	}
	switch {
	case want != "":
		r.head, err = j.specs.Commit(ctx, want)
	case tip.Hash != "":
		r.head = tip
	default:
		return usagef("--head or --pull must be given")
	}
	if err != nil {
		return fmt.Errorf("--head: %w", err)
	}
	r.moved = tip.Hash != "" && tip.Hash != r.head.Hash
	return nil
}

// maxBack bounds how far back a base that loads is looked for.
const maxBack = 100

// lastGood is the specs of the base, or, where they do not load, of the newest
// revision before it that does: the hosts are still there. The set is nil if
// there is none.
func (j *ciJob) lastGood(ctx context.Context, base gitrepo.Commit) (*spec.Set, string, error) {
	at := base
	for range maxBack {
		set, err := j.source.Load(ctx, at.Hash)
		var errs spec.Errors
		switch {
		case err == nil && at.Hash == base.Hash:
			return set, "", nil
		case err == nil:
			return set, fmt.Sprintf("the specs of the base do not load; compared with %s, the newest revision that does", shortRev(at.Hash)), nil
		case !errors.As(err, &errs):
			return nil, "", err
		}
		if len(at.Parents) == 0 {
			return nil, "", nil
		}
		if at, err = j.specs.Commit(ctx, at.Parents[0]); err != nil {
			return nil, "", fmt.Errorf("before %s: %w", shortRev(base.Hash), err)
		}
	}
	return nil, "", fmt.Errorf("none of the last %d revisions before %s loads", maxBack, shortRev(base.Hash))
}

func (j *ciJob) checkTenants(base, merge *spec.Set) error {
	if err := policy.CheckTenants(merge, j.policy.tenants); err != nil {
		return err
	}
	if base == nil {
		return nil
	}
	return policy.CheckMoves(base, merge, j.policy.tenants)
}

// hosts reads what is known of every host of either side.
func (j *ciJob) hosts(ctx context.Context, base, merge *spec.Set) ([]review.HostInput, error) {
	var list []review.HostInput
	known := map[string]bool{} // of the merge
	for _, was := range hostsOf(base) {
		now := sameHost(merge, was)
		if now == nil {
			list = append(list, review.HostInput{Host: was.Meta.Name, Gone: true})
			continue
		}
		known[now.Meta.Name] = true
		in := review.HostInput{Host: now.Meta.Name, Was: was.Meta.Name}
		h := was.Spec.(*spec.Host)
		if err := j.readHost(ctx, &in, base, h); err != nil {
			return nil, err
		}
		if now.Spec.(*spec.Host).SigningKey != h.SigningKey {
			in.Notes = append(in.Notes, "the pull request changes its signing key; its report was checked against the base's")
		}
		if in.Was != in.Host {
			in.Notes = append(in.Notes, "it was called "+in.Was+", and stays the same host; what names it outside of the repository, as host: in its configuration, can follow later")
		}
		list = append(list, in)
	}
	for _, o := range hostsOf(merge) {
		if !known[o.Meta.Name] {
			list = append(list, review.HostInput{Host: o.Meta.Name, New: true, Notes: []string{"the pull request adds it; the plan assumes that nothing is on it yet"}})
		}
	}
	slices.SortFunc(list, func(a, b review.HostInput) int { return strings.Compare(a.Host, b.Host) })
	return list, nil
}

func hostsOf(set *spec.Set) []*spec.Object {
	if set == nil {
		return nil
	}
	return set.Of(spec.KindHost)
}

// sameHost finds a host in another tree: by its identity, else by its name.
func sameHost(set *spec.Set, h *spec.Object) *spec.Object {
	if o := set.ByUID(h.UID); o != nil && o.Kind == spec.KindHost {
		return o
	}
	return set.Get(spec.KindHost, h.Meta.Name)
}

// readHost reads the report of a host. Whatever is wrong with it is the host's
// Problem; the error is for the repository not answering.
func (j *ciJob) readHost(ctx context.Context, in *review.HostInput, base *spec.Set, h *spec.Host) error {
	at := j.setup.statusRefs + in.Was
	c, err := j.reports.Commit(ctx, at)
	if errors.Is(err, gitrepo.ErrRevisionMissing) {
		in.Problem = "it has reported nothing: there is no " + at + " (does its agent run? reconciler events on the host)"
		return nil
	}
	if err != nil {
		return fmt.Errorf("the report of host %s: %w", in.Host, err)
	}
	in.State = c.Hash
	r, err := j.report(ctx, c, in.Was, base, h)
	if err != nil {
		in.Problem = err.Error()
		return nil
	}
	var known bool
	if in.Base, known = r.Base(); !known {
		in.Problem = "its agent is too old to report what it last applied"
		return nil
	}
	in.Have, in.ObservedAt = r.State(), r.ObservedAt
	return nil
}

// report reads and judges one report. The key is that of the base: a pull
// request that changes it cannot vouch for itself.
func (j *ciJob) report(ctx context.Context, c gitrepo.Commit, host string, base *spec.Set, h *spec.Host) (r status.Recorded, err error) {
	if h.SigningKey == "" {
		return r, fmt.Errorf("the base has no spec.signingKey for Host/%s, so its report cannot be checked (merge what reconciler key prints on the host)", host)
	}
	keys, err := trust.ParsePublicKeys([]string{h.SigningKey})
	if err != nil {
		return r, fmt.Errorf("spec.signingKey of Host/%s in the base: %w", host, err)
	}
	payload, signature, err := j.reports.Signed(ctx, c.Hash)
	if err != nil {
		return r, fmt.Errorf("its report cannot be read: %w", err)
	}
	now := j.now()
	if _, err := keys.Verify(payload, signature, trust.NamespaceGit, now); err != nil {
		return r, fmt.Errorf("the signature of its report %s does not count: %w", shortRev(c.Hash), err)
	}
	data, err := j.reports.ReadRef(ctx, c.Hash, status.StateFile)
	if err != nil {
		return r, fmt.Errorf("its report cannot be read: %w", err)
	}
	if r, err = status.ReadState(data); err != nil {
		return r, err
	}
	age := now.Sub(r.ObservedAt)
	switch {
	case r.Host != host || r.Cluster != base.ClusterID():
		return r, fmt.Errorf("its report is of host %q of cluster %q", r.Host, r.Cluster)
	case age > j.setup.maxAge:
		return r, fmt.Errorf("its report is %s old, and at most %s are allowed (does its agent run? reconciler status on the host)", age.Truncate(time.Second), j.setup.maxAge)
	case age < -maxSkew:
		return r, fmt.Errorf("its report is of %s, which is in the future", when(r.ObservedAt))
	}
	return r, nil
}

// maxSkew is how far the clocks of a host and of a job may differ.
const maxSkew = 5 * time.Minute

// tempDir is a directory for the caches of one job.
func tempDir() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp("", "reconciler-ci-")
	return dir, func() { _ = os.RemoveAll(dir) }, err
}
