package spec

import (
	"errors"
	"reflect"
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
