package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"reconciler/cmd/reconciler/config"
	"reconciler/forge"
	"reconciler/gitrepo"
	"reconciler/policy"
	"reconciler/reconcile"
)

func (a *app) ciCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "ci COMMAND",
		Short: "Plan and approve pull requests in CI",
		Long: `ci is for the jobs of a forge. They need no access to any host: what a host is
like they read from what it last reported and signed. ci plan shows what a pull
request would do and tells the forge, ci approve signs that plan for hosts that
run nothing else, ci override signs the release of something that a host holds.`,
		Example: `  reconciler ci plan --pull 7
  reconciler ci approve --pull 7 --key plan-key`,
		Args:              commandArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return nil },
	}
	c.AddCommand(a.ciPlanCmd(), a.ciApproveCmd(), a.ciOverrideCmd())
	return c
}

// ciFlags say which pull request is meant, and where.
type ciFlags struct {
	base, head string
	pull       int
	maxAge     time.Duration
	tenants    string
	statusRepo string
	statusRefs string
	token, ca  string
	sshKey     string
	knownHosts string
	approvals  string
	forge      string
	forgeURL   string
	repository string
	forgeToken string
}

// register is for the commands that make a plan.
func (f *ciFlags) register(c *cobra.Command) {
	f.registerRepo(c)
	d := config.Default()
	c.Flags().StringVar(&f.head, "head", "", "`revision` that is merged (default the pull request's)")
	c.Flags().IntVar(&f.pull, "pull", 0, "`number` of the pull request (default the one the job is for)")
	c.Flags().DurationVar(&f.maxAge, "max-age", 15*time.Minute, "longest `time` since a host's last report")
	c.Flags().StringVar(&f.tenants, "tenants", "", "configuration `file` whose tenants are checked (default --config)")
	c.Flags().StringVar(&f.statusRepo, "status-repo", "", "`repository` of the hosts' reports (default the specs')")
	c.Flags().StringVar(&f.statusRefs, "status-ref-prefix", d.StatusRefPrefix, "start of the `ref` of a host's report")
	c.Flags().StringVar(&f.forge, "forge", "", "whose API the forge speaks: `gitea|github|gitlab` (default that of the job)")
	c.Flags().StringVar(&f.forgeURL, "forge-url", "", "`address` of the forge (default that of the job, or of --repo)")
	c.Flags().StringVar(&f.repository, "repository", "", "`OWNER/NAME` at the forge (default that of the job, or of --repo)")
	c.Flags().StringVar(&f.forgeToken, "forge-token-file", "", "`file` of the token for the forge (default --token-file)")
	must(c.RegisterFlagCompletionFunc("forge", cobra.FixedCompletions([]string{"gitea", "github", "gitlab"}, cobra.ShellCompDirectiveNoFileComp)))
	for _, name := range []string{"head", "pull", "max-age", "status-repo", "status-ref-prefix", "forge-url", "repository"} {
		must(c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
}

// registerRepo says where the branch is, and how to get at it.
func (f *ciFlags) registerRepo(c *cobra.Command) {
	c.Flags().StringVar(&f.base, "base", "", "`branch` or commit that is merged into (default the pull request's)")
	c.Flags().StringVar(&f.approvals, "approvals-ref", config.Default().ApprovalsRef, "`ref` that holds signed approvals and overrides")
	c.Flags().StringVar(&f.token, "token-file", "", "`file` of the token for the repository over http(s), and for the forge")
	c.Flags().StringVar(&f.sshKey, "ssh-key-file", "", "`file` of the private key for the repository over ssh")
	c.Flags().StringVar(&f.knownHosts, "known-hosts-file", "", "`file` of the host keys trusted for ssh")
	c.Flags().StringVar(&f.ca, "ca-file", "", "`file` of PEM certificates trusted beside the system's")
	for _, name := range []string{"base", "approvals-ref"} {
		must(c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
}

// ciSetup is what the flags and the job's environment come to.
type ciSetup struct {
	ciFlags
	env  ciEnv
	repo string // address, without credentials
}

// setup fills in from the environment what was not given.
func (a *app) ciSetup(f ciFlags) (ciSetup, error) {
	env, err := readCIEnv(os.Getenv, os.ReadFile)
	if err != nil {
		return ciSetup{}, err
	}
	s := ciSetup{ciFlags: f, env: env, repo: a.flags.repo}
	for _, v := range []struct {
		into *string
		from string
	}{
		{&s.forge, env.forge}, {&s.forgeURL, env.url}, {&s.repository, env.repository},
		{&s.base, env.base}, {&s.forgeToken, s.token},
	} {
		if *v.into == "" {
			*v.into = v.from
		}
	}
	if s.pull == 0 {
		s.pull = env.pull
	}
	if s.repo == "" {
		if s.repo, err = checkout(env); err != nil {
			return s, err
		}
	}
	if s.base == "" {
		return s, usagef("--base must be given: this job does not say what the pull request is merged into")
	}
	// Whoever names the forge wants it to be told.
	if f.forge != "" && (s.forgeToken == "" || s.pull == 0) {
		return s, usagef("--forge needs --pull and --token-file")
	}
	return s, nil
}

// checkout is the repository where none is named: that of the directory, else
// the job's.
func checkout(env ciEnv) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, ".git")); err == nil {
			return at, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if at == filepath.Dir(at) {
			break
		}
	}
	if env.clone == "" {
		return "", usagef("--repo must be given: %s is no checkout", dir)
	}
	return env.clone, nil
}

// headRef is where a forge keeps what a pull request brings, forks included.
func (s *ciSetup) headRef() string {
	switch {
	case s.pull == 0:
		return ""
	case s.forge == string(forge.GitLab):
		return fmt.Sprintf("refs/merge-requests/%d/head", s.pull)
	}
	return fmt.Sprintf("refs/pull/%d/head", s.pull)
}

// gitConfig is how a repository is opened; every one has a cache of its own.
func (s *ciSetup) gitConfig(url, branch, path, cache string) gitrepo.Config {
	return gitrepo.Config{
		URL: url, Branch: branch, Path: path, CacheDir: cache,
		TokenFile: s.token, SSHKeyFile: s.sshKey, KnownHostsFile: s.knownHosts, CAFile: s.ca,
	}
}

// poster tells the forge of a pull request; nil where there is none to tell.
func (s *ciSetup) poster() (*forge.Forge, error) {
	if s.forge == "" || s.forgeToken == "" || s.pull == 0 {
		return nil, nil
	}
	return forge.Open(forge.Config{
		Kind: forge.Kind(s.forge), URL: s.forgeURL, Repository: s.repository, TokenFile: s.forgeToken, CAFile: s.ca,
	}.Locate(s.repo))
}

// ciPolicy is what is known of the hosts' own configuration.
type ciPolicy struct {
	limits  policy.Limits
	windows policy.Schedule
	tenants []policy.Tenant
}

func (a *app) ciPolicy(tenants string) (p ciPolicy, err error) {
	c, err := a.configFile()
	if err != nil {
		return p, err
	}
	p.limits = policy.Limits{Count: c.Limits.Budget.Count, Percent: c.Limits.Budget.Percent}
	if p.windows, err = c.Maintenance(); err != nil {
		return p, err
	}
	p.tenants = c.PolicyTenants()
	if tenants != "" {
		p.tenants, err = config.LoadTenants(tenants)
	}
	return p, err
}

// restrain applies it to a plan. What was stopped in the last hours, and what
// is suspended or allowed, only the host knows.
func (p ciPolicy) restrain(now time.Time) func(*reconcile.Plan, reconcile.State) {
	return func(plan *reconcile.Plan, have reconcile.State) {
		policy.Apply(plan, policy.Input{Have: have, Limits: p.limits, Windows: p.windows, Now: now})
	}
}
