package agent

import (
	"context"
	"time"

	"reconciler/api"
	"reconciler/claim"
	"reconciler/forge"
	"reconciler/gitrepo"
	"reconciler/reconcile"
	"reconciler/spec"
)

// Revision is one commit of the watched repository.
type Revision = gitrepo.Commit

// Source is the repository.
type Source interface {
	// Fetch returns the newest revision of the watched branch.
	Fetch(ctx context.Context) (Revision, error)
	// Resolve finds a revision by hash, abbreviation or ref, in the cache first.
	Resolve(ctx context.Context, rev string) (Revision, error)
	// Load reads the specs of a revision. Errors of the specs are spec.Errors.
	Load(ctx context.Context, hash string) (*spec.Set, error)
	// Descends says whether hash has ancestor among its ancestors, or is it.
	Descends(ctx context.Context, ancestor, hash string) (bool, error)
	// Keep makes sure that a revision stays readable without the network.
	Keep(ctx context.Context, hash string) error
	// Publish writes files to this host's ref, if they differ from what is there.
	Publish(ctx context.Context, ref, message string, files map[string][]byte, opts gitrepo.PushOptions) error
	// Report reads back a file of what a host published, and what signs it: what
	// the signature covers, and the signature, nil if there is none.
	Report(ctx context.Context, ref, name string) (data, payload, signature []byte, err error)
	// Signed returns what the signature of a commit covers, and the signature.
	Signed(ctx context.Context, hash string) (payload, signature []byte, err error)
	// Published reads back a file of what a host published.
	Published(ctx context.Context, ref, name string) ([]byte, error)
	// Records reads all files of a ref of ours; none if it is not there.
	Records(ctx context.Context, ref string) (map[string][]byte, error)
	// Between lists the commits of to that from does not contain, newest first;
	// with firstParent only those of the branch itself.
	Between(ctx context.Context, from, to string, firstParent bool) ([]Revision, error)
	// Watch lists local paths whose change means a push; none for a remote repository.
	Watch() []string
}

// Forge is where the repository is hosted.
type Forge interface {
	// SetStatus sets the status of a commit. Of an error that is a *forge.Error
	// it matters when to try again.
	SetStatus(ctx context.Context, commit string, s forge.Status) error
}

// Driver observes and changes some kinds.
type Driver interface {
	Observe(ctx context.Context, want *reconcile.Desired) (reconcile.State, error)
	Apply(ctx context.Context, a reconcile.Action, in reconcile.Inputs) (reconcile.Outputs, error)
}

// Hypervisor is the driver of machines.
type Hypervisor interface {
	Driver
	// Prove finds out whether a machine would start as an action wants it, while
	// it still runs as it is. It needs no grants, and changes nothing.
	Prove(ctx context.Context, a reconcile.Action, in reconcile.Inputs) error
	// Console says where the serial console of a machine is.
	Console(uid string) api.Console
}

// Storage is the driver of pools, images and disks, and the arbiter of who
// may write one.
type Storage interface {
	Driver
	// Ensure makes the target run and serve what is recorded, and finishes what
	// a crash left half done.
	Ensure(ctx context.Context) error
	Claim(ctx context.Context, disk string, o claim.Owner) (claim.Grant, error)
	Release(ctx context.Context, disk string, o claim.Owner) error
	// ReleaseMachine takes every disk from a machine whose process is gone.
	ReleaseMachine(ctx context.Context, vm string) error
	// ImageFile returns the verified file of an image, fetching it if need be.
	ImageFile(ctx context.Context, image *reconcile.Object, progress func(string, ...any)) (string, error)
	// Undelete keeps a quarantined disk without a deadline and returns the
	// document that declares it.
	Undelete(ctx context.Context, disk string) (yaml string, err error)
	Access(ctx context.Context, disk string, r api.AccessRequest, until time.Time) (api.Access, error)
	ListAccess(ctx context.Context) ([]api.Access, error)
	EndAccess(ctx context.Context, id string) error
	// ClearReservations ends what initiators reserved of a disk and says what it was.
	ClearReservations(ctx context.Context, disk string) ([]string, error)
}
