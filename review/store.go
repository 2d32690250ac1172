package review

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of the ref that records are kept on: the newest that have room.
const (
	MaxRecords = 500
	MaxStore   = 32 << 20 // bytes, signatures included
)

// SignatureSuffix is added to a record's path for its signature.
const SignatureSuffix = ".sig"

// Path is where the approval is kept.
func (a Approval) Path() string { return ApprovalPath(a.Tree, a.Host) }

// ApprovalPath is where a host looks for the approval of a tree.
func ApprovalPath(tree, host string) string { return "approvals/" + tree + "/" + host + ".json" }

// Path is where the override is kept: by what it releases.
func (o Override) Path() string {
	name := strings.TrimPrefix(o.Digest, "sha256:")
	if name == "" {
		sum := sha256.Sum256([]byte(strings.Join(tidy(o.IDs), "\n")))
		name = hex.EncodeToString(sum[:])
	}
	return overrideDir(o.Host) + name + ".json"
}

func overrideDir(host string) string { return "overrides/" + host + "/" }

// Signed is a record with its signature, as it is kept.
type Signed struct {
	Path            string
	Data, Signature []byte
}

// OverridesOf lists the records that are overrides of one host, by path.
func OverridesOf(files map[string][]byte, host string) []Signed {
	var list []Signed
	for path, data := range files {
		if name, ok := strings.CutPrefix(path, overrideDir(host)); ok && strings.HasSuffix(name, ".json") && !strings.Contains(name, "/") {
			list = append(list, Signed{path, data, files[path+SignatureSuffix]})
		}
	}
	slices.SortFunc(list, func(a, b Signed) int { return cmp.Compare(a.Path, b.Path) })
	return list
}

// ApprovalOf is the approval of a tree for one host; ok is false if there is none.
func ApprovalOf(files map[string][]byte, tree, host string) (s Signed, ok bool) {
	path := ApprovalPath(tree, host)
	data, ok := files[path]
	return Signed{path, data, files[path+SignatureSuffix]}, ok
}

// Add puts records among the files of the ref. What is expired, unreadable or
// not a record is left out, and of the rest the oldest that have no room.
func Add(files map[string][]byte, now time.Time, records ...Signed) (map[string][]byte, error) {
	type kept struct {
		Signed
		at  time.Time
		new bool
	}
	var all []kept
	added := map[string]bool{}
	for _, s := range records {
		at, err := s.signedAt(now)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Path, err)
		}
		all = append(all, kept{s, at, true})
		added[s.Path] = true
	}
	for path, data := range files {
		if strings.HasSuffix(path, SignatureSuffix) || added[path] {
			continue
		}
		s := Signed{path, data, files[path+SignatureSuffix]}
		if at, err := s.signedAt(now); err == nil && len(s.Signature) > 0 {
			all = append(all, kept{s, at, false})
		}
	}
	slices.SortFunc(all, func(a, b kept) int {
		if a.new != b.new {
			if a.new {
				return -1
			}
			return 1
		}
		return cmp.Or(b.at.Compare(a.at), cmp.Compare(a.Path, b.Path))
	})
	out, size := map[string][]byte{}, 0
	for i, k := range all {
		size += len(k.Data) + len(k.Signature)
		if i >= MaxRecords || size > MaxStore {
			if k.new {
				return nil, fmt.Errorf("%d records do not fit on the ref", len(records))
			}
			break
		}
		out[k.Path], out[k.Path+SignatureSuffix] = k.Data, k.Signature
	}
	return out, nil
}

// signedAt reads a record as far as keeping it needs; its signature is not
// looked at.
func (s Signed) signedAt(now time.Time) (time.Time, error) {
	var path string
	var signed, until time.Time
	switch {
	case strings.HasPrefix(s.Path, "approvals/"):
		a, err := ParseApproval(s.Data)
		if err != nil {
			return time.Time{}, err
		}
		path, signed, until = a.Path(), a.Signed, a.Until
	case strings.HasPrefix(s.Path, "overrides/"):
		o, err := ParseOverride(s.Data)
		if err != nil {
			return time.Time{}, err
		}
		path, signed, until = o.Path(), o.Signed, o.Until
	default:
		return time.Time{}, errors.New("not a place of records")
	}
	if path != s.Path {
		return time.Time{}, fmt.Errorf("the record belongs at %s", path)
	}
	if !now.Before(until) {
		return time.Time{}, ErrExpired
	}
	if signed.After(now.Add(skew)) { // it would push out the others
		return time.Time{}, errors.New("it was signed in the future")
	}
	return signed, nil
}
