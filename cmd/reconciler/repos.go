package main

import (
	"errors"
	"path/filepath"

	"reconciler/cmd/reconciler/config"
	"reconciler/gitrepo"
	"reconciler/revision"
)

// closers give back what was opened, the last first.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c closers) close() error {
	var errs []error
	for i := len(c) - 1; i >= 0; i-- {
		errs = append(errs, c[i]())
	}
	return errors.Join(errs...)
}

// repos are the repository of the specs, and the one that hosts report to,
// which may be the same.
type repos struct {
	specs, reports *gitrepo.Repo
	source         *revision.Source
	closers
}

// openRepos opens them; reports without a URL are with the specs. What was
// parsed is kept in a file.
func openRepos(specs, reports gitrepo.Config, parsed string) (*repos, error) {
	r := &repos{}
	if err := r.open(specs, reports, parsed); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *repos) open(specs, reports gitrepo.Config, parsed string) (err error) {
	if r.specs, err = gitrepo.Open(specs); err != nil {
		return err
	}
	r.add(r.specs.Close)
	if r.source, err = revision.New(r.specs, parsed); err != nil {
		return err
	}
	r.add(r.source.Close)
	r.reports = r.specs
	if reports.URL != "" {
		if r.reports, err = gitrepo.Open(reports); err != nil {
			return err
		}
		r.add(r.reports.Close)
		r.source.ReportTo(r.reports)
	}
	return nil
}

// hostRepos opens the repositories that a host is configured to use.
func hostRepos(c config.Config) (*repos, error) {
	specs := repoConfig(c.Repo, c.Credentials, filepath.Join(c.StateDir, "git"))
	specs.Branch, specs.Path = c.Branch, c.Path
	reports := repoConfig(c.Status.URL, c.Status.Credentials, filepath.Join(c.StateDir, "git-status"))
	return openRepos(specs, reports, filepath.Join(c.StateDir, "git", "parsed"))
}

func repoConfig(url string, c config.Credentials, cache string) gitrepo.Config {
	return gitrepo.Config{
		URL: url, CacheDir: cache, TokenFile: c.TokenFile, SSHKeyFile: c.SSHKeyFile,
		KnownHostsFile: c.KnownHostsFile, CAFile: c.CAFile,
		Write: gitrepo.Credentials{TokenFile: c.Write.TokenFile, SSHKeyFile: c.Write.SSHKeyFile},
	}
}
