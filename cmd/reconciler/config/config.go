// Package config reads the configuration of a host: what a commit must not be
// able to change, such as limits and credentials.
package config

import (
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"reconciler/gitrepo"
	"reconciler/policy"
	"reconciler/spec"
)

// DefaultPath is read where no other file is named, if it is there.
const DefaultPath = "/etc/reconciler/config.yaml"

// Config is the configuration of a host. The tags are the file's keys; `doc`
// is for the reference.
type Config struct {
	Repo     string `yaml:"repo" doc:"Repository: https://…, ssh://…, user@host:path, file:///… or an absolute path. No credentials in it."`
	Branch   string `yaml:"branch" doc:"Branch to follow; the repository's default branch if empty."`
	Path     string `yaml:"path" doc:"Directory in the repository that holds the specs; all of it if empty."`
	Host     string `yaml:"host" doc:"Name of this host's Host object; the host name up to the first dot if empty."`
	Accel    string `yaml:"accel" doc:"How guests run: kvm, tcg (emulation, slow) or auto (kvm if it proves itself, else tcg)."`
	QEMUUser string `yaml:"qemuUser" doc:"User that machines run as; the agent's own if empty. It must be able to pass every directory above runDir, and to read kernels."`
	StateDir string `yaml:"stateDir" doc:"What must survive a reboot: records, the Git cache, file pools."`
	RunDir   string `yaml:"runDir" doc:"Sockets and secrets; may be lost at any time."`
	ImageDir string `yaml:"imageDir" doc:"Where source.file of an Image is looked for; image-files in the state directory if empty."`

	ISCSI ISCSI `yaml:"iscsi"`

	Credentials Credentials `yaml:"credentials"`
	Allowed     Allowed     `yaml:"allowed"`
	Limits      Limits      `yaml:"limits"`
	Windows     []Window    `yaml:"windows"`
	Tenants     []Tenant    `yaml:"tenants"`

	Signing             Signing  `yaml:"signing"`
	RequireReviewedPlan bool     `yaml:"requireReviewedPlan" doc:"Carry out what a commit asks for only if a plan signed by one of planSigners contains it."`
	PlanSigners         []string `yaml:"planSigners" doc:"Public SSH keys whose approvals of a plan count, a line each."`
	OverrideKeys        []string `yaml:"overrideKeys" doc:"Public SSH keys that may release what is held, a line each."`
	HostKeyFile         string   `yaml:"hostKeyFile" doc:"Private SSH key that signs what this host reports; one is made in the state directory if empty."`
	MachineIDFile       string   `yaml:"machineIDFile" doc:"File with the id of this machine, see machine-id(5). It tells a copy of the state directory on another machine from the host."`
	Secrets             Secrets  `yaml:"secrets"`

	Forge   Forge   `yaml:"forge"`
	Webhook Webhook `yaml:"webhook"`

	Interval          time.Duration `yaml:"interval" doc:"Time between passes; a tenth is added at random. 1s to 24h."`
	Heartbeat         time.Duration `yaml:"heartbeat" doc:"Longest time without a report in the status ref. 1m to 24h."`
	Status            StatusRepo    `yaml:"statusRepo"`
	StatusRefPrefix   string        `yaml:"statusRefPrefix" doc:"Start of the ref this host's state is pushed to; the host's name is added."`
	ApprovalsRef      string        `yaml:"approvalsRef" doc:"Ref that holds signed approvals and overrides."`
	DriftBranchPrefix string        `yaml:"driftBranchPrefix" doc:"Start of the branch that proposes what was changed on this host; the host's name is added."`
}

// Credentials are files, read when they are needed, so that they can be
// replaced while the agent runs.
type Credentials struct {
	TokenFile      string           `yaml:"tokenFile" doc:"Token for http(s): \"user:token\", or the token alone."`
	SSHKeyFile     string           `yaml:"sshKeyFile" doc:"Private key for ssh."`
	KnownHostsFile string           `yaml:"knownHostsFile" doc:"Host keys trusted for ssh; no others are."`
	CAFile         string           `yaml:"caFile" doc:"PEM certificates trusted for https beside the system's."`
	Write          WriteCredentials `yaml:"write"`
}

