package record

import (
	"bytes"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const ring = 8

// disk is what writers left behind.
type disk []byte

func newDisk() disk { return make(disk, ring*BlockSize) }

func (d disk) put(writer, first, from, to uint64) disk {
	for i := from; i <= to; i++ {
		Record{Number: i, Ring: ring, Writer: writer, First: first}.Encode(d[i%ring*BlockSize:])
	}
	return d
}

func (d disk) damage(block int) disk {
	d[block*BlockSize+BlockSize/2]++
	return d
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name string
		disk disk
		acks []Ack
		want string // part of the error, "" for none
	}{
		{"blank", newDisk(), nil, ""},
		{"blank, but acknowledged", newDisk(), []Ack{{Last: 1}}, "lost acknowledged"},
		{"one writer", newDisk().put(1, 1, 1, 5), []Ack{{1, 5}}, ""},
		{"last not acknowledged yet", newDisk().put(1, 1, 1, 5), []Ack{{1, 4}}, ""},
		{"last lost", newDisk().put(1, 1, 1, 5), []Ack{{1, 6}}, "lost acknowledged"},
		{"torn after the last", newDisk().put(1, 1, 1, 6).damage(6), []Ack{{1, 5}}, ""},
		{"torn acknowledged", newDisk().put(1, 1, 1, 6).damage(5), []Ack{{1, 5}}, "gap: record 5"},
		{"second lap", newDisk().put(1, 1, 1, 13), []Ack{{1, 13}}, ""},
		{"second lap, torn", newDisk().put(1, 1, 1, 14).damage(14 % ring), []Ack{{1, 13}}, ""},
		{"second lap, old block", newDisk().put(1, 1, 1, 13).put(1, 1, 4, 4), []Ack{{1, 13}}, "gap: block 4 should hold record 12"},
		{"restart", newDisk().put(1, 1, 1, 3).put(2, 4, 4, 6), []Ack{{1, 3}, {2, 6}}, ""},
		{"restart with one more than acknowledged", newDisk().put(1, 1, 1, 3).put(2, 4, 4, 6), []Ack{{1, 2}, {2, 6}}, ""},
		{"restart lost some", newDisk().put(1, 1, 1, 5).put(2, 3, 3, 6), []Ack{{1, 5}, {2, 6}}, "writer 0000000000000001 printed 5"},
		{"restart lost all", newDisk().put(2, 1, 1, 6), []Ack{{1, 5}, {2, 6}}, "writer 0000000000000001 printed 5"},
		{"old writer among the new", newDisk().put(2, 1, 1, 6).put(1, 1, 3, 3), nil, "two writers"},
		{"zombie writes on", newDisk().put(1, 1, 1, 3).put(2, 4, 4, 6).put(1, 1, 4, 4), nil, "two writers"},
		{"beginning missing", newDisk().put(1, 3, 3, 5), nil, "gap: record 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Check(bytes.NewReader(tt.disk), tt.acks...)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v, want none", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// Writers that take turns on an honest disk always pass; the loss of any one
// acknowledged record in the window is always found.
func TestCheckProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newDisk()
		var acks []Ack
		last := uint64(0)
		for w := range rapid.Uint64Range(1, 4).Draw(t, "writers") {
			n := rapid.Uint64Range(1, 2*ring).Draw(t, "records")
			d.put(w+1, last+1, last+1, last+n)
			last += n
			acks = append(acks, Ack{Writer: w + 1, Last: last})
		}
		if err := Check(bytes.NewReader(d), acks...); err != nil {
			t.Fatalf("honest disk: %v", err)
		}
		back := rapid.Uint64Range(0, min(last, ring-1)-1).Draw(t, "back")
		d.damage(int((last - back) % ring))
		if err := Check(bytes.NewReader(d), acks...); err == nil {
			t.Fatalf("record %d of %d is damaged and nothing is said", last-back, last)
		}
	})
}

func TestDecodeRefusesMixedBlocks(t *testing.T) {
	a, b := make([]byte, BlockSize), make([]byte, BlockSize)
	want := Record{Number: 7, Ring: ring, Writer: 1, First: 2}
	want.Encode(a)
	Record{Number: 7 + ring, Ring: ring, Writer: 1, First: 2}.Encode(b)
	if got, ok := Decode(a); !ok || got != want {
		t.Fatalf("got %v, %v", got, ok)
	}
	for seam := 512; seam < BlockSize; seam += 512 {
		mixed := append(append([]byte{}, a[:seam]...), b[seam:]...)
		if got, ok := Decode(mixed); ok {
			t.Errorf("seam at %d: reads as %v", seam, got)
		}
	}
}
