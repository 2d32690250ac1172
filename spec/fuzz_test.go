package spec

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// Whatever a file holds, Parse returns, says where every error is, and returns
// objects that survive being written and read again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(base))
	for _, c := range badCases {
		f.Add([]byte(caseFile(c.doc)))
	}
	for _, doc := range examples {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, err := Parse("a.yaml", data)
		if err != nil {
			var errs Errors
			if !errors.As(err, &errs) || len(errs) == 0 || len(errs) > maxErrors+1 {
				t.Fatalf("error is %T %v", err, err)
			}
			lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") +
				strings.Count(string(data), "\u0085") + strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029") + 1
			for _, e := range errs {
				if e.File != "a.yaml" || e.Line < 1 || e.Line > lines || e.Col < 1 || e.Msg == "" || strings.ContainsAny(e.Error(), "\n\x00") {
					t.Errorf("error %#v in a file of %d lines", e, lines)
				}
			}
			return
		}
		if len(objects) == 0 {
			return
		}
		decoded, err := Decode(Encode(objects))
		if err != nil || !reflect.DeepEqual(decoded, objects) {
			t.Errorf("encoded and decoded: %v", err)
		}
		for _, o := range objects {
			if o.Kind == KindSecret { // only sops writes one
				return
			}
		}
		text, err := Marshal(objects...)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("a.yaml", text)
		if err != nil {
			t.Fatalf("what was written is not read: %v\n%s", err, text)
		}
		for i, o := range objects {
			if !reflect.DeepEqual(again[i].Spec, o.Spec) || !sameMeta(again[i].Meta, o.Meta) {
				t.Errorf("%+v %+v came back as\n%+v %+v", o.Meta, o.Spec, again[i].Meta, again[i].Spec)
			}
			Flatten(o)
		}
	})
}

// sameMeta takes an empty list or mapping, which is not written, for none.
func sameMeta(a, b Meta) bool {
	for _, m := range []*Meta{&a, &b} {
		if len(m.Labels) == 0 {
			m.Labels = nil
		}
		if len(m.Annotations) == 0 {
			m.Annotations = nil
		}
		if len(m.MovedFrom) == 0 {
			m.MovedFrom = nil
		}
	}
	return reflect.DeepEqual(a, b)
}

func FuzzDecode(f *testing.F) {
	objects, err := Parse("a.yaml", []byte(base))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(Encode(objects)[codecHeader:])
	f.Add(Encode(nil)[codecHeader:])
	f.Fuzz(func(t *testing.T, body []byte) {
		// The checksum is made to fit, so that the reader is put to the test.
		list, err := Decode(seal(append(make([]byte, codecHeader), body...)))
		if err == nil {
			for _, o := range list {
				o.Position("spec.host")
			}
		}
	})
}
