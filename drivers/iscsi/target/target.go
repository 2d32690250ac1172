package target

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"reconciler/drivers/iscsi/scsi"
	"reconciler/drivers/iscsi/target/pdu"
	"reconciler/internal/durable"
)

// target is one export with its grants and sessions.
type target struct {
	srv *Server
	iqn string
	// control holds one token: changes of a target follow each other, and one
	// that waits for a stuck volume holds up no other target.
	control chan struct{}
	stop    context.CancelFunc // of the attempts to open the volume
	opened  chan struct{}      // closed after the first attempt, at a restart

	mu       sync.Mutex
	export   Export
	lu       LogicalUnit // nil while the volume cannot be opened
	openErr  error
	file     *File // what lu has open, where that is known
	grants   []*grant
	fenced   []uint64
	sessions map[*session]struct{} // from admission until nothing of it is left
	waiting  map[seat]*admission
	removed  bool
}

// grant is an Access in force. It is replaced, never changed, but for what is
// only stored.
type grant struct {
	Access
	revoked bool // guarded by its target's mu
}

// seat is what there is one session of: an initiator, by one grant. Whoever holds
// another grant under the same name, as an access that reads beside a machine, ends
// no session but its own.
type seat struct {
	initiator string
	epoch     uint64
}

// admission is a login that waits for an older session to end.
type admission struct{ supersede context.CancelFunc }

// names says whether the grant is for an initiator, whose name is folded.
func (g *grant) names(initiator string) bool {
	return slices.ContainsFunc(g.Initiators, func(n string) bool { return scsi.FoldName(n) == initiator })
}

func (t *target) describe() Export {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.export
}

func (t *target) grantsOf(initiator string) []*grant {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*grant
	for _, g := range t.grants {
		if g.names(initiator) {
			out = append(out, g)
		}
	}
	return out
}

func (t *target) eachSession(do func(*session)) {
	t.mu.Lock()
	list := make([]*session, 0, len(t.sessions))
	for s := range t.sessions {
		list = append(list, s)
	}
	t.mu.Unlock()
	for _, s := range list {
		do(s)
	}
}

// admit makes s the session of its initiator with this target.
//
// RFC 7143 §6.3.5 reinstates a session when name and ISID are those of an older
// one. Here name and grant decide: an initiator has one session of a grant, and
// libiscsi (QEMU) reconnects with a new random ISID, so by the letter a write of
// its old connection, held up at the volume, could land on data that it has
// written through the new one since. The older session is closed, and the new one is
// answered only when all of the older one's commands have ended. Initiators that
// share a volume on purpose have names of their own.
func (t *target) admit(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, t.srv.limits.Drain)
	defer cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	// An initiator that gave up waiting and came again takes its own place.
	seat := s.seat()
	if earlier := t.waiting[seat]; earlier != nil {
		earlier.supersede()
	}
	superseded, supersede := context.WithCancel(ctx)
	defer supersede()
	self := &admission{supersede}
	t.waiting[seat] = self
	defer func() {
		if t.waiting[seat] == self {
			delete(t.waiting, seat)
		}
	}()
	for {
		switch {
		case t.removed:
			return refuse(pdu.LoginRemoved, "%s was removed", t.iqn)
		case s.grant.revoked:
			return refuse(pdu.LoginForbidden, "access of epoch %d has ended", s.grant.Epoch)
		case t.lu == nil:
			return refuse(pdu.LoginUnavailable, "the volume of %s cannot be opened", t.iqn)
		case superseded.Err() != nil:
			return refuse(pdu.LoginUnavailable, "commands of an older session of %s are still in flight", s.initiator)
		}
		var older *session
		siblings := 0
		for o := range t.sessions {
			if o.seat() == seat {
				older = o
			}
			if o.grant.Epoch == seat.epoch {
				siblings++
			}
		}
		if older != nil && s.replacedFrom == "" {
			s.replaced, s.replacedFrom = older.replaced+1, older.nc.RemoteAddr().String()
			s.log.Warn("a second login ends the session of the first", "address", s.nc.RemoteAddr().String(), "first", s.replacedFrom)
		}
		if older == nil {
			// Each grant has places of its own: readers leave a machine's alone.
			if siblings >= t.srv.limits.Sessions {
				return refuse(pdu.LoginOutOfResources, "epoch %d of %s has %d sessions", seat.epoch, t.iqn, siblings)
			}
			break
		}
		t.mu.Unlock()
		older.close()
		select {
		case <-older.gone:
		case <-superseded.Done():
		}
		t.mu.Lock()
	}
	s.lu = t.lu
	t.sessions[s] = struct{}{}
	t.lu.Attach(s.nexus)
	t.srv.addSession(s)
	return nil
}

// ended takes a session out once nothing of it is left at the volume.
func (t *target) ended(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.sessions[s]; !ok {
		return
	}
	delete(t.sessions, s)
	s.lu.Detach(s.nexus)
}

// setAccess puts list in the place of the grants there are. It returns when no
// session of a grant that went is left, or with ErrDraining.
func (t *target) setAccess(ctx context.Context, list []Access) error {
	t.mu.Lock()
	next := make([]*grant, 0, len(list))
	for _, a := range list {
		i := slices.IndexFunc(t.grants, func(g *grant) bool { return g.same(a) })
		if i >= 0 {
			g := t.grants[i]
			g.Kind, g.Owner, g.Incoming = a.Kind, a.Owner, a.Incoming
			next = append(next, g)
			continue
		}
		next = append(next, &grant{Access: a})
	}
	for _, g := range t.grants {
		g.revoked = !slices.Contains(next, g)
	}
	// Grants that take the place of revoked ones are in force only after those
	// are gone: until then they are two writers.
	t.grants = slices.DeleteFunc(slices.Clone(next), func(g *grant) bool { return !slices.Contains(t.grants, g) })
	t.mu.Unlock()

	if err := t.drain(ctx, func(s *session) bool { return s.grant.revoked }); err != nil {
		return err
	}
	t.mu.Lock()
	t.grants = next
	t.settleLocked()
	t.mu.Unlock()
	return nil
}

