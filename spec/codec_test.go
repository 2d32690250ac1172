package spec

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestCodecRoundTrip(t *testing.T) {
	objects := parseAll(t, estate(5))
	more, err := Parse("more.yaml", []byte(`apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata: {name: x, labels: {b: "2", a: "1"}, annotations: {}, movedFrom: [v, w], incarnation: 3}
spec: {host: h, cpu: {cores: 1}, memory: {size: 64Mi}, disks: [], boot: {kernel: {image: k}}, nics: [{name: n, network: u}, {name: m, network: u}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	objects = append(objects, more...)
	for _, file := range []string{secretWeb, secretWeb + "---\n" + strings.Replace(secretWeb, "web", "db", 1), examples[KindSecret] + "---\n" + examples[KindVirtualMachine]} {
		more, err := Parse("secret.yaml", []byte(file))
		if err != nil {
			t.Fatal(err)
		}
		if s := more[0].Spec.(*Secret); s.File != file {
			t.Fatalf("the Secret keeps the file %q", s.File)
		}
		objects = append(objects, more...)
	}
	got, err := Decode(Encode(objects))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(objects) {
		t.Fatalf("%d objects became %d", len(objects), len(got))
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], objects[i]) {
			t.Errorf("got %+v %+v\nwant %+v %+v", got[i], got[i].Spec, objects[i], objects[i].Spec)
		}
	}
	if empty, err := Decode(Encode(nil)); err != nil || len(empty) != 0 {
		t.Errorf("nothing became %v, %v", empty, err)
	}
}

// Many Secrets of a file keep one copy of it.
func TestSecretsShareTheirFile(t *testing.T) {
	var file strings.Builder
	for i := range 500 {
		file.WriteString("---\n" + strings.Replace(secretWeb, "name: web", fmt.Sprintf("name: s%d", i), 1))
	}
	objects, err := Parse("a.yaml", []byte(file.String()))
	if err != nil {
		t.Fatal(err)
	}
	data := Encode(objects)
	if len(data) > 3*file.Len() {
		t.Errorf("%d bytes are encoded in %d", file.Len(), len(data))
	}
	decoded, err := Decode(data)
	if err != nil || decoded[499].Spec.(*Secret).File != file.String() {
		t.Errorf("the last Secret's file is lost: %v", err)
	}
	if got := allocated(func() { decoded, err = Decode(data) }); got > 5<<20 {
		t.Errorf("to decode them takes %d bytes", got)
	}
}

func TestDecodeRefusesDamage(t *testing.T) {
	data := Encode(parseAll(t, estate(1)))
	for i := range data {
		damaged := append([]byte(nil), data...)
		damaged[i] ^= 0x10
		if _, err := Decode(damaged); !errors.Is(err, ErrCodec) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if _, err := Decode(data[:i]); !errors.Is(err, ErrCodec) {
			t.Fatalf("cut at byte %d: %v", i, err)
		}
	}
}

// The version must follow a rule that changes, or a cache would outlive it.
func TestCodecVersionFollowsTheRules(t *testing.T) {
	before := codecVersion()
	f := definitionOf(KindDisk).spec.find("size")
	for _, change := range []func(){
		func() { f.multiple = 7 },
		func() { f.def = "1Gi" },
		func() { f.enum = []string{"a"} },
		func() { f.required = false },
	} {
		saved := *f
		change()
		if codecVersion() == before {
			t.Error("another rule, the same version")
		}
		*f = saved
	}
	if codecVersion() != before || before != CodecVersion {
		t.Error("the version does not follow from the rules alone")
	}
}