// WriteCredentials are for pushes, where they differ from those for reading.
type WriteCredentials struct {
	TokenFile  string `yaml:"tokenFile" doc:"Token for pushes over http(s); the one for reading if empty."`
	SSHKeyFile string `yaml:"sshKeyFile" doc:"Private key for pushes over ssh; the one for reading if empty."`
}

// StatusRepo is where reports go, if not to the repository that is followed.
type StatusRepo struct {
	URL         string      `yaml:"url" doc:"Repository that the status ref is pushed to; the followed one if empty."`
	Credentials Credentials `yaml:"credentials"`
}

// Signing is whose commits come into force.
type Signing struct {
	Required    bool   `yaml:"required" doc:"Refuse commits without a good signature."`
	Keys        string `yaml:"keys" doc:"File of SSH keys whose signatures count, in the form of ssh-keygen's allowed signers."`
	GPGKeys     string `yaml:"gpgKeys" doc:"File of GPG public keys whose signatures count, ASCII armored."`
	Commits     string `yaml:"commits" doc:"Which commits must be signed: All, or Merges, the first parents only. With Merges, whoever may click on merge at the forge may sign."`
	TrustedBase string `yaml:"trustedBase" doc:"Commit, as a full hash, up to which nothing is checked."`
}

// Secrets is how Secret objects are decrypted.
type Secrets struct {
	AgeKeyFile string `yaml:"ageKeyFile" doc:"age identity that decrypts Secret objects. Its mode must be 0600."`
}

// Forge is where commit statuses and pull requests go.
type Forge struct {
	Kind       string `yaml:"kind" doc:"gitea, github or gitlab; nothing is told to a forge if empty."`
	URL        string `yaml:"url" doc:"Address of the forge, such as https://git.example.org."`
	Repository string `yaml:"repository" doc:"OWNER/NAME at the forge; taken from repo if empty."`
	TokenFile  string `yaml:"tokenFile" doc:"Token that may write commit statuses and pull requests."`
	CAFile     string `yaml:"caFile" doc:"PEM certificates trusted beside the system's."`
}

// ISCSI is how this host's disks are reached.
type ISCSI struct {
	Discovery string `yaml:"discovery" doc:"What an initiator that lists its targets must prove: none, its name only; chap, with the user and password of one of them. A login always needs them."`
}

// Webhook is where a forge tells of a push.
type Webhook struct {
	Listen     string `yaml:"listen" doc:"ADDRESS:PORT to listen on for webhooks; none if empty."`
	SecretFile string `yaml:"secretFile" doc:"Secret shared with the forge. Needed with listen."`
	CertFile   string `yaml:"certFile" doc:"PEM certificate; without one the receiver speaks plain HTTP."`
	KeyFile    string `yaml:"keyFile" doc:"Private key of the certificate."`
}

// Allowed is what specs may use of the host.
type Allowed struct {
	Roots   []Root   `yaml:"roots"`
	Bridges []string `yaml:"bridges" doc:"Bridges that a Network may name. None if empty."`
}

// Root is a directory below which a pool may have an absolute path. In the file
// it may be the path alone.
type Root struct {
	Path  string `yaml:"path" short:"true" doc:"Directory below which a pool may have an absolute path, also written roots: [PATH]. A pool below the state directory is always allowed."`
	Mount *bool  `yaml:"mount" doc:"Whether its pools are on a file system that is mounted at it or below it: while none is, they are unknown and nothing is made. If absent, true for a pool that was on one when it was made."`
}

// Limits bound what a commit can do.
type Limits struct {
	Budget   Budget `yaml:"budget"`
	Parallel int    `yaml:"parallel" doc:"Actions begun at a time, for each pool and kind of work; downloads at a time, for each tenant. 1 to 64."`
	// ImageSize is a size as spec.Size reads it.
	ImageSize string `yaml:"imageSize" doc:"Largest file of an Image, as 20Gi."`
}

// Budget bounds what may be stopped or removed within 24 hours: the greater of
// the two, of machines and of disks each.
type Budget struct {
	Count   int `yaml:"count" doc:"Machines, and disks, that may be stopped or removed within 24 hours. 1 or more."`
	Percent int `yaml:"percent" doc:"The same as a part of all of the host; the greater of the two holds. 0 to 100."`
}

