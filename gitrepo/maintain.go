package gitrepo

import (
	"context"
	"os"
	"path/filepath"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
)

// packLimit is when the cache is repacked.
type packLimit struct{ packs int }

var (
	softLimits = packLimit{packs: 16}
	hardLimits = packLimit{packs: 64}
)

// Maintain repacks the cache if that is worth it: all that the newest and the
// pinned commit need goes into one pack, the rest is dropped. Call it when idle;
// Fetch does the same at a higher threshold.
func (r *Repo) Maintain(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.maintain(ctx, softLimits)
}

func (r *Repo) maintain(ctx context.Context, limit packLimit) error {
	if r.damaged() || r.db.Stats().Packs <= limit.packs {
		return nil
	}
	roots, err := r.roots()
	if err != nil {
		return err
	}
	return r.repack(ctx, roots)
}

// roots are the commits that must stay readable.
func (r *Repo) roots() ([]hash, error) {
	var roots []hash
	for _, ref := range []string{r.tipRef(), pinRef} {
		name, err := r.readRef(ref)
		if err != nil {
			return nil, err
		}
		if name != "" {
			roots = append(roots, plumbing.NewHash(name))
		}
	}
	return roots, nil
}

func (r *Repo) repack(ctx context.Context, roots []hash) error {
	list, err := closure(ctx, r.db, roots, func(hash) bool { return false })
	if err != nil {
		return r.readError(err)
	}
	staged, err := copyObjects(ctx, r.db, r.db, odb.Limits{}, list)
	if err != nil {
		return r.readError(err)
	}
	return staged.Replace()
}

// repaired ends a fetch that trusted nothing: what is whole is kept, the rest
// dropped. A pinned commit that the damage took stays pinned by name, so that it
// is not taken for "nothing was ever applied".
func (r *Repo) repaired(ctx context.Context, tip hash) error {
	roots := []hash{tip}
	pin, err := r.readRef(pinRef)
	if err != nil {
		return err
	}
	if pin != "" {
		h := plumbing.NewHash(pin)
		if _, err := closure(ctx, r.db, []hash{h}, func(hash) bool { return false }); err == nil {
			roots = append(roots, h)
		}
	}
	if err := r.repack(ctx, roots); err != nil {
		return err
	}
	return os.Remove(filepath.Join(r.dir, damageMark))
}

// Stats is the size of the cache.
type Stats struct {
	Packs   int   // packfiles
	Objects int   // objects in them
	Bytes   int64 // on disk, indexes included
}

// Stats measures the cache.
func (r *Repo) Stats() Stats { return Stats(r.db.Stats()) }
