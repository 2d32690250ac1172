package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"reconciler/deadline"
	"reconciler/internal/durable"
	"reconciler/internal/uptime"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
	"reconciler/trust"
)

// Config is what an agent is made of. Host, the directories, Source and the
// drivers must be given.
type Config struct {
	Host     string
	Repo     string // for people; without credentials
	Branch   string
	StateDir string
	RunDir   string

	Source     Source
	Hypervisor Hypervisor
	Storage    Storage
	Secrets    Secrets // nil: a machine that needs one cannot start
	Forge      Forge   // nil: nobody is told what became of a commit
	// Listen runs beside the agent and calls pushed when somebody tells of a
	// push, by a webhook for instance; nil: nobody does. Where it ends with an
	// error it is called again after a while.
	Listen func(ctx context.Context, pushed func()) error
	// Changed delivers machines whose state changed by itself, by UID.
	Changed <-chan string

	Interval  time.Duration // between passes; jitter of a tenth is added. Default 1m
	Heartbeat time.Duration // at most this long without a report. Default 10m
	Limits    policy.Limits // zero: policy.DefaultLimits
	Windows   policy.Schedule
	Tenants   []policy.Tenant
	Review    Review // whose approvals are waited for
	Signing   Signing
	Machine   string     // id of this machine, as MachineID gives it; empty where it has none
	HostKey   *trust.Key // signs what this host writes; nil: one that is kept in StateDir
	StatusRef string     // prefix of the ref that is written; default refs/reconciler/status/
	Drift     Drift
	// Parallel is how many actions run at a time. Default 4.
	Parallel int
	Version  string
	Log      *slog.Logger
	Now      func() time.Time // default time.Now
	// Uptime is the monotonic clock of this boot; default the kernel's.
	Uptime func() time.Duration
}

// Agent reconciles one host.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	store    store
	bootID   string     // so that a launch before a reboot is known to be gone
	hostKey  *trust.Key // signs what it writes
	events   *journal
	teller   *teller       // nil without a forge
	proposer *proposer     // nil where drift is not brought back
	kick     chan struct{} // somebody asked for a pass: pending
	rush     chan struct{} // the same, for a pass that waits for its actions

	publisher *publisher
	asking    chan struct{} // holds one while the repository is asked
	asides    asides

	life         context.Context // of the agent: what its actions run under
	tasks        sync.WaitGroup
	lanes        lanes
	interruption chan struct{} // the one that stops a machine

	disks, machines observer

	// pass is held while the world is observed to be changed, or is changed.
	pass      sync.Mutex
	lastHeard int // news; guarded by pass

	mu        sync.Mutex // guards what follows
	mem       memory
	base      reconcile.Base
	revisions map[reconcile.Key]string
	set       *spec.Set          // of mem.Good; nil before the first good revision
	contact   bool               // the last fetch succeeded and its revision is in force
	share     *reconcile.Desired // this host's of shareOf, worked out once for many passes
	shareOf   *spec.Set
	owners    owners
	places    *places                  // nil until the history was read
	walked    string                   // up to which places knows the history
	arrival   map[reconcile.Key]string // why objects that other hosts had wait, as was heard last
	tenancy   tenancy
	failures  map[reconcile.Key]*failure
	repeats   map[reconcile.Key]*repeat
	running   map[reconcile.Key]*task
	unwritten []*task         // that ended, and whose results are not in the records yet
	plan      *reconcile.Plan // of the last pass
	have      reconcile.State
	objects   []status.Object
	host      status.Host
	published published
	review    reviewer
	pending   trigger
	outbox    *report
	again     failure // of passes that cannot wait for the interval
	lastAsked int     // of news
	fetchErr  error   // of the newest news

	self   atomic.Pointer[self]   // this host's object, once a tree said it
	called atomic.Pointer[string] // this host's name in the tree in force

	instance   string                            // of this process, in what it reports
	pushed     bool                              // this process has reported
	doubled    bool                              // it was said that another machine is this host
	recalled   map[reconcile.Key]*reconcile.Live // what was here by the last report, where the memory was lost
	witnessed  bool                              // what was in force before is known, as far as it can be
	keyUsed    bool                              // the key has signed reports before
	keyDiffers string                            // the declared key that was complained of
	excludes   bool                              // other agents of the same host; the locks are held
	cluster    func()                            // gives back what is held against other agents of the same cluster and host
	// passFailed is what was last said to be wrong with a pass.
	passFailed string
}

