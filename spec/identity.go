package spec

import (
	"crypto/sha1"
	"crypto/sha256"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// identitySpace is the UUIDv5 name space of this project's objects (RFC 9562 section 5.5).
var identitySpace = uuid.MustParse("6b0c4e5e-3f0e-5d6b-9b62-6f1f3c3e8a11")

// UID is the identity of an object: it follows from the cluster's id, the kind,
// the oldest name and the incarnation, so that CI computes the same one.
func UID(clusterID string, kind Kind, m Meta) string {
	b := append(make([]byte, 0, 256), identitySpace[:]...)
	b = append(append(b, clusterID...), 0)
	b = append(append(b, kind...), 0)
	b = append(append(b, m.OldestName()...), 0)
	b = strconv.AppendInt(b, int64(m.Incarnation), 10)
	sum := sha1.Sum(b)
	u := uuid.UUID(sum[:16])
	u[6] = u[6]&0x0f | 0x50 // version 5
	u[8] = u[8]&0x3f | 0x80 // the variant of RFC 9562
	return u.String()
}

// OldestName is the first name the object ever had.
func (m Meta) OldestName() string {
	if len(m.MovedFrom) > 0 {
		return m.MovedFrom[0]
	}
	return m.Name
}

// Serial is what a guest sees as the disk's serial number: the first 20 hex
// digits of the UID, which is all that virtio-blk has room for.
func Serial(uid string) string {
	s := strings.ReplaceAll(uid, "-", "")
	return s[:min(20, len(s))]
}

// DerivedMAC is the locally administered unicast address of a card that names
// none. 40 bits of it are the hash: with the 24 that QEMU's 52:54:00 leaves, a
// few thousand cards on one network would share addresses by chance.
func DerivedMAC(vmUID, nic string) string {
	h := sha256.Sum256([]byte(vmUID + "\x00" + nic))
	const hex = "0123456789abcdef"
	b := append(make([]byte, 0, 17), "52"...)
	for _, v := range h[:5] {
		b = append(b, ':', hex[v>>4], hex[v&15])
	}
	return string(b)
}
