package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reconciler/gitrepo"
	"reconciler/review"
	"reconciler/spec"
	"reconciler/trust"
)

func (a *app) ciApproveCmd() *cobra.Command {
	var f ciFlags
	var keyFile, shown string
	var valid time.Duration
	var pending bool
	c := &cobra.Command{
		Use:   "approve --key FILE",
		Short: "Sign the plan of a pull request",
		Long: `approve makes the plan of a pull request and signs, for every host, which
actions it may carry out when the branch has the tree of this merge. A host with
requireReviewedPlan runs nothing else of what a commit asks for.

It must be run by a job that the pull request cannot edit: whoever has the key
decides what runs. An incomplete plan is not signed. Nor is, with --shown, one
that is not the plan that was shown to the reviewer.

What was pending before is not approved again unless --pending says so.`,
		Example: `  reconciler ci approve --token-file token --key plan-key
  reconciler ci approve --pull 7 --key plan-key --shown plan.json --for 72h`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		Annotations:       map[string]string{formatsKey: "text"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if keyFile == "" {
				return usagef("--key must be given")
			}
			if err := checkValid(valid, review.MaxApproval); err != nil {
				return err
			}
			key, err := readKey(keyFile)
			if err != nil {
				return err
			}
			return a.withCI(f, func(j *ciJob) error {
				r, err := j.compute(cmd.Context())
				if err != nil {
					return err
				}
				if err := r.approvable(shown); err != nil {
					return err
				}
				records, err := j.approve(cmd.Context(), r, key, valid, pending)
				if err != nil {
					return err
				}
				for _, s := range records {
					fmt.Fprintf(a.stdout, "approved %s\n", s.Path)
				}
				if len(records) == 0 {
					fmt.Fprintln(a.stdout, "nothing to approve: the pull request asks no host for anything")
				}
				return nil
			})
		},
	}
	f.register(c)
	c.Flags().StringVar(&keyFile, "key", "", "`file` of the private SSH key that signs")
	c.Flags().StringVar(&shown, "shown", "", "`file` that ci plan --json wrote: refuse any other plan")
	c.Flags().DurationVar(&valid, "for", defaultValid, "how long the approval counts")
	c.Flags().BoolVar(&pending, "pending", false, "approve also what was pending before")
	must(c.RegisterFlagCompletionFunc("for", cobra.NoFileCompletions))
	return c
}

