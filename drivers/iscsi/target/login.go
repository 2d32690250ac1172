package target

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"time"

	"reconciler/drivers/iscsi/scsi"
	"reconciler/drivers/iscsi/target/pdu"
)

const (
	// A login takes no more than this many requests and bytes of text.
	maxLoginPDUs = 32
	maxLoginText = 16 << 10
)

// loginError ends a login with a status (RFC 7143 §11.13.5).
type loginError struct {
	status uint16
	reason string
}

func (e *loginError) Error() string {
	return fmt.Sprintf("login refused (%#04x): %s", e.status, e.reason)
}

func refuse(status uint16, format string, args ...any) error {
	return &loginError{status, fmt.Sprintf(format, args...)}
}

// login is the state of one login attempt (RFC 7143 §6.3).
type login struct {
	srv    *Server
	portal string
	nc     *net.TCPConn
	f      *framer

	stage     byte
	statSN    uint32
	isid      [6]byte
	cid       uint16
	itt       uint32
	first     bool // no request was answered yet
	text      []byte
	bytes     int // of text, in all
	seen      map[string]string
	params    params
	discovery bool
	initiator string
	tgt       *target
	grants    []*grant // of tgt, or of any target in discovery, that name the initiator
	agreed    bool     // on CHAP
	challenge *challenge
	chapUser  string // proved
	grant     *grant // decided
	done      bool   // security is settled
}

// run takes a connection through login to a session that is admitted.
func (l *login) run(ctx context.Context) (*session, error) {
	l.first = true
	l.params = defaultParams()
	l.seen = make(map[string]string)
	for range maxLoginPDUs {
		if err := l.f.next(); err != nil {
			return nil, err
		}
		data, own, err := l.f.segment()
		if err != nil {
			return nil, err
		}
		s, err := l.request(ctx, data)
		l.f.pool.put(own)
		if s != nil || err != nil {
			return s, err
		}
	}
	return nil, refuse(pdu.LoginInitiatorError, "more than %d requests", maxLoginPDUs)
}

