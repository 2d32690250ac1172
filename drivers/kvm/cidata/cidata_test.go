package cidata

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"gopkg.in/yaml.v3"
)

// read is a reader of images, apart from the writer.
func read(t *testing.T, img []byte) (label string, files map[string]string) {
	t.Helper()
	at := func(n uint32) []byte { return img[n*sector:] }
	name := func(b []byte) string {
		var u []uint16
		for ; len(b) > 1; b = b[2:] {
			u = append(u, binary.BigEndian.Uint16(b))
		}
		return strings.TrimRight(string(utf16.Decode(u)), " ")
	}
	for n := uint32(16); ; n++ {
		d := at(n)
		if string(d[1:6]) != "CD001" {
			t.Fatalf("sector %d is no volume descriptor", n)
		}
		if d[0] == 255 {
			return label, files
		}
		if d[0] != 2 {
			continue
		}
		if size := binary.LittleEndian.Uint32(d[80:]); int(size)*sector != len(img) {
			t.Errorf("the volume has %d sectors, the image %d bytes", size, len(img))
		}
		label, files = name(d[40:72]), map[string]string{}
		dir := at(binary.LittleEndian.Uint32(d[156+2:]))
		for dir[0] != 0 {
			le, be := binary.LittleEndian.Uint32(dir[2:]), binary.BigEndian.Uint32(dir[6:])
			size := binary.LittleEndian.Uint32(dir[10:])
			if le != be {
				t.Errorf("an extent is at %d and at %d", le, be)
			}
			if dir[25]&2 == 0 {
				files[strings.TrimSuffix(name(dir[33:33+dir[32]]), ";1")] = string(at(le)[:size])
			}
			dir = dir[dir[0]:]
		}
	}
}

func TestImage(t *testing.T) {
	for _, user := range []string{"", "#cloud-config\n", strings.Repeat("x", sector), strings.Repeat("y", 3*sector+1)} {
		s := Seed{InstanceID: "i-1", Hostname: "web-1", UserData: user, NetworkConfig: "version: 2\n"}
		img, err := s.Image()
		if err != nil {
			t.Fatal(err)
		}
		label, files := read(t, img)
		if label != "cidata" || len(files) != 3 || files["user-data"] != user || files["network-config"] != "version: 2\n" {
			t.Errorf("%d bytes of user-data: label %q, %d files", len(user), label, len(files))
		}
		again, _ := s.Image()
		if !bytes.Equal(img, again) {
			t.Error("the same seed makes another image")
		}
	}
	s := Seed{InstanceID: "i-1", Hostname: "web-1"}
	img, err := s.Image()
	if err != nil {
		t.Fatal(err)
	}
	if _, files := read(t, img); len(files) != 2 {
		t.Errorf("without network-config there are %d files", len(files))
	}
}

// cloud-init finds the volume with blkid.
func TestLabelAsTheSystemReadsIt(t *testing.T) {
	img, err := (&Seed{InstanceID: "i", Hostname: "h", UserData: "u"}).Image()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "seed.iso")
	if err := os.WriteFile(path, img, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("blkid", "-p", "-o", "export", path).CombinedOutput()
	if err != nil {
		t.Fatalf("blkid: %v\n%s", err, out)
	}
	for _, want := range []string{"LABEL=cidata\n", "TYPE=iso9660\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("blkid says\n%s", out)
		}
	}
}

func TestMetaData(t *testing.T) {
	for meta, want := range map[string]map[string]any{
		"":                                    {"instance-id": "i-1", "local-hostname": "web-1"},
		"{}":                                  {"instance-id": "i-1", "local-hostname": "web-1"},
		"---\n# mine\npublic-keys: [a]\n":     {"instance-id": "i-1", "local-hostname": "web-1", "public-keys": []any{"a"}},
		"{instance-id: own}":                  {"instance-id": "own", "local-hostname": "web-1"},
		"local-hostname: x\ninstance-id: 1\n": {"instance-id": 1, "local-hostname": "x"},
	} {
		text, err := (&Seed{InstanceID: "i-1", Hostname: "web-1", MetaData: meta}).metaData()
		var got map[string]any
		if err == nil {
			err = yaml.Unmarshal(text, &got)
		}
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q becomes %v, %v; want %v", meta, got, err, want)
		}
	}
	for _, meta := range []string{"s3cr3t", "[s3cr3t]", "s3cr3t: [", "a: s3cr3t\na: b: c\n", "\x00s3cr3t"} {
		_, err := (&Seed{MetaData: meta}).Image()
		if err != ErrMetaData {
			t.Errorf("%q: %v", meta, err)
		}
	}
}

func FuzzMetaData(f *testing.F) {
	f.Add("a: b")
	f.Fuzz(func(t *testing.T, meta string) {
		text, err := (&Seed{InstanceID: "i", Hostname: "h", MetaData: meta}).metaData()
		if err != nil {
			return
		}
		var root yaml.Node
		if err := yaml.Unmarshal(text, &root); err != nil || root.Content[0].Kind != yaml.MappingNode {
			t.Errorf("%q becomes %q: %v", meta, text, err)
		}
	})
}
