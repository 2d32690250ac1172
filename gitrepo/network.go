package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io"

	"reconciler/gitrepo/internal/odb"
	"reconciler/gitrepo/internal/wire"
)

// network is a repository behind http(s) or ssh.
type network struct{ w *wire.Remote }

func newNetwork(cfg Config) (remote, error) {
	w, err := wire.New(wire.Options{
		URL: cfg.URL, TokenFile: cfg.TokenFile, SSHKeyFile: cfg.SSHKeyFile, KnownHosts: cfg.KnownHostsFile, CAFile: cfg.CAFile,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Redact(cfg.URL), err)
	}
	return &network{w}, nil
}

func (n *network) upload(ctx context.Context) (upload, error) {
	s, err := n.w.Open(ctx, wire.UploadPack)
	if err != nil {
		return nil, err
	}
	return networkSession{s}, nil
}

func (n *network) receive(ctx context.Context) (receive, error) {
	s, err := n.w.Open(ctx, wire.ReceivePack)
	if err != nil {
		return nil, err
	}
	return networkSession{s}, nil
}

type networkSession struct{ s *wire.Session }

func (n networkSession) close() { n.s.Close() }

func (n networkSession) ref(name string) (h hash, ok bool, err error) {
	h, ok = n.s.Ref(name)
	return h, ok, nil
}

func (n networkSession) names() []string { return n.s.Names() }

func (n networkSession) peeled(name string) (h hash, ok bool, err error) {
	if h, ok = n.s.Peeled(name); ok {
		return h, true, nil
	}
	return n.ref(name)
}

func (n networkSession) fetch(ctx context.Context, db *odb.DB, limits odb.Limits, want hash, haves []hash, _ func(hash) bool) (*odb.Staged, error) {
	var staged *odb.Staged
	err := n.s.Fetch(ctx, want, haves, func(r io.Reader) (err error) {
		staged, err = db.Receive(ctx, r, limits)
		// What the peer sent is wrong, not what we keep.
		if errors.Is(err, odb.ErrCorrupt) || errors.Is(err, odb.ErrNotFound) {
			err = fmt.Errorf("%w: %v", ErrProtocol, err)
		}
		return err
	})
	if err != nil && staged != nil {
		err = errors.Join(err, staged.Discard())
		staged = nil
	}
	return staged, err
}

func (n networkSession) push(ctx context.Context, name string, old, new hash, objects []object) error {
	if new.IsZero() {
		return n.s.Delete(ctx, name, old)
	}
	pack := make([]odb.Object, len(objects))
	for i, o := range objects {
		pack[i] = odb.Object{Type: o.typ, Data: o.data}
	}
	b, err := odb.Encode(pack)
	if err != nil {
		return err
	}
	return n.s.Push(ctx, name, old, new, b)
}
