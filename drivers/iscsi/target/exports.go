package target

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// newTarget makes a target that has neither volume nor grants yet.
func (srv *Server) newTarget(e Export) *target {
	return &target{
		srv: srv, iqn: e.IQN, export: e, stop: func() {},
		control:  make(chan struct{}, 1),
		sessions: make(map[*session]struct{}),
		waiting:  make(map[seat]*admission),
	}
}

func (t *target) lock(ctx context.Context) error {
	select {
	case t.control <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s is being changed: %w", t.iqn, ctx.Err())
	}
}

func (t *target) unlock() { <-t.control }

// hold finds a target and takes the right to change it.
func (srv *Server) hold(ctx context.Context, iqn string) (*target, error) {
	srv.mu.RLock()
	t := srv.targets[iqn]
	srv.mu.RUnlock()
	if t == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, iqn)
	}
	if err := t.lock(ctx); err != nil {
		return nil, err
	}
	srv.mu.RLock()
	same := srv.targets[iqn] == t
	srv.mu.RUnlock()
	if !same {
		t.unlock()
		return nil, fmt.Errorf("%w: %s", ErrNotFound, iqn)
	}
	return t, nil
}

// put serves an export. Put again it may have other portals and another way of
// discovery; anything else that differs is a conflict.
func (srv *Server) put(ctx context.Context, e Export) error {
	if err := e.validate(); err != nil {
		return err
	}
	slices.Sort(e.Portals)
	e.Portals = slices.Compact(e.Portals)
	srv.mu.Lock()
	t := srv.targets[e.IQN]
	if t == nil {
		t = srv.newTarget(e)
		srv.targets[e.IQN] = t
		t.control <- struct{}{}
		srv.mu.Unlock()
		defer t.unlock()
		return srv.create(t, e)
	}
	srv.mu.Unlock()
	t, err := srv.hold(ctx, e.IQN)
	if err != nil {
		return err
	}
	defer t.unlock()
	t.mu.Lock()
	old, removed, open, file := t.export, t.removed, t.lu != nil, t.file
	t.mu.Unlock()
	if e.Volume == "" { // of a caller that does not know
		e.Volume = old.Volume
	}
	if open {
		if err := file.atPath(e.Path); err != nil {
			return err
		}
	}
	switch {
	case removed:
		return fmt.Errorf("%w: %s is being removed", ErrDraining, e.IQN)
	case old.Volume != "" && old.Volume != e.Volume:
		return fmt.Errorf("%w: %s is volume %s, exported is %s", ErrOther, e.Path, e.Volume, old.Volume)
	case old.Path != e.Path || old.Serial != e.Serial || old.UID != e.UID || old.ReadOnly != e.ReadOnly:
		return fmt.Errorf("%w: %s is %s, %s asked for", ErrConflict, e.IQN, old.Path, e.Path)
	}
	if open && e.Size > t.size() {
		return fmt.Errorf("%w: %s has %d bytes, %d expected", ErrConflict, e.Path, t.size(), e.Size)
	}
	e.Size = max(e.Size, old.Size)
	if old.Volume != e.Volume || !slices.Equal(old.Portals, e.Portals) || old.Size != e.Size || old.DiscoveryCHAP != e.DiscoveryCHAP {
		entry, _ := srv.state.get(e.IQN)
		entry.Export = e
		if err := srv.state.update(e.IQN, &entry); err != nil {
			return err
		}
		t.mu.Lock()
		t.export = e
		t.mu.Unlock()
	}
	err = srv.portals.set(e.IQN, e.Portals)
	if !open {
		err = errors.Join(err, t.open(e))
	}
	return err
}

func (t *target) size() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lu == nil {
		return 0
	}
	return t.lu.Size()
}

func (srv *Server) create(t *target, e Export) error {
	err := t.open(e)
	if err == nil {
		if err = srv.state.update(e.IQN, &saved{Export: e, File: t.file}); err != nil {
			err = errors.Join(err, t.lu.Close())
		}
	}
	if err != nil {
		srv.mu.Lock()
		delete(srv.targets, e.IQN)
		srv.mu.Unlock()
		return err
	}
	return srv.portals.set(e.IQN, e.Portals)
}

// restore serves an export of the records. A volume that cannot be opened is
// tried again until it can, or until the export is removed.
func (srv *Server) restore(e saved) *target {
	t := srv.newTarget(e.Export)
	for _, a := range e.access() {
		t.grants = append(t.grants, &grant{Access: a})
	}
	t.fenced = e.Fenced
	t.openErr = errors.New("not opened yet")
	ctx, cancel := context.WithCancel(srv.ctx)
	t.stop = cancel
	srv.mu.Lock()
	srv.targets[t.iqn] = t
	srv.mu.Unlock()
	return t.keepOpening(ctx)
}

