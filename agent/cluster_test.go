package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"reconciler/forge"
	"reconciler/gitrepo"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/trust"
)

// cluster is a few simulated hosts that follow one repository. Each sees as much
// of it as the test says, and reports where the others read it.
type cluster struct {
	tb      testing.TB
	repo    *sim // holds the commits
	hosts   map[string]*node
	reports map[string]signedReport
	pushes  int
}

type node struct {
	*sim
	key *trust.Key
	// sees is the number of the newest commit that the host can fetch.
	sees int
	// mute hosts cannot push, deaf ones cannot reach the repository at all.
	mute, deaf bool
	// lost are the answers to its pushes, which arrive.
	lost bool
	// fate is what becomes of the next action; nil: it succeeds.
	fate func() outcome
}

type signedReport struct {
	files              map[string][]byte
	payload, signature []byte
	commit             string
}

func newCluster(t *testing.T, dir string, names ...string) *cluster {
	c := &cluster{tb: t, repo: &sim{t: t, dir: dir}, hosts: map[string]*node{}, reports: map[string]signedReport{}}
	for _, name := range names {
		_, private, err := trust.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		key, err := trust.ParsePrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		n := &node{key: key}
		n.sim = newSim(t, func(cfg *Config) {
			cfg.Host, cfg.HostKey, cfg.Forge = name, key, deafForge{}
			cfg.Source = clusterSource{simSource: simSource{s: c.repo}, c: c, n: n}
			cfg.Limits = policy.Limits{Count: 1000}
		})
		c.hosts[name] = n
	}
	return c
}

// deafForge is told of everything, and nobody listens.
type deafForge struct{}

func (deafForge) SetStatus(context.Context, string, forge.Status) error { return nil }

// clusterSource is what one host sees of the repository.
type clusterSource struct {
	simSource
	c *cluster
	n *node
}

var errDeaf = errors.New("the repository cannot be reached")

func (r clusterSource) Fetch(context.Context) (Revision, error) {
	if r.n.deaf {
		return Revision{}, errDeaf
	}
	return Revision{Hash: fmt.Sprintf("%040d", r.n.sees), Subject: "a commit"}, nil
}

func (r clusterSource) Publish(_ context.Context, ref, _ string, files map[string][]byte, opts gitrepo.PushOptions) error {
	if r.n.mute || r.n.deaf {
		return errDeaf
	}
	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		sum.Write(files[name])
	}
	payload := sum.Sum([]byte(ref))
	signature, err := opts.Sign(payload)
	if err != nil {
		return err
	}
	// What a cache of the repository remembers stays out: the tip is looked at always.
	if tip, ok := r.c.reports[ref]; ok && opts.Replaces != nil {
		err = opts.Replaces(gitrepo.ForeignTip{
			Commit: gitrepo.Commit{Hash: tip.commit}, Payload: tip.payload, Signature: tip.signature,
			File: func(name string) ([]byte, error) { return tip.files[name], nil },
		})
	}
	r.c.pushes++
	commit := fmt.Sprintf("%040x", r.c.pushes)
	if err == nil && opts.Intend != nil {
		err = opts.Intend(commit)
	}
	if err == nil {
		r.c.reports[ref] = signedReport{files, payload, signature, commit}
		if r.n.lost {
			err = errDeaf // it arrived, and nobody hears of it
		}
	}
	return err
}

func (r clusterSource) Report(_ context.Context, ref, name string) (data, payload, signature []byte, err error) {
	if r.n.deaf {
		return nil, nil, nil, errDeaf
	}
	p, ok := r.c.reports[ref]
	if !ok {
		return nil, nil, nil, gitrepo.ErrRevisionMissing
	}
	return p.files[name], p.payload, p.signature, nil
}

// commit is a revision of these documents and the hosts' own; every host sees it
// that is not told otherwise.
func (c *cluster) commit(docs ...string) {
	c.commitFrame(nil, docs...)
}

