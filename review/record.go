package review

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"reconciler/spec"
)

// Bounds of a record.
const (
	MaxRecord = 4 << 20 // bytes
	maxIDs    = 50_000
	maxReason = 1000
	// MaxApproval and MaxOverride are the longest that a record may count.
	MaxApproval = 90 * 24 * time.Hour
	MaxOverride = 24 * time.Hour
	// skew is how far the clock of whoever signs may be ahead.
	skew = 5 * time.Minute
)

// Approval says that a plan was shown and approved: the actions that one host
// may carry out when the branch has this tree. Who says so is the signature's.
type Approval struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Cluster    string    `json:"cluster"` // id
	Host       string    `json:"host"`
	Base       string    `json:"base"` // commit that was merged into
	Tree       string    `json:"tree"` // tree of the merge
	IDs        []string  `json:"ids"`  // of the plan that was shown
	Also       []string  `json:"also"` // of the same work later on
	State      string    `json:"state"`
	Signed     time.Time `json:"signed"`
	Until      time.Time `json:"until"`
}

// Override releases what one host holds: a whole plan by its digest, or actions
// by their full ids.
type Override struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Cluster    string    `json:"cluster"` // id
	Host       string    `json:"host"`
	Digest     string    `json:"digest"` // empty where IDs are given
	IDs        []string  `json:"ids"`
	Reason     string    `json:"reason"`
	Signed     time.Time `json:"signed"`
	Until      time.Time `json:"until"`
}

const (
	approvalKind = "Approval"
	overrideKind = "Override"
)

// Errors of records.
var (
	ErrExpired = errors.New("expired")
	ErrForeign = errors.New("it is of another host or cluster")
)

// Encode gives the bytes that are signed, and checks the record.
func (a Approval) Encode() ([]byte, error) {
	a.APIVersion, a.Kind = spec.APIVersion, approvalKind
	a.IDs, a.Also = tidy(a.IDs), tidy(a.Also)
	a.Signed, a.Until = second(a.Signed), second(a.Until)
	if err := a.valid(); err != nil {
		return nil, err
	}
	return encode(a)
}

// Encode gives the bytes that are signed, and checks the record.
func (o Override) Encode() ([]byte, error) {
	o.APIVersion, o.Kind = spec.APIVersion, overrideKind
	o.IDs = tidy(o.IDs)
	o.Signed, o.Until = second(o.Signed), second(o.Until)
	if err := o.valid(); err != nil {
		return nil, err
	}
	return encode(o)
}

