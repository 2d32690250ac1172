package pdu

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzParseText(f *testing.F) {
	f.Add([]byte("InitiatorName=iqn.a\x00HeaderDigest=CRC32C,None\x00"))
	f.Add([]byte("\x00\x00a=\x00"))
	f.Add([]byte("a=b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		pairs, err := ParseText(data, 16)
		if err != nil {
			return
		}
		if len(pairs) > 16 {
			t.Errorf("%d pairs", len(pairs))
		}
		var again []byte
		for _, p := range pairs {
			if strings.ContainsAny(p.Key, "=\x00") || strings.Contains(p.Value, "\x00") {
				t.Errorf("pair %q", p)
			}
			again = AppendText(again, p.Key, p.Value)
		}
		// What it parsed says all that there was, but for empty items.
		if want := bytes.TrimLeft(data, "\x00"); !bytes.Contains(want, []byte("\x00\x00")) && !bytes.Equal(again, want) {
			t.Errorf("%q came back as %q", data, again)
		}
	})
}

func FuzzValues(f *testing.F) {
	for _, s := range []string{"0x", "0b", "0xabc", "0bYWJj", "0b=", "12", "0", "-1", "99999999999999999999", "0xfffffffff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		if b, ok := Binary(v, 64); ok && len(b) > 64 {
			t.Errorf("%q is %d bytes", v, len(b))
		}
		if _, ok := Number(v); ok && v == "" {
			t.Error("nothing is a number")
		}
	})
}

func FuzzExtendedCDB(f *testing.F) {
	f.Add([]byte{0, 17, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 1, 0})
	f.Fuzz(func(t *testing.T, ahs []byte) {
		if rest, ok := ExtendedCDB(ahs); ok && len(rest) > len(ahs) {
			t.Errorf("%d bytes of %d", len(rest), len(ahs))
		}
	})
}
