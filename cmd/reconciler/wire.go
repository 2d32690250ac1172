package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"reconciler/agent"
	"reconciler/api"
	"reconciler/claim"
	"reconciler/cmd/reconciler/config"
	"reconciler/drivers/iscsi"
	"reconciler/drivers/iscsi/image"
	"reconciler/drivers/iscsi/target"
	"reconciler/drivers/kvm"
	"reconciler/gitrepo"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/secret"
	"reconciler/spec"
)

// build makes an agent of a host's configuration. It starts nothing and
// changes nothing outside the agent's directories; close gives them back.
func build(ctx context.Context, c config.Config, log *slog.Logger) (a *agent.Agent, closeAll func() error, err error) {
	if c.Repo == "" {
		return nil, nil, errors.New("no repository is configured (--repo, or repo in the configuration file)")
	}
	var open closers
	defer func() {
		if err != nil {
			err = errors.Join(err, open.close())
		}
	}()
	git, err := hostRepos(c)
	if err != nil {
		return nil, nil, err
	}
	open.add(git.close)

	guests, err := guestUser(c.QEMUUser)
	if err != nil {
		return nil, nil, err
	}
	disks, err := newStorage(c, guests, log)
	if err != nil {
		return nil, nil, err
	}
	open.add(func() error { disks.client.Close(); return nil })
	machines, err := kvm.New(kvm.Config{
		StateDir: c.StateDir, RunDir: c.RunDir, Accel: kvm.Accel(c.Accel), User: guests,
		AllowedBridges: c.Allowed.Bridges, Storage: disks, Log: log,
	})
	if err != nil {
		return nil, nil, err
	}
	open.add(machines.Close)
	maintenance, err := c.Maintenance()
	if err != nil {
		return nil, nil, err
	}
	host, err := openForge(c)
	if err != nil {
		return nil, nil, err
	}

	approvals, err := reviewOf(c)
	if err != nil {
		return nil, nil, err
	}

	key, err := configuredKey(c)
	if err != nil {
		return nil, nil, err
	}

	pulls, _ := host.(agent.Pulls) // nil without a forge
	a, err = agent.New(agent.Config{
		Host: c.Host, Repo: gitrepo.Redact(c.Repo), Branch: c.Branch, StateDir: c.StateDir, RunDir: c.RunDir,
		Source: git.source, Hypervisor: hypervisor{machines}, Storage: disks, Secrets: secret.New(c.Secrets.AgeKeyFile), Changed: changed(ctx, machines),
		Interval: c.Interval, Heartbeat: c.Heartbeat, StatusRef: c.StatusRefPrefix, Parallel: c.Limits.Parallel,
		Limits:  policy.Limits{Count: c.Limits.Budget.Count, Percent: c.Limits.Budget.Percent},
		Windows: maintenance, Tenants: c.PolicyTenants(), Review: approvals,
		Signing: signing(c), HostKey: key, Machine: machineID(c, log),
		Forge: host, Listen: webhooks(c, log),
		Drift:   driftOf(c, git.specs, pulls, machines, disks),
		Version: buildVersion(), Log: log,
	})
	return a, open.close, err
}

// machineID is what tells this machine from others, empty if nothing does.
func machineID(c config.Config, log *slog.Logger) string {
	id, err := agent.MachineID(c.MachineIDFile)
	if id == "" {
		log.Warn("this machine has no id: a copy of its state directory on another one is not told from it", "machineIDFile", c.MachineIDFile, "error", err)
	}
	return id
}