// Default is the configuration where nothing is said.
func Default() Config {
	return Config{
		Accel:             "kvm",
		StateDir:          "/var/lib/reconciler",
		RunDir:            "/run/reconciler",
		MachineIDFile:     "/etc/machine-id",
		Interval:          time.Minute,
		Heartbeat:         10 * time.Minute,
		StatusRefPrefix:   "refs/reconciler/status/",
		ApprovalsRef:      "refs/reconciler/approvals",
		DriftBranchPrefix: "refs/heads/reconciler-drift/",
		Signing:           Signing{Commits: "All"},
		ISCSI:             ISCSI{Discovery: "none"},
		Limits: Limits{
			Budget:   Budget{Count: policy.DefaultLimits.Count, Percent: policy.DefaultLimits.Percent},
			Parallel: 4, ImageSize: "256Gi",
		},
	}
}

// Complete fills in what follows from other values or from the host.
func (c *Config) Complete() error {
	if c.Host == "" {
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		c.Host, _, _ = strings.Cut(name, ".")
	}
	if c.ImageDir == "" {
		c.ImageDir = filepath.Join(c.StateDir, "image-files")
	}
	return nil
}

// Normalize brings what can be written in several ways into one, so that all who
// read it mean the same. What will not do is left for Check.
func (c *Config) Normalize() {
	c.Branch, _ = gitrepo.CleanBranch(c.Branch)
	c.Path, _ = gitrepo.CleanPath(c.Path)
	for _, dir := range append([]*string{&c.StateDir, &c.RunDir, &c.ImageDir}, rootPaths(c.Allowed.Roots)...) {
		if filepath.IsAbs(*dir) {
			*dir = filepath.Clean(*dir)
		}
	}
	for i := range c.Tenants {
		for _, dir := range []*string{&c.Tenants[i].Path, &c.Tenants[i].ImageFiles} {
			if clean, err := gitrepo.CleanPath(*dir); err == nil && clean != "" && !path.IsAbs(*dir) {
				*dir = clean
			}
		}
	}
}

func rootPaths(list []Root) (out []*string) {
	for i := range list {
		out = append(out, &list[i].Path)
	}
	return out
}

// Problem is a value that will not do. Key is its place, as limits.budget.count.
type Problem struct {
	Key, Msg string
}

func (p Problem) Error() string { return p.Key + ": " + p.Msg }