func second(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

func tidy(ids []string) []string {
	list := slices.Compact(slices.Sorted(slices.Values(ids)))
	if list == nil {
		list = []string{}
	}
	return list
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	if b.Len() > MaxRecord {
		return nil, fmt.Errorf("the record has %d bytes, at most %d are read", b.Len(), MaxRecord)
	}
	return b.Bytes(), nil
}

// decode is strict, and takes only what Encode gives: what was signed is then
// all that was said.
func decode(data []byte, into any, again func() ([]byte, error)) error {
	if len(data) > MaxRecord {
		return fmt.Errorf("the record has %d bytes, at most %d are read", len(data), MaxRecord)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the record")
	}
	canonical, err := again()
	if err != nil {
		return err
	}
	if !bytes.Equal(canonical, data) {
		return errors.New("the record is not in canonical form")
	}
	return nil
}

// ParseApproval reads what Encode gave.
func ParseApproval(data []byte) (Approval, error) {
	var a Approval
	err := decode(data, &a, func() ([]byte, error) {
		if a.APIVersion != spec.APIVersion || a.Kind != approvalKind {
			return nil, fmt.Errorf("%q %q is not an approval", a.APIVersion, a.Kind)
		}
		return a.Encode()
	})
	if err != nil {
		return Approval{}, fmt.Errorf("approval: %w", err)
	}
	return a, nil
}

// ParseOverride reads what Encode gave.
func ParseOverride(data []byte) (Override, error) {
	var o Override
	err := decode(data, &o, func() ([]byte, error) {
		if o.APIVersion != spec.APIVersion || o.Kind != overrideKind {
			return nil, fmt.Errorf("%q %q is not an override", o.APIVersion, o.Kind)
		}
		return o.Encode()
	})
	if err != nil {
		return Override{}, fmt.Errorf("override: %w", err)
	}
	return o, nil
}

func (a Approval) valid() error {
	switch {
	case a.Cluster == "" || !plainName(a.Host):
		return errors.New("cluster and host must be named")
	case !isHash(a.Base, 40) || !isHash(a.Tree, 40):
		return errors.New("base and tree must be full hashes")
	case a.State != "" && !isHash(a.State, 40):
		return errors.New("state must be a full hash")
	case len(a.IDs)+len(a.Also) > maxIDs:
		return fmt.Errorf("%d ids, at most %d are read", len(a.IDs)+len(a.Also), maxIDs)
	}
	if err := validIDs(slices.Concat(a.IDs, a.Also)); err != nil {
		return err
	}
	return validTimes(a.Signed, a.Until, MaxApproval)
}

func (o Override) valid() error {
	digest, tagged := strings.CutPrefix(o.Digest, "sha256:")
	switch {
	case o.Cluster == "" || !plainName(o.Host):
		return errors.New("cluster and host must be named")
	case (o.Digest == "") == (len(o.IDs) == 0):
		return errors.New("either a digest or ids must be given")
	case o.Digest != "" && (!tagged || !isHash(digest, 64)):
		return errors.New("the digest must be sha256: and 64 hexadecimal digits")
	case len(o.IDs) > maxIDs:
		return fmt.Errorf("%d ids, at most %d are read", len(o.IDs), maxIDs)
	case strings.TrimSpace(o.Reason) == "" || len(o.Reason) > maxReason:
		return fmt.Errorf("a reason of 1 to %d bytes must be given", maxReason)
	}
	if err := validIDs(o.IDs); err != nil {
		return err
	}
	return validTimes(o.Signed, o.Until, MaxOverride)
}

func validIDs(ids []string) error {
	for _, id := range ids {
		if !isHash(id, 64) {
			return fmt.Errorf("%q is not the full id of an action", cut(id, 80))
		}
	}
	return nil
}

func validTimes(signed, until time.Time, most time.Duration) error {
	switch {
	case signed.IsZero() || !until.After(signed):
		return errors.New("it must say when it was signed, and until when it counts")
	case until.Sub(signed) > most:
		return fmt.Errorf("it would count for %s, at most %s are allowed", until.Sub(signed), most)
	}
	return nil
}

func isHash(s string, digits int) bool {
	return len(s) == digits && strings.Trim(s, "0123456789abcdef") == ""
}

// plainName holds for the name of a host that is one component of a path.
func plainName(s string) bool {
	return s != "" && len(s) <= 253 && s[0] != '.' && s[0] != '-' &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") == ""
}

// Check says why the record does not count here and now.
func (a Approval) Check(cluster, host string, now time.Time) error {
	return check(a.Cluster, a.Host, a.Signed, a.Until, cluster, host, now)
}

// Check says why the record does not count here and now.
func (o Override) Check(cluster, host string, now time.Time) error {
	return check(o.Cluster, o.Host, o.Signed, o.Until, cluster, host, now)
}

func check(ofCluster, ofHost string, signed, until time.Time, cluster, host string, now time.Time) error {
	switch {
	case ofCluster != cluster || ofHost != host:
		return fmt.Errorf("%w: host %s of cluster %s", ErrForeign, ofHost, ofCluster)
	case signed.After(now.Add(skew)):
		return fmt.Errorf("it was signed in the future, at %s", signed.UTC().Format(time.RFC3339))
	case !now.Before(until):
		return fmt.Errorf("%w at %s", ErrExpired, until.UTC().Format(time.RFC3339))
	}
	return nil
}