// keepOpening begins to open the volume, until it is open.
func (t *target) keepOpening(ctx context.Context) *target {
	srv := t.srv
	attempt := func() bool {
		if t.lock(ctx) != nil {
			return true
		}
		defer t.unlock()
		t.mu.Lock()
		e, done := t.export, t.lu != nil || t.removed
		t.mu.Unlock()
		if done {
			return true
		}
		err := t.open(e)
		if err != nil {
			srv.log.Error("volume cannot be opened", "target", t.iqn, "error", err)
		}
		return err == nil
	}
	t.opened = make(chan struct{})
	srv.conns.Go(func() {
		ok := attempt()
		close(t.opened)
		if ok {
			return
		}
		tick := time.NewTicker(srv.limits.Retry)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if attempt() {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return t
}

// remove ends an export. Its entry is gone from the state first: a crash in
// between leaves it removed.
func (srv *Server) remove(ctx context.Context, iqn string) error {
	t, err := srv.hold(ctx, iqn)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer t.unlock()
	if err := srv.state.update(iqn, nil); err != nil {
		return err
	}
	if err := srv.portals.set(iqn, nil); err != nil {
		return err
	}
	if err := t.remove(ctx); err != nil {
		return err
	}
	if err := os.Remove(reservationFile(srv.cfg.StateDir, iqn)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	srv.mu.Lock()
	delete(srv.targets, iqn)
	srv.mu.Unlock()
	return nil
}

// grow makes the volume size bytes long. The size is recorded after it is real:
// a volume found larger than recorded is no error, a smaller one is.
func (srv *Server) grow(ctx context.Context, iqn string, size int64) error {
	t, err := srv.hold(ctx, iqn)
	if err != nil {
		return err
	}
	defer t.unlock()
	t.mu.Lock()
	lu := t.lu
	t.mu.Unlock()
	if lu == nil {
		return fmt.Errorf("%w: the volume of %s is not open", ErrConflict, iqn)
	}
	if err := lu.Grow(size); err != nil {
		return err
	}
	if size == 0 {
		return nil
	}
	entry, _ := srv.state.get(iqn)
	entry.Export.Size = size
	if err := srv.state.update(iqn, &entry); err != nil {
		return err
	}
	t.mu.Lock()
	t.export.Size = size
	t.mu.Unlock()
	return nil
}

// setAccess replaces the grants of an export: persisted, then what went is
// fenced, then what is new is admitted.
func (srv *Server) setAccess(ctx context.Context, iqn string, list []Access) error {
	if err := validateAccess(list); err != nil {
		return err
	}
	t, err := srv.hold(ctx, iqn)
	if err != nil {
		return err
	}
	defer t.unlock()
	entry, ok := srv.state.get(iqn)
	if !ok {
		return fmt.Errorf("%w: %s is being removed", ErrNotFound, iqn)
	}
	entry.Access = nil
	for _, a := range list {
		if entry.isFenced(a.Epoch) {
			return fmt.Errorf("%w: %d of %s", ErrFenced, a.Epoch, iqn)
		}
		entry.Access = append(entry.Access, a.wire())
	}
	if err := srv.state.update(iqn, &entry); err != nil {
		return err
	}
	return t.setAccess(ctx, list)
}

// fence ends an epoch for ever.
func (srv *Server) fence(ctx context.Context, iqn string, epoch uint64) error {
	t, err := srv.hold(ctx, iqn)
	if err != nil {
		return err
	}
	defer t.unlock()
	entry, ok := srv.state.get(iqn)
	if !ok {
		return fmt.Errorf("%w: %s is being removed", ErrNotFound, iqn)
	}
	entry.fence(epoch)
	if err := srv.state.update(iqn, &entry); err != nil {
		return err
	}
	t.mu.Lock()
	t.fenced = entry.Fenced
	t.mu.Unlock()
	return t.fence(ctx, epoch)
}

// clearReservations ends every reservation of an export.
func (srv *Server) clearReservations(ctx context.Context, iqn string) error {
	t, err := srv.hold(ctx, iqn)
	if err != nil {
		return err
	}
	defer t.unlock()
	return t.clearReservations(t.describe())
}

func (srv *Server) list() []Status {
	out := []Status{}
	for _, t := range srv.allTargets() {
		st := t.status()
		st.PortalErrors = srv.portals.errors(st.Portals)
		out = append(out, st)
	}
	return out
}