// request acts on one Login Request (RFC 7143 §11.12).
func (l *login) request(ctx context.Context, data []byte) (*session, error) {
	h := &l.f.hdr
	if h.Opcode() != pdu.OpLoginRequest || !h.IsImmediate() || h.AHSLen() != 0 {
		return nil, refuse(pdu.LoginInvalidRequest, "opcode %#02x during login", h[0])
	}
	cid := uint16(h.U32(pdu.OffCID) >> 16)
	isid := [6]byte(h[pdu.OffISID:pdu.OffTSIH])
	if l.first {
		l.itt, l.cid, l.isid = h.ITT(), cid, isid
		l.stage = h[1] >> 2 & 3
		if h[3] > 0 { // Version-min: only version 0 is spoken
			return nil, refuse(pdu.LoginBadVersion, "version %d", h[3])
		}
		// A session has one connection, and none is left once it fails: there is
		// nothing that a connection with a TSIH could join (§6.3.1).
		if tsih := binary.BigEndian.Uint16(h[pdu.OffTSIH:]); tsih != 0 {
			if l.srv.hasTSIH(tsih) {
				return nil, refuse(pdu.LoginCannotInclude, "session %d takes one connection", tsih)
			}
			return nil, refuse(pdu.LoginNoSession, "no session %d", tsih)
		}
	} else if h.ITT() != l.itt || cid != l.cid || isid != l.isid {
		return nil, refuse(pdu.LoginInitiatorError, "identity changed during login")
	}
	transit := h[1]&pdu.Transit != 0
	csg, nsg := h[1]>>2&3, h[1]&3
	if csg != l.stage || csg > pdu.StageOperational || transit && (nsg <= csg || nsg == 2) {
		return nil, refuse(pdu.LoginInitiatorError, "stage %d to %d", csg, nsg)
	}
	l.text = append(l.text, data...)
	if l.bytes += len(data); l.bytes > maxLoginText {
		return nil, refuse(pdu.LoginInitiatorError, "text of more than %d bytes", maxLoginText)
	}
	if h[1]&pdu.Continue != 0 {
		if transit {
			return nil, refuse(pdu.LoginInitiatorError, "transit with unfinished text")
		}
		return nil, l.answer(nil, false, nsg, 0)
	}
	pairs, err := pdu.ParseText(l.text, maxPairs)
	l.text = l.text[:0]
	if err != nil {
		return nil, refuse(pdu.LoginInitiatorError, "%v", err)
	}
	if l.first {
		if err := l.identify(pairs); err != nil {
			return nil, err
		}
	}
	var out []pdu.Pair
	if l.first && l.tgt != nil {
		out = append(out, pdu.Pair{Key: "TargetPortalGroupTag", Value: fmt.Sprint(portalGroup)})
	}
	l.first = false
	if l.stage == pdu.StageSecurity {
		more, err := l.security(pairs)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
		// Without a word about authentication an initiator claims to need none.
		if transit && !l.agreed && !l.done {
			if err := l.unauthenticated(); err != nil {
				return nil, err
			}
		}
		transit = transit && l.done
	} else {
		if !l.done { // it began in this stage
			if err := l.unauthenticated(); err != nil {
				return nil, err
			}
		}
		more, err := l.operational(pairs)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	if !transit {
		return nil, l.answer(out, false, nsg, 0)
	}
	if nsg != pdu.StageFullFeature {
		l.stage = nsg
		return nil, l.answer(out, true, nsg, 0)
	}
	l.params.finish()
	return l.admit(ctx, out)
}

// identify takes the names of the first request (RFC 7143 §6.3, §13.4, §13.5,
// §13.21).
func (l *login) identify(pairs []pdu.Pair) error {
	get := func(key string) string {
		for _, kv := range pairs {
			if kv.Key == key {
				return kv.Value
			}
		}
		return ""
	}
	l.initiator = scsi.FoldName(get("InitiatorName"))
	if l.initiator == "" {
		return refuse(pdu.LoginMissingParam, "no InitiatorName")
	}
	if !ValidName(l.initiator) {
		return refuse(pdu.LoginInitiatorError, "InitiatorName %q", l.initiator)
	}
	switch get("SessionType") {
	case "", "Normal":
	case "Discovery":
		l.discovery = true
		l.grants = l.srv.grantsOf(l.initiator)
		return nil
	default:
		return refuse(pdu.LoginBadSessionType, "SessionType %q", get("SessionType"))
	}
	name := get("TargetName")
	if name == "" {
		return refuse(pdu.LoginMissingParam, "no TargetName")
	}
	l.tgt = l.srv.lookup(name, l.portal)
	if l.tgt == nil {
		return refuse(pdu.LoginNotFound, "no target %q at this portal", name)
	}
	l.grants = l.tgt.grantsOf(l.initiator)
	if len(l.grants) == 0 {
		return refuse(pdu.LoginForbidden, "%s has no access to %s", l.initiator, name)
	}
	return nil
}

// unauthenticated settles security without CHAP, where a grant allows it.
func (l *login) unauthenticated() error {
	if l.discovery {
		// Names are all that discovery gives away, and only those of the targets
		// that this initiator may use.
		if l.srv.discoveryCHAP(l.portal) {
			return refuse(pdu.LoginAuthFailed, "%s did not authenticate", l.initiator)
		}
		l.done = true
		return nil
	}
	for _, g := range l.grants {
		if g.User == "" {
			l.grant, l.done = g, true
			return nil
		}
	}
	return refuse(pdu.LoginAuthFailed, "%s did not authenticate", l.initiator)
}

// declarative keys are no offers: they may come again (RFC 7143 §6.2).
func declarative(key string) bool {
	switch key {
	case "InitiatorName", "InitiatorAlias", "TargetName", "SessionType":
		return true
	}
	return false
}

// once refuses a key that was negotiated before (RFC 7143 §6.3), and a name that
// changes in the middle.
func (l *login) once(kv pdu.Pair) error {
	old, again := l.seen[kv.Key]
	if again && !(declarative(kv.Key) && scsi.FoldName(old) == scsi.FoldName(kv.Value)) {
		return refuse(pdu.LoginInitiatorError, "%s twice", kv.Key)
	}
	l.seen[kv.Key] = kv.Value
	return nil
}

// security acts on the keys of the security stage (RFC 7143 §12).
func (l *login) security(pairs []pdu.Pair) ([]pdu.Pair, error) {
	var out []pdu.Pair
	chap := make(map[string]string)
	for _, kv := range pairs {
		if err := l.once(kv); err != nil {
			return nil, err
		}
		switch kv.Key {
		case "AuthMethod":
			method, err := l.method(pdu.List(kv.Value))
			if err != nil {
				return nil, err
			}
			out = append(out, pdu.Pair{Key: "AuthMethod", Value: method})
		case "CHAP_A", "CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C":
			chap[kv.Key] = kv.Value
		default:
			if declarative(kv.Key) {
				continue
			}
			// Operational keys belong to the next stage, but some initiators that
			// ask for no authentication send all at once.
			p, err := l.params.operational(kv, l.discovery)
			if err != nil {
				return nil, refuse(pdu.LoginInitiatorError, "%v", err)
			}
			if p != "" {
				out = append(out, pdu.Pair{Key: kv.Key, Value: p})
			}
		}
	}
	if len(chap) == 0 {
		return out, nil
	}
	more, err := l.chap(chap)
	return append(out, more...), err
}

// method chooses among the offered authentication methods (RFC 7143 §12.1).
func (l *login) method(offered []string) (string, error) {
	needed := slices.ContainsFunc(l.grants, func(g *grant) bool { return g.User != "" }) ||
		l.discovery && l.srv.discoveryCHAP(l.portal)
	if needed && slices.Contains(offered, "CHAP") {
		l.agreed = true
		return "CHAP", nil
	}
	if slices.Contains(offered, "None") {
		if err := l.unauthenticated(); err != nil {
			return "", err
		}
		return "None", nil
	}
	return "", refuse(pdu.LoginAuthFailed, "no authentication method in common")
}

// chap takes the two CHAP steps of the initiator (RFC 7143 §12.1.3).
func (l *login) chap(kv map[string]string) ([]pdu.Pair, error) {
	failed := refuse(pdu.LoginAuthFailed, "CHAP of %s failed", l.initiator)
	if l.done || !l.agreed {
		return nil, refuse(pdu.LoginInitiatorError, "CHAP was not agreed upon")
	}
	if l.challenge == nil {
		c, ok := newChallenge(pdu.List(kv["CHAP_A"]))
		if !ok || len(kv) != 1 {
			return nil, failed
		}
		l.challenge = c
		return c.pairs(), nil
	}
	response, ok := pdu.Binary(kv["CHAP_R"], maxChallengeLen)
	if !ok || kv["CHAP_N"] == "" || kv["CHAP_A"] != "" {
		return nil, failed
	}
	g := l.challenge.verify(l.grants, kv["CHAP_N"], response)
	if g == nil {
		return nil, failed
	}
	l.chapUser, l.done = g.User, true
	if !l.discovery {
		l.grant = g
	}
	if kv["CHAP_C"] == "" && kv["CHAP_I"] == "" {
		return nil, nil
	}
	id, ok := pdu.Number(kv["CHAP_I"])
	value, ok2 := pdu.Binary(kv["CHAP_C"], maxChallengeLen)
	if !ok || !ok2 {
		return nil, failed
	}
	proof, ok := l.challenge.prove(g, id, value)
	if !ok {
		return nil, refuse(pdu.LoginAuthFailed, "the target cannot prove itself to %s", l.initiator)
	}
	return proof, nil
}

// operational acts on the keys of the operational stage (RFC 7143 §13).
func (l *login) operational(pairs []pdu.Pair) ([]pdu.Pair, error) {
	var out []pdu.Pair
	for _, kv := range pairs {
		if err := l.once(kv); err != nil {
			return nil, err
		}
		if declarative(kv.Key) {
			continue
		}
		answer, err := l.params.operational(kv, l.discovery)
		if err != nil {
			return nil, refuse(pdu.LoginInitiatorError, "%v", err)
		}
		if answer != "" {
			out = append(out, pdu.Pair{Key: kv.Key, Value: answer})
		}
	}
	if !l.params.declared {
		l.params.declared = true
		most := ourMaxRecv
		if l.discovery {
			most = loginMaxRecv
		}
		out = append(out, pdu.Pair{Key: "MaxRecvDataSegmentLength", Value: fmt.Sprint(most)})
	}
	return out, nil
}

// admit makes the session and, when nothing of an older one can touch the volume
// any more, sends the final response.
func (l *login) admit(ctx context.Context, out []pdu.Pair) (*session, error) {
	s := l.srv.newSession(l)
	if l.tgt == nil {
		l.srv.discover(s)
	} else {
		l.srv.halfOpen.remove(l.nc)
		_ = l.nc.SetDeadline(time.Now().Add(l.srv.limits.Drain + l.srv.limits.Login))
		if err := l.tgt.admit(ctx, s); err != nil {
			return nil, err
		}
	}
	if err := l.answer(out, true, pdu.StageFullFeature, s.tsih); err != nil {
		s.close()
		l.srv.sessionEnded(s)
		return nil, err
	}
	s.statSN = l.statSN
	return s, nil
}

// answer sends a Login Response (RFC 7143 §11.13).
func (l *login) answer(pairs []pdu.Pair, transit bool, nsg byte, tsih uint16) error {
	var text []byte
	for _, kv := range pairs {
		text = pdu.AppendText(text, kv.Key, kv.Value)
	}
	flags := l.f.hdr[1] & 0x0c
	if transit {
		flags |= pdu.Transit | nsg
	}
	return l.send(flags, tsih, 0, text)
}

// fail sends the Login Response that ends a login.
func (l *login) fail(status uint16) {
	_ = l.send(l.f.hdr[1]&0x0c, 0, status, nil)
}

// depth is how many requests of the session may be outstanding.
func (l *login) depth() int {
	if l.discovery {
		return 1
	}
	return l.srv.limits.QueueDepth
}

func (l *login) send(flags byte, tsih, status uint16, text []byte) error {
	req := &l.f.hdr
	h := pdu.Header{pdu.OpLoginResponse, flags}
	copy(h[pdu.OffISID:], req[pdu.OffISID:pdu.OffTSIH])
	binary.BigEndian.PutUint16(h[pdu.OffTSIH:], tsih)
	h.PutU32(pdu.OffITT, req.ITT())
	h.PutU32(pdu.OffStatSN, l.statSN)
	l.statSN++
	sn := req.U32(pdu.OffCmdSN)
	h.PutU32(pdu.OffExpCmdSN, sn)
	h.PutU32(pdu.OffMaxCmdSN, sn+uint32(l.depth())-1)
	binary.BigEndian.PutUint16(h[pdu.OffLoginState:], status)
	h.SetDataLen(len(text))
	b := append(h[:], text...)
	b = append(b, make([]byte, pdu.Pad(len(text)))...)
	_, err := l.nc.Write(b)
	return err
}
