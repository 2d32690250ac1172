package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reconciler/forge"
	"reconciler/reconcile"
	"reconciler/review"
	"reconciler/trust"
)

func (a *app) ciPlanCmd() *cobra.Command {
	var f ciFlags
	var detailed bool
	var jsonFile, statusContext, shown, keyFile string
	var valid time.Duration
	c := &cobra.Command{
		Use:   "plan",
		Short: "Show what a pull request would do, and tell the forge",
		Long: `plan shows what the merge of a pull request would do on every host: what the
pull request causes, and apart from it what is pending or has drifted already.
The merge is made here; one with conflicts, or specs that do not load, are an
error.

What hosts are like is read from what they last reported. A report counts if it
is signed with the key that the base has for the host (spec.signingKey of its
Host) and is not older than --max-age. Without it the plan is incomplete, which
is exit code 4 and a failing commit status.

In a job of GitHub Actions, Gitea Actions or GitLab CI nothing but a token needs
to be given; with it, plan posts or updates one comment on the pull request and
sets the commit status of its head. Elsewhere, name --forge and --pull, too.

--approve-key signs what was shown, before the status says success: the plan is
then approved by whoever may merge the pull request. See ci approve for what
that means, and for approving it apart.`,
		Example: `  reconciler ci plan --token-file token
  reconciler ci plan --repo https://forge.example/ops/cluster.git --token-file token --base main --head feature
  reconciler ci plan --repo https://forge.example/ops/cluster.git --token-file token --base main --pull 7 --forge gitea`,
		Args:        noArgs,
		Annotations: map[string]string{formatsKey: "text, json, markdown, github", detailedKey: "yes", incompleteKey: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if err := checkValid(valid, review.MaxApproval); err != nil {
				return err
			}
			return a.withCI(f, func(j *ciJob) error {
				post, err := j.setup.poster()
				if err != nil {
					return err
				}
				p := ciPost{job: j, context: statusContext, shown: shown, valid: valid}
				if keyFile != "" {
					if p.key, err = readKey(keyFile); err != nil {
						return err
					}
				}
				if post != nil {
					p.forge = post
				}
				r, err := p.plan(ctx)
				if r == nil {
					return err
				}
				perr := a.printCI(j, r, jsonFile)
				for _, line := range p.told {
					fmt.Fprintln(a.stderr, cleanLines(line))
				}
				if perr != nil || err != nil {
					return errors.Join(perr, err)
				}
				return r.exit(detailed)
			})
		},
	}
	f.register(c)
	c.Flags().StringVar(&statusContext, "status-context", "reconciler/plan", "`name` of the commit status")
	c.Flags().StringVar(&jsonFile, "json", "", "`file` that the whole plan is written to as JSON, beside what -o says")
	c.Flags().StringVar(&shown, "url", "", "`address` of the whole plan, for the comment and the status (default the job's)")
	c.Flags().StringVar(&keyFile, "approve-key", "", "`file` of the private SSH key that signs the plan, if it is complete")
	c.Flags().DurationVar(&valid, "for", defaultValid, "how long the approval counts")
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "tell by the exit code what the pull request would do")
	for _, name := range []string{"status-context", "url", "for"} {
		must(c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	return c
}

// withCI opens what a job needs, and closes it after use.
func (a *app) withCI(f ciFlags, use func(*ciJob) error) (err error) {
	s, err := a.ciSetup(f)
	if err != nil {
		return err
	}
	p, err := a.ciPolicy(f.tenants)
	if err != nil {
		return err
	}
	dir, remove, err := tempDir()
	if err != nil {
		return err
	}
	defer remove()
	j, err := openCI(s, a.flags.path, dir, p, a.now)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.close()) }()
	return use(j)
}

// exit is the outcome for the job.
func (r *ciResult) exit(detailed bool) error {
	switch {
	case r.problem != "" || len(r.errors) > 0 || r.report.Refused != "":
		return exitCode(exitError)
	case r.report.Incomplete:
		return exitCode(exitIncomplete)
	case !detailed:
		return nil
	case r.report.Count(reconcile.Ready) > 0:
		return exitCode(exitReady)
	case r.report.Count(reconcile.Waiting)+r.report.Count(reconcile.Held)+r.report.Count(reconcile.Blocked) > 0:
		return exitCode(exitWaiting)
	}
	return nil
}

// printCI writes the outcome to standard output, and to the files that are asked
// for.
func (a *app) printCI(j *ciJob, r *ciResult, jsonFile string) error {
	if jsonFile != "" && r.report != nil {
		if err := writeTo(jsonFile, func(w io.Writer) error { return printData(w, "json", r.report) }); err != nil {
			return err
		}
	}
	format := a.flags.output
	if format == "github" {
		a.annotate(r)
		if s := j.setup.env.summary; s != "" {
			if err := appendTo(s, r.markdown(maxSummary, "")); err != nil {
				return err
			}
		}
	}
	if format != "github" {
		printSpecErrors(a.stderr, format, severityWarning, "", r.warnings)
	}
	switch {
	case format == "markdown":
		_, err := io.WriteString(a.stdout, r.markdown(maxSummary, ""))
		return err
	case r.problem != "":
		fmt.Fprintln(a.stderr, cleanLines("reconciler: "+r.problem))
		return nil
	case len(r.errors) > 0:
		if format != "github" {
			printSpecErrors(a.stderr, format, severityError, "", r.errors)
		}
		return nil
	case format == "json":
		return printData(a.stdout, format, r.report)
	}
	return r.report.WriteText(a.stdout)
}

// maxSummary is what GitHub takes for the summary of a step, in bytes.
const maxSummary = 1 << 20

