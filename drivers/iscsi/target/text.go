package target

import (
	"strconv"

	"reconciler/drivers/iscsi/scsi"
	"reconciler/drivers/iscsi/target/pdu"
)

// maxPairs bounds the keys of one login or text request.
const maxPairs = 64

// text acts on a Text Request (RFC 7143 §11.10): SendTargets, and the one
// parameter that may change in full feature phase.
func (s *session) text(h *pdu.Header, data []byte) {
	if h[1]&pdu.Continue != 0 {
		s.reject(h, pdu.RejectNotSupported) // no request of ours is that long
		return
	}
	if ttt := h.U32(pdu.OffTTT); ttt != pdu.Reserved {
		if s.textOut == nil || ttt != s.textTTT || len(data) > 0 {
			s.reject(h, pdu.RejectProtocol)
			return
		}
		s.textAnswer(h)
		return
	}
	pairs, err := pdu.ParseText(data, maxPairs)
	if err != nil {
		s.reject(h, pdu.RejectProtocol)
		return
	}
	var out []byte
	for _, kv := range pairs {
		switch kv.Key {
		case "SendTargets":
			out = s.sendTargets(out, kv.Value)
		case "MaxRecvDataSegmentLength":
			p := s.params
			if _, err := p.operational(kv, s.tgt == nil); err != nil {
				s.reject(h, pdu.RejectProtocol)
				return
			}
			s.mu.Lock()
			s.params.maxSend = p.maxSend
			s.mu.Unlock()
		default:
			out = pdu.AppendText(out, kv.Key, answerReject)
		}
	}
	s.textOut = out
	s.textAnswer(h)
}

// textAnswer sends as much of a text response as one PDU takes; the initiator
// asks for the rest with the transfer tag (RFC 7143 §11.11).
func (s *session) textAnswer(h *pdu.Header) {
	n := min(len(s.textOut), s.params.maxSend)
	p := newPDU(pdu.OpTextResponse, pdu.Final)
	p.hdr.PutU32(pdu.OffITT, h.ITT())
	p.hdr.PutU32(pdu.OffTTT, pdu.Reserved)
	part := s.textOut[:n]
	s.textOut = s.textOut[n:]
	if len(s.textOut) > 0 {
		s.textTTT = (s.textTTT + 1) &^ (1 << 31)
		p.hdr[1] = pdu.Continue
		p.hdr.PutU32(pdu.OffTTT, s.textTTT)
	} else {
		s.textOut = nil
	}
	s.setData(p, part)
	s.push(p, takesStatSN)
}

// sendTargets lists what the initiator may log in to (RFC 7143 appendix C): in a
// discovery session all or one, in a normal one its own target only.
func (s *session) sendTargets(out []byte, what string) []byte {
	var list []Export
	switch {
	case s.tgt != nil && (what == "" || scsi.FoldName(what) == scsi.FoldName(s.tgt.iqn)):
		list = []Export{s.tgt.describe()}
	case s.tgt != nil:
	case what == "All":
		list = s.srv.visibleTo(s.initiator, s.chapUser)
	case what != "":
		for _, e := range s.srv.visibleTo(s.initiator, s.chapUser) {
			if scsi.FoldName(e.IQN) == scsi.FoldName(what) {
				list = append(list, e)
			}
		}
	}
	for _, e := range list {
		out = pdu.AppendText(out, "TargetName", e.IQN)
		for _, p := range e.Portals {
			out = pdu.AppendText(out, "TargetAddress", p+","+strconv.Itoa(portalGroup))
		}
	}
	return out
}