func (c *cluster) commitFrame(pools map[string]string, docs ...string) {
	c.repo.commit(map[string]string{"cluster.yaml": c.frame(pools) + strings.Join(docs, "")})
	for _, n := range c.hosts {
		n.sees = len(c.repo.commits)
	}
}

// frame is the cluster and its hosts, each with two pools called after it; pools
// says which host the first is on otherwise.
func (c *cluster) frame(pools map[string]string) string {
	var b strings.Builder
	b.WriteString("apiVersion: reconciler/v1alpha1\nkind: Cluster\nmetadata: {name: demo}\n")
	for _, name := range slices.Sorted(maps.Keys(c.hosts)) {
		fmt.Fprintf(&b, "---\napiVersion: reconciler/v1alpha1\nkind: Host\nmetadata: {name: %s}\nspec: {roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}, signingKey: %q}\n",
			name, c.hosts[name].key.Public())
		at := name
		if pools[name] != "" {
			at = pools[name]
		}
		b.WriteString(poolOn("p-"+name, at))
		// The last machine and the last disk of a host are not removed at a commit's word.
		b.WriteString(poolOn("s-"+name, name) + vmOn("stays-"+name, name, "") + diskIn("stays-"+name, "s-"+name))
	}
	return b.String()
}

func poolOn(name, host string) string {
	return fmt.Sprintf("---\napiVersion: reconciler/v1alpha1\nkind: StoragePool\nmetadata: {name: %s}\nspec: {host: %s, capacity: 100Ti, volumes: {file: {path: pools/%s}}, target: {embedded: {portals: [\"127.0.0.1:3260\"]}}}\n", name, host, name)
}

func vmOn(name, host, more string) string {
	return strings.Replace(simVM(name, ", memory: {size: 64Mi}"+more), "host: host1", "host: "+host, 1)
}

func diskIn(name, pool string) string {
	return strings.Replace(simDisk(name), "pool: fast", "pool: "+pool, 1)
}

// pass is one pass of every host that is named, in their order.
func (c *cluster) pass(names ...string) {
	for _, name := range names {
		_, _ = c.hosts[name].pass() // a revision may be refused
	}
}

// where lists the hosts that have an object.
func (c *cluster) where(kind spec.Kind, name string) (list []string) {
	for _, host := range slices.Sorted(maps.Keys(c.hosts)) {
		if c.hosts[host].live(kind, name) != nil {
			list = append(list, host)
		}
	}
	return list
}

func (c *cluster) expect(kind spec.Kind, name string, hosts ...string) {
	c.tb.Helper()
	if got := c.where(kind, name); !slices.Equal(got, hosts) {
		c.tb.Fatalf("%s/%s is on %v, not on %v", kind, name, got, hosts)
	}
}

// waits fails if an object does not wait on a host for a reason with these words.
func (c *cluster) waits(host, object string, words ...string) {
	c.tb.Helper()
	n := c.hosts[host]
	p, err := n.pass()
	if err != nil {
		c.tb.Fatal(err)
	}
	for i := range p.Actions {
		a := &p.Actions[i]
		if objectName(a) != object {
			continue
		}
		if a.State != reconcile.Waiting || a.Op != reconcile.OpCreate {
			c.tb.Errorf("on %s, %s is %s %s: %s", host, object, a.Op, a.State, a.Reason)
		}
		for _, w := range words {
			if !strings.Contains(a.Reason, w) {
				c.tb.Errorf("on %s, %s waits because %q, which does not say %q", host, object, a.Reason, w)
			}
		}
		return
	}
	c.tb.Fatalf("host %s does not know of %s", host, object)
}

// refuses fails if a host takes the newest revision.
func (c *cluster) refuses(host string, words ...string) {
	c.tb.Helper()
	n := c.hosts[host]
	good := n.agent.mem.Good
	_, err := n.pass()
	if err == nil || n.agent.mem.Good != good {
		c.tb.Fatalf("host %s has %s in force, was %s: %v", host, n.agent.mem.Good, good, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			c.tb.Errorf("host %s refuses the revision with %q, which does not say %q", host, err, w)
		}
	}
}