// annotate writes workflow commands. They are data for the forge, so they go
// where it looks: standard output.
func (a *app) annotate(r *ciResult) {
	for _, e := range r.errors {
		fmt.Fprintln(a.stdout, annotation(severityError, e))
	}
	for _, e := range r.warnings {
		fmt.Fprintln(a.stdout, annotation(severityWarning, e))
	}
	if r.problem != "" {
		fmt.Fprintln(a.stdout, "::error::"+escapeData(r.problem))
	}
	if r.report == nil {
		return
	}
	for _, h := range r.report.Hosts {
		if h.Problem != "" {
			fmt.Fprintln(a.stdout, "::error title=incomplete plan::"+escapeData(h.Host+": "+h.Problem))
		}
	}
}

func writeTo(path string, write func(io.Writer) error) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return write(f)
}

func appendTo(path, text string) (err error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.WriteString(f, text)
	return err
}

// markdown is the outcome as a comment of at most limit bytes.
func (r *ciResult) markdown(limit int, more string) string {
	switch {
	case r.problem != "":
		return review.Failure(limit, "it cannot be merged", []string{r.problem})
	case len(r.errors) > 0:
		lines := make([]string, len(r.errors))
		for i, e := range r.errors {
			lines[i] = e.Error()
		}
		why := "the specs have an error"
		if n := len(lines); n > 1 {
			why = fmt.Sprintf("the specs have %d errors", n)
		}
		return review.Failure(limit, why, lines)
	}
	return r.report.Markdown(limit, more)
}

// status is the outcome as a commit status.
func (r *ciResult) status() (forge.State, string) {
	switch {
	case r.problem != "":
		return forge.Failure, r.problem
	case len(r.errors) == 1:
		return forge.Failure, "1 error: " + r.errors[0].Error()
	case len(r.errors) > 0:
		return forge.Failure, fmt.Sprintf("%d errors: %s", len(r.errors), r.errors[0].Error())
	case r.report.Refused != "":
		return forge.Failure, "hosts would refuse it: " + r.report.Refused
	case r.report.Incomplete:
		var names []string
		var why string
		for _, h := range r.report.Hosts {
			if h.Problem != "" {
				names, why = append(names, h.Host), h.Problem
			}
		}
		if len(names) == 1 {
			return forge.Failure, "incomplete: " + names[0] + ": " + why
		}
		return forge.Failure, "incomplete: the state of " + strings.Join(names, ", ") + " is not known"
	}
	return forge.Success, strings.TrimPrefix(r.report.Headline(), "Plan: ")
}

// ciForge is the forge as a job needs it.
type ciForge interface {
	SetStatus(ctx context.Context, commit string, s forge.Status) error
	Comment(ctx context.Context, pull int, marker, body string) (string, error)
	CommentLimit() int
}

// ciPost makes a plan and tells the forge.
type ciPost struct {
	job     *ciJob
	forge   ciForge // nil: nobody is told
	context string
	shown   string
	key     *trust.Key // signs the plan; nil: nobody does
	valid   time.Duration
	told    []string // what was done beside the plan, a line each
}

func (p *ciPost) tell(format string, args ...any) {
	p.told = append(p.told, fmt.Sprintf(format, args...))
}

// commentMarker finds the comment again.
const commentMarker = "<!-- reconciler: plan -->"

// plan shows the plan, signs what was shown, and only then lets the status turn
// green: what is merged that moment was seen, and finds its approval.
func (p *ciPost) plan(ctx context.Context) (*ciResult, error) {
	if p.shown == "" {
		p.shown = p.job.setup.env.run
	}
	r, err := p.job.compute(ctx)
	if err == nil {
		err = p.show(ctx, r)
	}
	if err == nil && p.key != nil && r.approvable("") == nil {
		var records []review.Signed
		if records, err = p.job.approve(ctx, r, p.key, p.valid, false); err == nil {
			for _, s := range records {
				p.tell("Approved %s", s.Path)
			}
		}
	}
	if p.forge == nil {
		return r, err
	}
	if err == nil {
		state, text := r.status()
		return r, p.setStatus(ctx, r.head.Hash, state, text)
	}
	// A status that is in force from an earlier run says what no longer holds.
	at := p.job.setup.env.head
	if r != nil {
		at = r.head.Hash
	}
	if isCommit(at) {
		err = errors.Join(err, p.setStatus(ctx, at, forge.Errored, "the plan could not be made or shown; see the job"))
	}
	return r, err
}

// show posts the comment; a newer job's is not written over.
func (p *ciPost) show(ctx context.Context, r *ciResult) error {
	if p.forge == nil || r.moved {
		return nil
	}
	signed := ""
	if p.key != nil && r.approvable("") == nil {
		signed = fmt.Sprintf("\nWith the status `%s` at success, this plan is signed by `%s` for hosts that require a reviewed one, until %s.\n",
			p.context, p.key.Fingerprint(), p.job.now().Add(p.valid).UTC().Format("2006-01-02 15:04 UTC"))
	}
	limit := p.forge.CommentLimit() - len(commentMarker) - 2 - len(signed)
	url, err := p.forge.Comment(ctx, p.job.setup.pull, commentMarker, commentMarker+"\n"+r.markdown(limit, p.shown)+signed)
	if err == nil {
		p.tell("Comment  %s", url)
	}
	return err
}

func (p *ciPost) setStatus(ctx context.Context, commit string, s forge.State, text string) error {
	err := p.forge.SetStatus(ctx, commit, forge.Status{Context: p.context, State: s, Description: text, URL: p.shown})
	if err == nil {
		p.tell("Status   %s of %s is %s", p.context, shortRev(commit), s)
	}
	return err
}
