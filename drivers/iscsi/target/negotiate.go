package target

import (
	"fmt"
	"slices"
	"strconv"

	"reconciler/drivers/iscsi/target/pdu"
)

// What this target declares or offers (RFC 7143 §13). A write of up to
// ourFirstBurst arrives with its command; a larger one is asked for in bursts.
const (
	ourMaxRecv    = 256 << 10
	ourMaxBurst   = 1 << 20
	ourFirstBurst = 256 << 10
	loginMaxRecv  = 8 << 10 // before anything is declared (§13.12)

	// portalGroup is the tag of the one portal group there is (§4.4.6).
	portalGroup = 1
)

// params are a session's operational parameters, first at their defaults.
type params struct {
	headerDigest, dataDigest bool
	maxSend                  int // the initiator's MaxRecvDataSegmentLength
	maxBurst, firstBurst     int
	initialR2T               bool
	immediateData            bool
	declared                 bool // our MaxRecvDataSegmentLength was sent
}

func defaultParams() params {
	return params{maxSend: loginMaxRecv, maxBurst: 256 << 10, firstBurst: 64 << 10, initialR2T: true, immediateData: true}
}

// errNegotiation ends a login with "initiator error".
type errNegotiation struct{ key, value string }

func (e errNegotiation) Error() string { return fmt.Sprintf("invalid %s=%s", e.key, e.value) }

const (
	answerReject        = "Reject"
	answerIrrelevant    = "Irrelevant"
	answerNotUnderstood = "NotUnderstood"
)

// operational answers one operational key (RFC 7143 §13); an empty answer means
// that none is due. Values out of range end the negotiation: an initiator that
// goes on with parameters it does not share with us may corrupt data.
func (p *params) operational(kv pdu.Pair, discovery bool) (answer string, err error) {
	bad := errNegotiation{kv.Key, kv.Value}
	number := func(lo, hi uint32) (int, error) {
		n, ok := pdu.Number(kv.Value)
		if !ok || n < lo || n > hi {
			return 0, bad
		}
		return int(n), nil
	}
	boolean := func() (bool, error) {
		switch kv.Value {
		case "Yes":
			return true, nil
		case "No":
			return false, nil
		}
		return false, bad
	}
	switch kv.Key {
	case "HeaderDigest", "DataDigest": // §13.1
		into := &p.headerDigest
		if kv.Key == "DataDigest" {
			into = &p.dataDigest
		}
		for _, v := range pdu.List(kv.Value) {
			if v == "None" || v == "CRC32C" {
				*into = v == "CRC32C"
				return v, nil
			}
		}
		return answerReject, nil

	case "MaxRecvDataSegmentLength": // §13.12, declarative
		n, err := number(512, pdu.MaxDataSegmentLen)
		if err != nil {
			return "", err
		}
		p.maxSend = n
		return "", nil

	case "MaxConnections": // §13.2, minimum
		if discovery {
			return answerIrrelevant, nil
		}
		if _, err := number(1, 65535); err != nil {
			return "", err
		}
		return "1", nil
	case "InitialR2T": // §13.10, OR
		if discovery {
			return answerIrrelevant, nil
		}
		v, err := boolean()
		if err != nil {
			return "", err
		}
		p.initialR2T = v
		return kv.Value, nil
	case "ImmediateData": // §13.11, AND
		if discovery {
			return answerIrrelevant, nil
		}
		v, err := boolean()
		if err != nil {
			return "", err
		}
		p.immediateData = v
		return kv.Value, nil
	case "MaxBurstLength", "FirstBurstLength": // §13.13, §13.14, minimum
		if discovery {
			return answerIrrelevant, nil
		}
		n, err := number(512, pdu.MaxDataSegmentLen)
		if err != nil {
			return "", err
		}
		if kv.Key == "MaxBurstLength" {
			p.maxBurst = min(n, ourMaxBurst)
			return strconv.Itoa(p.maxBurst), nil
		}
		p.firstBurst = min(n, ourFirstBurst)
		return strconv.Itoa(p.firstBurst), nil
	case "DefaultTime2Wait": // §13.15, maximum: we ask for none
		if _, err := number(0, 3600); err != nil {
			return "", err
		}
		return kv.Value, nil
	case "DefaultTime2Retain": // §13.16, minimum: no task outlives its connection
		if _, err := number(0, 3600); err != nil {
			return "", err
		}
		return "0", nil
	case "MaxOutstandingR2T": // §13.17, minimum
		if discovery {
			return answerIrrelevant, nil
		}
		if _, err := number(1, 65535); err != nil {
			return "", err
		}
		return "1", nil
	case "DataPDUInOrder", "DataSequenceInOrder": // §13.18, §13.19, OR
		if discovery {
			return answerIrrelevant, nil
		}
		if _, err := boolean(); err != nil {
			return "", err
		}
		return "Yes", nil
	case "ErrorRecoveryLevel": // §13.20, minimum
		if _, err := number(0, 2); err != nil {
			return "", err
		}
		return "0", nil
	case "TaskReporting": // §13.23
		if slices.Contains(pdu.List(kv.Value), "RFC3720") {
			return "RFC3720", nil
		}
		return answerReject, nil
	case "iSCSIProtocolLevel": // RFC 7144 §7.1.1, minimum
		n, err := number(0, 31)
		if err != nil {
			return "", err
		}
		return strconv.Itoa(min(n, 2)), nil
	case "IFMarker", "OFMarker", "RDMAExtensions": // §13.25, RFC 7145 §6.3
		return "No", nil
	case "IFMarkInt", "OFMarkInt": // §13.25
		return answerReject, nil
	}
	return answerNotUnderstood, nil
}

// finish settles what depends on two keys (RFC 7143 §13.14).
func (p *params) finish() { p.firstBurst = min(p.firstBurst, p.maxBurst) }
