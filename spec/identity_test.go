package spec

import (
	"strings"
	"testing"

	"github.com/google/uuid"
)

func TestUIDIsUUIDv5(t *testing.T) {
	for _, c := range []struct {
		cluster string
		kind    Kind
		meta    Meta
		name    string
	}{
		{"demo", KindDisk, Meta{Name: "web-1-root"}, "demo\x00Disk\x00web-1-root\x000"},
		{"demo", KindDisk, Meta{Name: "web-1-root", Incarnation: 12}, "demo\x00Disk\x00web-1-root\x0012"},
		{"demo", KindVirtualMachine, Meta{Name: "c", MovedFrom: []string{"a", "b"}}, "demo\x00VirtualMachine\x00a\x000"},
		{strings.Repeat("x", 300), KindHost, Meta{Name: "h"}, strings.Repeat("x", 300) + "\x00Host\x00h\x000"},
	} {
		want := uuid.NewSHA1(identitySpace, []byte(c.name)).String()
		if got := UID(c.cluster, c.kind, c.meta); got != want {
			t.Errorf("UID(%s, %s, %+v) = %s, want %s", c.cluster, c.kind, c.meta, got, want)
		}
	}
	// Volumes on disk carry these: a change of the derivation would orphan them.
	if got, want := UID("demo", KindDisk, Meta{Name: "web-1-root"}), "77b522b2-4d77-5e12-a3e5-87c75ac77b1b"; got != want {
		t.Errorf("UID = %s, want %s", got, want)
	}
}

func TestRenameKeepsIdentity(t *testing.T) {
	first := UID("demo", KindDisk, Meta{Name: "a"})
	second := UID("demo", KindDisk, Meta{Name: "b", MovedFrom: []string{"a"}})
	third := UID("demo", KindDisk, Meta{Name: "a", MovedFrom: []string{"a", "b"}})
	if first != second || second != third {
		t.Errorf("renames changed the identity: %s, %s, %s", first, second, third)
	}
	if fresh := UID("demo", KindDisk, Meta{Name: "a", Incarnation: 1}); fresh == first {
		t.Error("another incarnation has the same identity")
	}
}

func TestSerialAndMAC(t *testing.T) {
	uid := UID("demo", KindVirtualMachine, Meta{Name: "web-1"})
	serial := Serial(uid)
	if len(serial) != 20 || !strings.HasPrefix(strings.ReplaceAll(uid, "-", ""), serial) {
		t.Errorf("serial %q is not the start of %s", serial, uid)
	}
	mac := DerivedMAC(uid, "front")
	if got, p := formats["mac"].parse(mac); p != nil || got != mac {
		t.Errorf("derived address %q: %v", mac, p)
	}
	if !strings.HasPrefix(mac, "52:") { // locally administered, unicast
		t.Errorf("derived address %q is not locally administered", mac)
	}
	if DerivedMAC(uid, "front") != mac || DerivedMAC(uid, "back") == mac {
		t.Error("the derived address does not follow from machine and card alone")
	}
}
