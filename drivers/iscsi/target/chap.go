package target

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"hash"
	"strconv"

	"reconciler/claim"
	"reconciler/drivers/iscsi/target/pdu"
)

// CHAP algorithms (IANA PPP Authentication Algorithms), the preferred first.
// MD5 is what RFC 7143 §12.1.3 makes everyone speak.
var chapAlgorithms = []struct {
	id  string
	new func() hash.Hash
}{
	{"7", sha256.New},
	{"6", sha1.New},
	{"5", md5.New},
}

const (
	challengeLen    = 32
	maxChallengeLen = 1024 // RFC 7143 §12.1.3
)

// challenge is one CHAP exchange, seen from the target.
type challenge struct {
	algorithm string
	hash      func() hash.Hash
	id        byte
	value     [challengeLen]byte
}

// newChallenge picks the best algorithm of an offered list.
func newChallenge(offered []string) (*challenge, bool) {
	for _, a := range chapAlgorithms {
		for _, o := range offered {
			if o != a.id {
				continue
			}
			c := &challenge{algorithm: a.id, hash: a.new}
			var id [1]byte
			_, _ = rand.Read(id[:])
			c.id = id[0]
			_, _ = rand.Read(c.value[:])
			return c, true
		}
	}
	return nil, false
}

// response is the CHAP response (RFC 1994 §4.1).
func (c *challenge) response(id byte, secret claim.Secret, value []byte) []byte {
	h := c.hash()
	h.Write([]byte{id})
	h.Write([]byte(secret.Reveal()))
	h.Write(value)
	return h.Sum(nil)
}

func (c *challenge) pairs() []pdu.Pair {
	return []pdu.Pair{
		{Key: "CHAP_A", Value: c.algorithm},
		{Key: "CHAP_I", Value: strconv.Itoa(int(c.id))},
		{Key: "CHAP_C", Value: "0x" + hex.EncodeToString(c.value[:])},
	}
}

// verify finds the grant whose CHAP name and secret answer the challenge. All
// are tried in the same time, known name or not.
func (c *challenge) verify(grants []*grant, name string, response []byte) *grant {
	var found *grant
	for _, g := range grants {
		want := c.response(c.id, g.Password, c.value[:])
		ok := subtle.ConstantTimeCompare(want, response) & subtle.ConstantTimeCompare([]byte(g.User), []byte(name))
		if ok == 1 && g.User != "" && found == nil {
			found = g
		}
	}
	return found
}

// prove answers the initiator's own challenge. A reflected challenge is refused
// (RFC 7143 §12.1.3: a response to our own would be made for us).
func (c *challenge) prove(g *grant, id uint32, value []byte) ([]pdu.Pair, bool) {
	if g.MutualUser == "" || id > 255 || len(value) == 0 || subtle.ConstantTimeCompare(value, c.value[:]) == 1 {
		return nil, false
	}
	return []pdu.Pair{
		{Key: "CHAP_N", Value: g.MutualUser},
		{Key: "CHAP_R", Value: "0x" + hex.EncodeToString(c.response(byte(id), g.MutualPassword, value))},
	}, true
}