// guestUser finds who machines run as; nil is the agent's own user.
func guestUser(name string) (*kvm.User, error) {
	if name == "" {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("qemuUser: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, fmt.Errorf("qemuUser %s: %w", name, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, fmt.Errorf("qemuUser %s: %w", name, err)
	}
	return &kvm.User{UID: uid, GID: gid}, nil
}

// changed delivers machines whose state changed by itself. The driver's own
// actions raise events, too; a pass that finds nothing to do is cheap.
func changed(ctx context.Context, d *kvm.Driver) <-chan string {
	out := make(chan string, 1)
	go func() {
		for {
			select {
			case e, ok := <-d.Events():
				if !ok {
					return
				}
				select {
				case out <- e.UID:
				default: // one wake-up is as good as two
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// hypervisor is the machines' driver as the agent sees it.
type hypervisor struct{ *kvm.Driver }

func (h hypervisor) Console(uid string) api.Console {
	pipe, socket := h.ConsoleInput(uid)
	logs := h.ConsoleLogs(uid)
	return api.Console{Input: pipe, Socket: socket, Log: logs[len(logs)-1]}
}

func roots(c config.Config) []iscsi.Root {
	list := make([]iscsi.Root, 0, len(c.Allowed.Roots))
	for _, r := range c.Allowed.Roots {
		list = append(list, iscsi.Root{Path: r.Path, Mount: r.Mount})
	}
	return list
}

// storage is the disks' driver as the agent sees it.
type storage struct {
	*iscsi.Driver
	client *target.Client
}

func newStorage(c config.Config, guests *kvm.User, log *slog.Logger) (*storage, error) {
	process, err := targetProcess(filepath.Join(c.StateDir, "target"), filepath.Join(c.RunDir, "target"))
	if err != nil {
		return nil, err
	}
	largest, err := spec.ParseSize(c.Limits.ImageSize)
	if err != nil {
		return nil, err
	}
	client := target.NewClient(process.RunDir)
	driver, err := iscsi.New(iscsi.Config{
		StateDir: c.StateDir, ImageDir: c.ImageDir, AllowedRoots: roots(c), Host: c.Host, Log: log,
		DiscoveryCHAP: c.ISCSI.Discovery == "chap",
		Target:        client,
		Start:         func(ctx context.Context) error { return target.Ensure(ctx, process) },
		Images: func(i *image.Config) {
			i.MaxBytes = int64(largest)
			if guests != nil {
				i.Readers = guests.GID
			}
		},
	})
	if err != nil {
		client.Close()
		return nil, err
	}
	return &storage{driver, client}, nil
}

func (s *storage) ImageFile(ctx context.Context, image *reconcile.Object, progress func(string, ...any)) (string, error) {
	out, err := s.Apply(ctx, reconcile.Action{
		Kind: image.Kind, Name: image.Name, UID: image.UID, Op: reconcile.OpCreate, State: reconcile.Ready, Want: image,
	}, reconcile.Inputs{Progress: progress})
	return out.File, err
}

func (s *storage) Undelete(ctx context.Context, disk string) (string, error) {
	o, err := s.Driver.Undelete(ctx, disk)
	if err != nil {
		return "", err
	}
	yaml, err := spec.Marshal(o)
	return string(yaml), err
}

func (s *storage) Access(ctx context.Context, disk string, r api.AccessRequest, until time.Time) (api.Access, error) {
	access, err := s.Driver.Access(ctx, iscsi.AccessRequest{
		Disk: disk, Initiators: r.Initiators, Until: until, ReadOnly: r.ReadOnly, By: r.Caller.Name,
	})
	var held *claim.HeldError
	if errors.As(err, &held) {
		return api.Access{}, &api.Error{Code: api.Conflict, Message: fmt.Sprintf("the disk is in use: %v", err), Hint: "stop the machine, detach the disk, or use --read-only"}
	}
	if err != nil {
		return api.Access{}, err
	}
	out := accessAnswer(access)
	out.URL, out.User, out.Password = access.URL(), access.User, access.Password.Reveal()
	return out, nil
}

func accessAnswer(a iscsi.Access) api.Access {
	out := api.Access{
		ID: a.ID, Disk: a.Disk, Portal: a.Portal, Target: a.Target, LUN: a.LUN, Initiators: a.Initiators,
		ReadOnly: a.ReadOnly, Until: a.Until, By: a.By,
	}
	for _, s := range a.Sessions {
		out.Sessions = append(out.Sessions, api.AccessSession{
			Initiator: s.Initiator, Address: s.Address, Since: s.Since, Replaced: s.Replaced, ReplacedFrom: s.ReplacedFrom,
		})
	}
	return out
}

func (s *storage) ListAccess(ctx context.Context) ([]api.Access, error) {
	list, err := s.Driver.ListAccess(ctx)
	out := make([]api.Access, 0, len(list))
	for _, a := range list {
		out = append(out, accessAnswer(a))
	}
	return out, err
}

func (s *storage) EndAccess(ctx context.Context, id string) error {
	err := s.Driver.EndAccess(ctx, id)
	if errors.Is(err, iscsi.ErrNoAccess) {
		return api.Errorf(api.NotFound, "there is no access %s", id)
	}
	return err
}