// trigger asks for a pass.
type trigger struct {
	fetch bool
	why   string
}

// New opens the agent's state. It changes nothing outside its directories.
func New(cfg Config) (*Agent, error) {
	if cfg.Interval == 0 {
		cfg.Interval = time.Minute
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 10 * time.Minute
	}
	if cfg.Limits == (policy.Limits{}) {
		cfg.Limits = policy.DefaultLimits
	}
	if cfg.StatusRef == "" {
		cfg.StatusRef = "refs/reconciler/status/"
	}
	if cfg.Review.Ref == "" {
		cfg.Review.Ref = approvalRef
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = 4
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Uptime == nil {
		cfg.Uptime = uptime.Up
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := durable.Open(filepath.Join(cfg.StateDir, "agent"), 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the state directory: %w", err)
	}
	a := &Agent{
		cfg: cfg, log: cfg.Log, store: store{dir}, kick: make(chan struct{}, 1), life: context.Background(),
		failures: map[reconcile.Key]*failure{}, repeats: map[reconcile.Key]*repeat{}, running: map[reconcile.Key]*task{}, have: reconcile.NewState(),
		lanes: lanes{room: cfg.Parallel}, rush: make(chan struct{}, 1), interruption: make(chan struct{}, 1), asking: make(chan struct{}, 1),
	}
	a.instance = uuid.NewString()
	if a.bootID, err = uptime.Boot(); err != nil {
		return nil, err
	}
	if err := a.openKey(); err != nil {
		return nil, err
	}
	if err := loadRecord(a, stateFile, &a.mem); err != nil {
		return nil, err
	}
	var base applied
	if err := loadRecord(a, baseFile, &base); err != nil {
		return nil, err
	}
	a.base, a.revisions = base.maps()
	if err := a.loadOwners(); err != nil {
		return nil, err
	}
	if err := a.loadPlaces(); err != nil {
		return nil, err
	}
	if err := loadRecord(a, reviewFile, &a.review.reviewMemory); err != nil {
		return nil, err
	}
	if err := a.suspendForLoss(); err != nil {
		return nil, err
	}
	a.review.begin(a.mem.LastApplied)
	if a.mem.Restarts == nil {
		a.mem.Restarts = map[string]reconcile.Restart{}
	}
	if a.events, err = openJournal(dir.Path(), cfg.Now); err != nil {
		return nil, err
	}
	a.publisher = &publisher{courier: newCourier(), a: a}
	if a.proposer = newProposer(cfg, a.store, a.log, a.events); a.proposer != nil {
		if err := loadRecord(a, driftFile, &a.proposer.made); err != nil {
			return nil, err
		}
	}
	if cfg.Forge != nil {
		a.teller = newTeller(cfg.Forge, cfg.Host, a.store, a.log, a.events)
		said := mapRecord[verdict]{a.teller.said}
		if err := loadRecord(a, saidFile, &said); err != nil {
			return nil, err
		}
		a.teller.said = said.Entries
	}
	return a, nil
}

// clock is what deadlines are held against.
func (a *Agent) clock() deadline.Clock {
	return deadline.Clock{Now: a.cfg.Now(), BootID: a.bootID, Up: a.cfg.Uptime()}
}

// boot brings the last good revision into force, without the network.
func (a *Agent) boot(ctx context.Context) error {
	if err := a.settleMachine(); err != nil {
		return err
	}
	if a.mem.Good == "" || a.set != nil {
		return nil
	}
	set, err := a.cfg.Source.Load(ctx, a.mem.Good)
	if err != nil {
		return fmt.Errorf("the last good revision %s cannot be read from the cache: %w", a.mem.Good, err)
	}
	a.mu.Lock()
	a.follow(set)
	a.mu.Unlock()
	a.catchUp(ctx, set)
	return nil
}

// catchUp reads the history of the revision in force where an older build never
// did.
func (a *Agent) catchUp(ctx context.Context, set *spec.Set) {
	a.mu.Lock()
	unread, good := a.places == nil, a.mem.Good
	if !unread {
		a.walked = good
	}
	a.mu.Unlock()
	if !unread {
		return
	}
	if err := a.learn(ctx, good, good, set); err != nil {
		a.log.Warn("what is new here waits: the history of the repository cannot be read", "error", err)
	}
}

// refusal is why the newest revision is not in force.
type refusal struct {
	reason  string // CamelCase
	message string
}

// fetchFailed is the reason while the repository cannot be reached.
const fetchFailed = "FetchFailed"

func (r *refusal) Error() string { return bounded(r.message) }

// advance brings the newest revision into force if it may be.
// Whatever goes wrong, the last good one stays.
func (a *Agent) advance(ctx context.Context, n *news) error {
	rev, err, forgotten := n.rev, n.err, n.forgotten
	a.mu.Lock()
	if a.fetchErr = nil; err != nil {
		a.fetchErr = &refusal{fetchFailed, "fetch: " + err.Error()}
		a.mu.Unlock()
		return a.fetchErr
	}
	a.mem.LastContact = n.at
	good, set := a.mem.Good, a.set
	seen := rev.Hash == a.mem.LastAttempted
	a.mu.Unlock()
	if rev.Hash == good && set != nil {
		a.catchUp(ctx, set)
		return a.settleRevision(rev, set, a.checkTenants(set), seen)
	}
	err = forgotten
	var next *spec.Set
	if err == nil || a.accepted(rev.Hash) {
		next, err = a.examine(ctx, rev.Hash, good)
	}
	if err == nil {
		if err = a.cfg.Source.Keep(ctx, rev.Hash); err != nil {
			err = &refusal{"CacheFailed", "keep the revision in the cache: " + err.Error()}
		}
	}
	if err == nil {
		err = a.learn(ctx, good, rev.Hash, next)
	}
	if err == nil {
		err = a.forgetWithdrawn(ctx, good, rev.Hash)
	}
	return a.settleRevision(rev, next, err, seen)
}

// settleRevision writes down what became of a revision.
func (a *Agent) settleRevision(rev Revision, set *spec.Set, err error, seen bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	refused := ""
	if err != nil {
		refused = err.Error()
	}
	if seen && refused == a.mem.Refused && (err != nil || a.mem.Good == rev.Hash) {
		if err == nil {
			a.follow(set)
		}
		return err
	}
	work := err == nil && a.concerns(rev.Hash, set)
	serr := a.keep(func(m *memory) {
		m.LastAttempted, m.Refused = rev.Hash, refused
		if err != nil {
			return
		}
		if work {
			m.Tracked = rev.Hash
		}
		m.Good, m.Witnessed = rev.Hash, ""
		// An acceptance is for once: to go back to the revision later on is
		// another rewrite.
		m.Accepted = slices.DeleteFunc(m.Accepted, func(h string) bool { return h == rev.Hash })
		m.Cluster = set.ClusterID()
		m.IQNBase = set.Cluster().Spec.(*spec.Cluster).IQNBase
	})
	if serr != nil {
		return errors.Join(err, serr)
	}
	if err != nil {
		a.events.warn("", "RevisionRefused", fmt.Sprintf("%s stays in force, %s is refused: %v", short(a.mem.Good), short(rev.Hash), err))
		return err
	}
	a.follow(set)
	a.events.normal("", "Revision", fmt.Sprintf("%s %s", short(rev.Hash), rev.Subject))
	return nil
}

func short(hash string) string {
	if hash == "" {
		return "nothing"
	}
	return hash[:min(12, len(hash))]
}

// examine decides whether a revision may come into force after good.
func (a *Agent) examine(ctx context.Context, hash, good string) (*spec.Set, error) {
	before := cmp.Or(good, a.lastKnown())
	if before != "" {
		ok, err := a.descends(ctx, before, hash)
		if err != nil {
			return nil, unreadable(err)
		}
		switch {
		case ok:
		case a.accepted(hash):
			before = good
		case good == "":
			return nil, &refusal{"RolledBack", fmt.Sprintf(
				"it does not descend from %s, which was in force before this agent's memory was lost: so says the report that this host signed (reconciler accept %s --reason … if that is meant)", short(before), short(hash))}
		default:
			return nil, &refusal{"NonFastForward", fmt.Sprintf(
				"it does not descend from %s: the branch was rewritten or rolled back (reconciler accept %s --reason … if that is meant)", short(good), short(hash))}
		}
	}
	if err := a.trusted(ctx, before, hash); err != nil {
		return nil, err
	}
	set, err := a.cfg.Source.Load(ctx, hash)
	if errors.Is(err, spec.ErrEmpty) {
		return nil, &refusal{"EmptyTree", spec.ErrEmpty.Error()}
	}
	if err != nil {
		return nil, &refusal{"Invalid", "the specs do not load: " + err.Error()}
	}
	if err := a.belongs(set); err != nil {
		return nil, err
	}
	if err := a.keepsDisks(ctx, set); err != nil {
		return nil, err
	}
	if err := a.lockCluster(set.ClusterID()); err != nil {
		return nil, &refusal{"OtherAgent", err.Error()}
	}
	return set, a.checkTenants(set)
}

// belongs refuses a tree of another cluster, and one without this host.
func (a *Agent) belongs(set *spec.Set) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if id := set.ClusterID(); a.mem.Cluster != "" && id != a.mem.Cluster {
		return &refusal{"OtherCluster", fmt.Sprintf(
			"it declares the cluster id %q, and this host belongs to %q (a renamed Cluster keeps its identity by spec.id or metadata.movedFrom)", id, a.mem.Cluster)}
	}
	if base := set.Cluster().Spec.(*spec.Cluster).IQNBase; a.mem.IQNBase != "" && base != a.mem.IQNBase && a.hasDisks() {
		return &refusal{"IQNBaseChanged", fmt.Sprintf("it changes iqnBase from %s to %s while disks exist", a.mem.IQNBase, base)}
	}
	if a.selfIn(set) == nil {
		why := fmt.Sprintf("Host/%s, which is this host, is not declared", a.cfg.Host)
		if o := set.HostCalled(a.cfg.Host); o != nil {
			why += fmt.Sprintf(" (it is a former name of Host/%s: where this is that host, set host: %s in its configuration)", o.Meta.Name, o.Meta.Name)
		}
		return &refusal{"HostMissing", why}
	}
	return nil
}

// keepsDisks refuses a tree that has a disk of this host somewhere else.
func (a *Agent) keepsDisks(ctx context.Context, set *spec.Set) error {
	a.mu.Lock()
	have, looked, recalled := a.have, a.have.Complete[spec.KindDisk], a.recalled
	a.mu.Unlock()
	if !looked {
		// The volumes' own records tell it, also when the agent's memory was lost;
		// when that of the storage was, too, the last report does.
		ctx, cancel := context.WithTimeout(ctx, observeTimeout)
		defer cancel()
		var err error
		if have, err = a.disks.observe(ctx, "disks", a.cfg.Storage, reconcile.NewDesired(set, a.nameIn(set), "")); err != nil {
			a.log.Warn("where disks are is known from what was last applied and reported only", "error", err)
			have = reconcile.NewState()
		}
		for k, h := range recalled {
			if have.Objects[k] == nil {
				have.Objects[k] = h
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if errs := reconcile.Misplaced(set, a.nameIn(set), a.base, have); len(errs) > 0 {
		return &refusal{"DiskMoved", "a disk is declared where it is not: " + errs.Error()}
	}
	return nil
}

func (a *Agent) hasDisks() bool {
	for k := range a.base {
		if k.Kind == spec.KindDisk {
			return true
		}
	}
	return false
}

// accepted says whether an operator accepted a revision that is no descendant.
func (a *Agent) accepted(hash string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(a.mem.Accepted, hash)
}