// settleLocked ends what grants that are no more left in the logical unit: a
// registration outlives its session, but not the right to come back. What a crash
// leaves undone is done when the volume is opened.
func (t *target) settleLocked() {
	if t.lu == nil {
		return
	}
	err := t.lu.Keep(func(initiator string, epoch uint64) bool {
		return slices.ContainsFunc(t.grants, func(g *grant) bool {
			return g.Epoch == epoch || epoch == 0 && g.names(initiator)
		})
	})
	if err != nil {
		t.srv.log.Warn("ended reservations are still in their file", "target", t.iqn, "error", err)
	}
}

// clearReservations ends every reservation of the logical unit. Where a damaged
// record of them keeps the volume from being opened, the record goes.
func (t *target) clearReservations(e Export) error {
	t.mu.Lock()
	lu, why := t.lu, t.openErr
	t.mu.Unlock()
	if lu != nil {
		return lu.ClearReservations()
	}
	// Of a volume that cannot be opened for another reason, and of a later build,
	// they stay.
	var later *durable.VersionError
	if !errors.Is(why, scsi.ErrReservations) || errors.As(why, &later) {
		return fmt.Errorf("%w: %s is not served: %v", ErrConflict, t.iqn, why)
	}
	if err := os.Remove(reservationFile(t.srv.cfg.StateDir, e.IQN)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return t.open(e)
}

// fence ends an epoch: no login of it succeeds from here on, and when nil is
// returned no command of it touches the volume any more. It never returns nil
// early; after ErrDraining it has to be called again.
func (t *target) fence(ctx context.Context, epoch uint64) error {
	t.mu.Lock()
	t.grants = slices.DeleteFunc(slices.Clone(t.grants), func(g *grant) bool {
		if g.Epoch == epoch {
			g.revoked = true
		}
		return g.revoked
	})
	t.mu.Unlock()
	if err := t.drain(ctx, func(s *session) bool { return s.grant.Epoch == epoch }); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settleLocked()
	return nil
}

// drain closes the sessions that match and waits until nothing of them is left.
func (t *target) drain(ctx context.Context, match func(*session) bool) error {
	t.mu.Lock()
	var list []*session
	for s := range t.sessions {
		if match(s) {
			list = append(list, s)
		}
	}
	t.mu.Unlock()
	for _, s := range list {
		s.close()
	}
	for _, s := range list {
		select {
		case <-s.gone:
		case <-ctx.Done():
			return fmt.Errorf("%w: %s of %s: %w", ErrDraining, s.initiator, t.iqn, ctx.Err())
		}
	}
	return nil
}

// remove ends the target. The volume is closed when the last session is gone.
func (t *target) remove(ctx context.Context) error {
	t.mu.Lock()
	t.removed = true
	for _, g := range t.grants {
		g.revoked = true
	}
	t.grants = nil
	t.mu.Unlock()
	t.stop()
	t.eachSession(func(s *session) { s.announceDrop() })
	if err := t.drain(ctx, func(*session) bool { return true }); err != nil {
		return err
	}
	t.mu.Lock()
	lu := t.lu
	t.lu = nil
	t.mu.Unlock()
	if lu == nil {
		return nil
	}
	return lu.Close()
}

func (t *target) status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := Status{Export: t.export, File: t.file, Access: []Access{}, Fenced: slices.Clone(t.fenced), Sessions: []Session{}}
	if t.lu != nil {
		st.Size, st.Reservations = t.lu.Size(), t.lu.Reservations()
	}
	if t.openErr != nil {
		st.Error = t.openErr.Error()
	}
	for _, g := range t.grants {
		a := g.Access
		a.Password, a.MutualPassword = noSecret, noSecret
		st.Access = append(st.Access, a)
	}
	for s := range t.sessions {
		st.Sessions = append(st.Sessions, s.status())
	}
	slices.SortFunc(st.Sessions, func(a, b Session) int { return a.Since.Compare(b.Since) })
	return st
}

// open opens the volume, if what is at the path is the one that was exported.
func (t *target) open(e Export) error {
	lu, err := t.srv.cfg.Open(e)
	if err == nil && lu.Size() < e.Size {
		err = errors.Join(fmt.Errorf("%s has %d bytes, %d expected", e.Path, lu.Size(), e.Size), lu.Close())
	}
	var file *File
	if err == nil {
		if file, err = t.recognise(e, lu); err != nil {
			err = errors.Join(err, lu.Close())
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.openErr = err
	if err == nil {
		t.lu, t.file = lu, file
		t.settleLocked()
	}
	return err
}

// recognise compares what was opened with what was exported, and records of an
// export what is not recorded yet.
func (t *target) recognise(e Export, lu LogicalUnit) (*File, error) {
	file, id, err := identify(e, lu)
	if err != nil {
		return nil, err
	}
	entry, exported := t.srv.state.get(e.IQN)
	if e.Volume == "" {
		e.Volume = entry.Export.Volume
	}
	known := saved{Export: e, File: entry.File}
	if err := known.check(file, id); err != nil || !exported || file == nil {
		return file, err
	}
	if entry.File != nil && *entry.File == *file && (entry.Export.Volume != "" || id == "") {
		return file, nil
	}
	entry.File = file
	if entry.Export.Volume == "" {
		entry.Export.Volume = id
	}
	if err := t.srv.state.update(e.IQN, &entry); err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.export.Volume = entry.Export.Volume
	t.mu.Unlock()
	return file, nil
}
