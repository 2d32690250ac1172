package reconcile

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"sort"
)

// digest hashes strings with their lengths, so that no two lists collide.
type digest struct{ h hash.Hash }

func newHash() digest { return digest{sha256.New()} }

func (d digest) add(parts ...string) {
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		d.h.Write(n[:])
		d.h.Write([]byte(p))
	}
}

func (d digest) sum() string { return hex.EncodeToString(d.h.Sum(nil)) }

// actionID is what a reviewer approves: what the commit asks of one object,
// without anything that a host chooses or that moves with time. A name stands
// for what the tree has under it: a kernel of other content is another request.
func actionID(cluster, host string, a *Action) string {
	d := newHash()
	d.add(cluster, host, string(a.Kind), a.UID, string(a.Op), a.Impact.String())
	changes := append([]Change(nil), a.Changes...)
	sort.Slice(changes, func(i, j int) bool { return changes[i].Field < changes[j].Field })
	for _, c := range changes {
		d.add(c.Field, c.To, c.id)
	}
	return d.sum()
}

// planDigest is the digest of one host's sorted ids.
func planDigest(actions []Action) string {
	var ids []string
	for i := range actions {
		if actions[i].ID != "" {
			ids = append(ids, actions[i].ID)
		}
	}
	sort.Strings(ids)
	d := newHash()
	d.add(ids...)
	return "sha256:" + d.sum()
}
