package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"reconciler/api"
	"reconciler/cmd/reconciler/config"
	"reconciler/gitrepo"
)

// app is one run of the command.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time

	flags globalFlags
	begun bool // a command's own work has begun: what fails now is no usage error
}

// globalFlags are those of every command. Empty means not given.
type globalFlags struct {
	config, stateDir, runDir, imageDir string
	repo, branch, path, host, accel    string
	output                             string
}

// resolve makes paths absolute: they are relative to where the command is called.
func (f *globalFlags) resolve() (err error) {
	for _, path := range []*string{&f.stateDir, &f.runDir, &f.imageDir, &f.repo} {
		if *path == "" || path == &f.repo && (gitrepo.CheckURL(*path) == nil || strings.Contains(*path, "://")) {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !a.begun {
		var usage *usageError
		if !errors.As(err, &usage) {
			err = &usageError{err.Error()}
		}
	}
	return report(ctx, a.stderr, cmd.CommandPath(), err)
}

// config is what the file says, and what the flags say over it.
func (a *app) config() (config.Config, error) {
	c, err := a.configFile()
	if err != nil {
		return c, err
	}
	f := a.flags
	byKey := map[string]string{}
	for _, v := range []struct {
		value      string
		into       *string
		key, fname string
	}{
		{f.stateDir, &c.StateDir, "stateDir", "--state-dir"},
		{f.runDir, &c.RunDir, "runDir", "--run-dir"},
		{f.imageDir, &c.ImageDir, "imageDir", "--image-dir"},
		{f.repo, &c.Repo, "repo", "--repo"},
		{f.branch, &c.Branch, "branch", "--branch"},
		{f.path, &c.Path, "path", "--path"},
		{f.host, &c.Host, "host", "--host"},
		{f.accel, &c.Accel, "accel", "--accel"},
	} {
		if v.value != "" {
			*v.into, byKey[v.key] = v.value, v.fname
		}
	}
	c.Normalize()
	if list := c.Check(); len(list) > 0 { // the file was checked when it was read
		p := list[0]
		if name := byKey[p.Key]; name != "" {
			p.Key = name
		}
		return c, &usageError{p.Error()}
	}
	return c, c.Complete()
}

func (a *app) configFile() (config.Config, error) {
	if a.flags.config != "" {
		return config.Load(a.flags.config)
	}
	c, err := config.Load(config.DefaultPath)
	if errors.Is(err, fs.ErrNotExist) {
		return config.Default(), nil
	}
	return c, err
}

// configPath is the file that configFile reads; empty if there is none.
func (a *app) configPath() string {
	if a.flags.config != "" {
		return a.flags.config
	}
	if _, err := os.Stat(config.DefaultPath); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return config.DefaultPath
}

// dial finds the running agent. A run directory that is given is enough: a
// configuration that cannot be read must not keep an operator from the agent.
func (a *app) dial() (*api.Client, error) {
	if a.flags.runDir != "" {
		return api.Dial(a.flags.runDir)
	}
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	return api.Dial(c.RunDir)
}