// Check finds the values that will not do.
func (c *Config) Check() []Problem {
	var list []Problem
	add := func(key, format string, args ...any) {
		list = append(list, Problem{key, fmt.Sprintf(format, args...)})
	}
	for _, a := range []struct{ key, address string }{{"repo", c.Repo}, {"statusRepo.url", c.Status.URL}, {"forge.url", c.Forge.URL}} {
		if u, err := url.Parse(a.address); err == nil && u.User != nil && strings.Contains(a.address, "://") {
			if _, secret := u.User.Password(); secret || u.Scheme != "ssh" {
				add(a.key, "credentials must not stand in the address; use a token file")
			}
		}
	}
	for _, a := range []struct {
		key, value string
		check      func(string) error
	}{
		{"repo", c.Repo, gitrepo.CheckURL},
		{"statusRepo.url", c.Status.URL, gitrepo.CheckURL},
		{"branch", c.Branch, func(s string) error { _, err := gitrepo.CleanBranch(s); return err }},
		{"path", c.Path, func(s string) error { _, err := gitrepo.CleanPath(s); return err }},
	} {
		if a.value == "" {
			continue
		}
		if err := a.check(a.value); err != nil {
			add(a.key, "%v", err)
		}
	}
	switch c.Accel {
	case "kvm", "tcg", "auto":
	default:
		add("accel", "%q is none of kvm, tcg, auto", c.Accel)
	}
	switch c.ISCSI.Discovery {
	case "none", "chap":
	default:
		add("iscsi.discovery", "%q is none of none, chap", c.ISCSI.Discovery)
	}
	for _, p := range []struct {
		key, path string
		needed    bool
	}{
		{"stateDir", c.StateDir, true},
		{"runDir", c.RunDir, true},
		{"imageDir", c.ImageDir, false},
		{"credentials.tokenFile", c.Credentials.TokenFile, false},
		{"credentials.sshKeyFile", c.Credentials.SSHKeyFile, false},
		{"credentials.knownHostsFile", c.Credentials.KnownHostsFile, false},
		{"credentials.caFile", c.Credentials.CAFile, false},
		{"credentials.write.tokenFile", c.Credentials.Write.TokenFile, false},
		{"credentials.write.sshKeyFile", c.Credentials.Write.SSHKeyFile, false},
		{"statusRepo.credentials.tokenFile", c.Status.Credentials.TokenFile, false},
		{"statusRepo.credentials.sshKeyFile", c.Status.Credentials.SSHKeyFile, false},
		{"statusRepo.credentials.knownHostsFile", c.Status.Credentials.KnownHostsFile, false},
		{"statusRepo.credentials.caFile", c.Status.Credentials.CAFile, false},
		{"signing.keys", c.Signing.Keys, false},
		{"signing.gpgKeys", c.Signing.GPGKeys, false},
		{"hostKeyFile", c.HostKeyFile, false},
		{"machineIDFile", c.MachineIDFile, false},
		{"secrets.ageKeyFile", c.Secrets.AgeKeyFile, false},
		{"forge.tokenFile", c.Forge.TokenFile, false},
		{"forge.caFile", c.Forge.CAFile, false},
		{"webhook.secretFile", c.Webhook.SecretFile, false},
		{"webhook.certFile", c.Webhook.CertFile, false},
		{"webhook.keyFile", c.Webhook.KeyFile, false},
	} {
		if (p.needed || p.path != "") && !filepath.IsAbs(p.path) {
			add(p.key, "%q is not an absolute path", p.path)
		}
	}
	for _, root := range c.Allowed.Roots {
		if !filepath.IsAbs(root.Path) {
			add("allowed.roots", "%q is not an absolute path", root.Path)
		}
	}
	for _, b := range c.Allowed.Bridges {
		// IFNAMSIZ, linux/if.h
		if b == "" || len(b) > 15 || strings.ContainsAny(b, "/ \t\n") {
			add("allowed.bridges", "%q is not the name of an interface", b)
		}
	}
	if c.Interval < time.Second || c.Interval > 24*time.Hour {
		add("interval", "%s is not within 1s and 24h", c.Interval)
	}
	if c.Heartbeat < time.Minute || c.Heartbeat > 24*time.Hour {
		add("heartbeat", "%s is not within 1m and 24h", c.Heartbeat)
	}
	// Below refs/heads an agent would trigger CI, and could hit its own branch.
	if p := c.StatusRefPrefix; !strings.HasPrefix(p, "refs/") || !strings.HasSuffix(p, "/") || strings.HasPrefix(p, "refs/heads/") {
		add("statusRefPrefix", "%q must start with refs/, end with / and lie outside of refs/heads/", p)
	}
	if p := c.ApprovalsRef; !strings.HasPrefix(p, "refs/") || strings.HasSuffix(p, "/") || strings.HasPrefix(p, "refs/heads/") {
		add("approvalsRef", "%q must be a full ref outside of refs/heads/", p)
	}
	if p := c.DriftBranchPrefix; !strings.HasPrefix(p, "refs/heads/") || len(p) <= len("refs/heads/") {
		add("driftBranchPrefix", "%q must start with refs/heads/: a pull request needs a branch", p)
	}
	list = append(list, c.checkTrust()...)
	list = append(list, c.checkWindows()...)
	list = append(list, c.checkTenants()...)
	if c.Limits.Budget.Count < 1 {
		add("limits.budget.count", "%d is less than 1; to hold everything, use reconciler suspend", c.Limits.Budget.Count)
	}
	if c.Limits.Budget.Percent < 0 || c.Limits.Budget.Percent > 100 {
		add("limits.budget.percent", "%d is not within 0 and 100", c.Limits.Budget.Percent)
	}
	if n, err := spec.ParseSize(c.Limits.ImageSize); err != nil || n <= 0 {
		add("limits.imageSize", "%q is not a size, such as 20Gi", c.Limits.ImageSize)
	}
	if c.Limits.Parallel < 1 || c.Limits.Parallel > 64 {
		add("limits.parallel", "%d is not within 1 and 64", c.Limits.Parallel)
	}
	return list
}
