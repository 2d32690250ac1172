package gitrepo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/go-git/go-git/v5/plumbing"

	"reconciler/gitrepo/internal/odb"
)

// maxLoadErrors bounds how many refused files one Load reports.
const maxLoadErrors = 20

// Load reads files of the tree and calls fn with the index in files and the
// content, which fn may keep. It reads in the order of the packs, on all
// processors: fn is called concurrently and in no order. A file over its limit is
// a *PathError; all of them are reported, joined (at most 20). An error of fn
// ends the load.
func (t *Tree) Load(ctx context.Context, files []File, fn func(i int, data []byte) error) error {
	const chunk = 256
	db, limits := t.repo.db, t.repo.cfg.Limits
	order := db.Order(len(files), func(i int) hash { return files[i].Blob })
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next, total atomic.Int64
	var mu sync.Mutex
	var refused []*PathError
	work := func() {
		cur := db.NewCursor()
		for ctx.Err() == nil {
			from := int(next.Add(chunk)) - chunk
			if from >= len(order) {
				return
			}
			for _, i := range order[from:min(from+chunk, len(order))] {
				if ctx.Err() != nil {
					return
				}
				data, err := readFile(cur, files[i], limits)
				if err == nil && total.Add(int64(len(data))) > limits.TotalBytes {
					err = &PathError{Path: files[i].Path, Reason: OverTotal, Hint: fmt.Sprintf("at most %d bytes in all files", limits.TotalBytes)}
				}
				var perr *PathError
				switch {
				case errors.As(err, &perr):
					mu.Lock()
					refused = append(refused, perr)
					mu.Unlock()
					if perr.Reason == OverTotal {
						cancel(errStop)
					}
				case err != nil:
					cancel(t.repo.readError(err))
				default:
					if err := fn(i, data); err != nil {
						cancel(err)
					}
				}
			}
		}
	}
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 1+len(files)/chunk) {
		wg.Go(work)
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && err != errStop {
		return err
	}
	return joinRefused(refused)
}

// errStop ends the workers of a load whose error is in the list of refused files.
var errStop = errors.New("stop")

func joinRefused(refused []*PathError) error {
	slices.SortFunc(refused, func(a, b *PathError) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(string(a.Reason), string(b.Reason)))
	})
	var errs []error
	for i, e := range refused {
		if i == maxLoadErrors {
			errs = append(errs, fmt.Errorf("and %d more", len(refused)-i))
			break
		}
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// Read returns the content of one file.
func (t *Tree) Read(ctx context.Context, f File) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	data, err := readFile(t.repo.db.NewCursor(), f, t.repo.cfg.Limits)
	return data, t.repo.readError(err)
}

func readFile(cur *odb.Cursor, f File, limits Limits) ([]byte, error) {
	o, err := cur.Get(f.Blob, limits.FileBytes)
	switch {
	case errors.Is(err, odb.ErrTooLarge):
		return nil, &PathError{Path: f.Path, Reason: OverSize, Hint: fmt.Sprintf("at most %d bytes", limits.FileBytes)}
	case err != nil:
		return nil, missing("file "+f.Path, f.Blob, err)
	case o.Type != plumbing.BlobObject:
		return nil, &PathError{Path: f.Path, Reason: BadTree}
	}
	return o.Data, nil
}
