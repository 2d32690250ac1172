package main

import (
	"errors"
	"path/filepath"

	"reconciler/cmd/reconciler/config"
	"reconciler/gitrepo"
	"reconciler/revision"
)

// openRepos opens the repository that is followed, and the one that reports go
// to where that is another.
func openRepos(c config.Config) (repo *gitrepo.Repo, source *revision.Source, closeAll func() error, err error) {
	var closers []func() error
	closeAll = func() error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i]())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()
	followed := repoConfig(c.Repo, c.Credentials, filepath.Join(c.StateDir, "git"))
	followed.Branch, followed.Path = c.Branch, c.Path
	if repo, err = gitrepo.Open(followed); err != nil {
		return nil, nil, nil, err
	}
	closers = append(closers, repo.Close)
	if source, err = revision.New(repo, filepath.Join(c.StateDir, "git", "parsed")); err != nil {
		return nil, nil, nil, err
	}
	closers = append(closers, source.Close)
	if c.Status.URL != "" {
		reports, err := gitrepo.Open(repoConfig(c.Status.URL, c.Status.Credentials, filepath.Join(c.StateDir, "git-status")))
		if err != nil {
			return nil, nil, nil, err
		}
		closers = append(closers, reports.Close)
		source.ReportTo(reports)
	}
	return repo, source, closeAll, nil
}

func repoConfig(url string, c config.Credentials, cache string) gitrepo.Config {
	return gitrepo.Config{
		URL: url, CacheDir: cache, TokenFile: c.TokenFile, SSHKeyFile: c.SSHKeyFile,
		KnownHostsFile: c.KnownHostsFile, CAFile: c.CAFile,
		Write: gitrepo.Credentials{TokenFile: c.Write.TokenFile, SSHKeyFile: c.Write.SSHKeyFile},
	}
}