func (a *app) ciOverrideCmd() *cobra.Command {
	var f ciFlags
	var keyFile, cluster, reason string
	var valid time.Duration
	c := &cobra.Command{
		Use:   "override HOST DIGEST|ID… --key FILE --reason WHY",
		Short: "Sign the release of what a host holds",
		Long: `override signs that one host may carry out what it holds: the whole plan of a
digest, or actions by their full ids. The host finds the record with its next
pass. It counts if the key is one of the host's overrideKeys, for 24 hours at
most, and is written to the host's events with the reason.

A digest must be that of the host's plan when it finds the record.`,
		Example: `  reconciler ci override host1 sha256:ae0963d5… --key ~/.ssh/override --reason "the pool burns" --base main`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef("the host, and a digest or ids must be given")
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		Annotations:       map[string]string{formatsKey: "text"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if keyFile == "" {
				return usagef("--key must be given")
			}
			if err := checkValid(valid, review.MaxOverride); err != nil {
				return err
			}
			key, err := readKey(keyFile)
			if err != nil {
				return err
			}
			return a.withCI(f, func(j *ciJob) error {
				o := review.Override{Cluster: cluster, Host: args[0], Reason: reason, Signed: a.now(), Until: a.now().Add(valid)}
				if strings.HasPrefix(args[1], "sha256:") {
					o.Digest = args[1]
					if len(args) > 2 {
						return usagef("a digest stands alone")
					}
				} else {
					o.IDs = args[1:]
				}
				if err := j.completeOverride(cmd.Context(), &o); err != nil {
					return err
				}
				s, err := sign(o.Encode, o.Path, key, trust.NamespaceOverride)
				if err != nil {
					return &usageError{err.Error()}
				}
				if err := j.push(cmd.Context(), "override on "+o.Host, []review.Signed{s}); err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "signed %s, until %s\n", s.Path, when(o.Until))
				return nil
			})
		},
	}
	f.registerRepo(c)
	c.Flags().StringVar(&keyFile, "key", "", "`file` of the private SSH key that signs")
	c.Flags().StringVar(&cluster, "cluster", "", "`id` of the cluster (default that of --base)")
	c.Flags().StringVar(&reason, "reason", "", "`why`; kept in the host's events")
	c.Flags().DurationVar(&valid, "for", time.Hour, "how long the override counts")
	for _, name := range []string{"cluster", "reason", "for"} {
		must(c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	return c
}

func readKey(path string) (*trust.Key, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := trust.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// approvable says why a plan must not be signed.
func (r *ciResult) approvable(shown string) error {
	switch {
	case r.problem != "":
		return errors.New(r.problem)
	case len(r.errors) > 0:
		return r.errors
	case r.report.Refused != "":
		return fmt.Errorf("hosts would refuse the merge: %s", r.report.Refused)
	case r.moved:
		return fmt.Errorf("the pull request has a newer head than %s", shortRev(r.head.Hash))
	}
	if r.report.Incomplete {
		var why []string
		for _, h := range r.report.Hosts {
			if h.Problem != "" {
				why = append(why, h.Host+": "+h.Problem)
			}
		}
		return fmt.Errorf("an incomplete plan cannot be approved: %s", strings.Join(why, "; "))
	}
	if shown == "" {
		return nil
	}
	data, err := os.ReadFile(shown)
	if err != nil {
		return err
	}
	var was review.Report
	if err := json.Unmarshal(data, &was); err != nil {
		return fmt.Errorf("%s: %w", shown, err)
	}
	if was.Tree != r.report.Tree || was.Cluster != r.report.Cluster || !slices.EqualFunc(was.Hosts, r.report.Hosts, sameIDs) {
		return &hinted{errors.New("the plan is not the one that was shown any more"), "make it again with ci plan, and have it reviewed"}
	}
	return nil
}

// defaultValid is how long an approval counts where nothing is said.
const defaultValid = 7 * 24 * time.Hour

func checkValid(valid, most time.Duration) error {
	if valid < time.Minute || valid > most {
		return usagef("--for is between 1m and %s", most)
	}
	return nil
}

// approve signs a plan, and puts the records where the hosts look for them.
func (j *ciJob) approve(ctx context.Context, r *ciResult, key *trust.Key, valid time.Duration, pending bool) ([]review.Signed, error) {
	records, err := j.approvals(r, key, valid, pending)
	if err != nil {
		return nil, err
	}
	return records, j.push(ctx, "approve the plan of "+shortRev(r.head.Hash), records)
}

// approvals signs a record for every host that the pull request asks for
// anything.
func (j *ciJob) approvals(r *ciResult, key *trust.Key, valid time.Duration, pending bool) ([]review.Signed, error) {
	var list []review.Signed
	now := j.now()
	before := r.report.PendingIDs()
	for _, h := range r.report.Hosts {
		rec := review.Approval{
			Cluster: r.report.Cluster, Host: h.Host, Base: r.base.Hash, Tree: r.merge.Tree,
			IDs: h.IDs, Also: h.Also, State: h.State, Signed: now, Until: now.Add(valid),
		}
		if pending {
			rec.IDs = slices.Concat(h.IDs, before[h.Host])
		}
		if len(rec.IDs)+len(rec.Also) == 0 {
			continue
		}
		s, err := sign(rec.Encode, rec.Path, key, trust.NamespaceApproval)
		if err != nil {
			return nil, fmt.Errorf("approval for host %s: %w", h.Host, err)
		}
		list = append(list, s)
	}
	return list, nil
}

func sign(encode func() ([]byte, error), path func() string, key *trust.Key, namespace string) (s review.Signed, err error) {
	s.Path = path()
	if s.Data, err = encode(); err == nil {
		s.Signature, err = key.Sign(s.Data, namespace)
	}
	return s, err
}

// completeOverride fills in the cluster, and refuses a host that is not in it.
func (j *ciJob) completeOverride(ctx context.Context, o *review.Override) error {
	if o.Cluster != "" {
		return nil
	}
	if !isCommit(j.setup.base) {
		if _, err := j.source.Fetch(ctx); err != nil {
			return err
		}
	}
	base, err := j.specs.Commit(ctx, j.setup.base)
	if err != nil {
		return fmt.Errorf("--base: %w", err)
	}
	set, _, err := j.lastGood(ctx, base)
	if err != nil {
		return err
	}
	if set == nil || set.Get(spec.KindHost, o.Host) == nil {
		return fmt.Errorf("no Host/%s is declared", o.Host)
	}
	o.Cluster = set.ClusterID()
	return nil
}

// maxRecordTries bounds how often records are added anew because somebody else
// added some meanwhile.
const maxRecordTries = 10

// push adds records to those that are on the ref.
func (j *ciJob) push(ctx context.Context, message string, records []review.Signed) error {
	if len(records) == 0 {
		return nil
	}
	for try := 1; ; try++ {
		files, at, err := j.specs.ReadFiles(ctx, j.setup.approvals, 4*review.MaxRecords)
		if errors.Is(err, gitrepo.ErrRevisionMissing) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("the records so far: %w", err)
		}
		all, err := review.Add(files, j.now(), records...)
		if err != nil {
			return err
		}
		_, _, err = j.specs.PushFiles(ctx, j.setup.approvals, all, message, gitrepo.PushOptions{When: j.now(), From: &at.Hash})
		if err == nil || !errors.Is(err, gitrepo.ErrRefChanged) || try == maxRecordTries {
			return err
		}
		select { // those who collided once do so again, unless they wait differently
		case <-time.After(rand.N(time.Duration(try) * 100 * time.Millisecond)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sameIDs compares what was shown with what is to be approved.
func sameIDs(a, b review.Host) bool {
	return a.Host == b.Host && a.Digest == b.Digest && slices.Equal(a.IDs, b.IDs) && slices.Equal(a.Also, b.Also)
}
