package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"reflect"
	"testing"
	"time"

	"reconciler/internal/testbed/record"
)

func TestParseConfig(t *testing.T) {
	got := parseConfig("console=ttyS0 rt.mode=writer rt.disk=/dev/vda,serial:ab rt.interval=1ms rt.blocks=64 " +
		"rt.net=dhcp rt.addr.eth1=10.0.0.2/24 rt.onpower=ignore rt.cidata=show rt.colour=red rt.blocks=1 rt.interval=0\n")
	want := config{
		mode:        "writer",
		disks:       []string{"/dev/vda", "serial:ab"},
		interval:    time.Millisecond,
		blocks:      64,
		dhcp:        true,
		addrs:       map[string]string{"eth1": "10.0.0.2/24"},
		ignorePower: true,
		showSeed:    true,
		bad:         []string{"rt.colour=red", "rt.blocks=1", "rt.interval=0"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if got := parseConfig("quiet"); got.mode != "idle" || got.blocks != record.DefaultRing {
		t.Errorf("defaults: %+v", got)
	}
}

func TestWants(t *testing.T) {
	c := parseConfig("rt.disk=/dev/vda,serial:s2")
	for _, d := range []disk{{name: "vda", serial: "s1"}, {name: "vdx", serial: "s2"}} {
		if !c.wants(&d) {
			t.Errorf("%+v is not wanted", d)
		}
	}
	if c.wants(&disk{name: "vdb", serial: "s1"}) {
		t.Error("a disk that nobody named is wanted")
	}
}

func TestParseUevent(t *testing.T) {
	got := parseUevent([]byte("add@/devices/x\x00ACTION=add\x00SUBSYSTEM=block\x00DEVNAME=vdb\x00"))
	want := uevent{"ACTION": "add", "SUBSYSTEM": "block", "DEVNAME": "vdb"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOnlineCPUs(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-3": 4, "0-2,5": 4, "0,2,4-5": 4} {
		if got := onlineCPUs(list); got != want {
			t.Errorf("onlineCPUs(%q) = %d, want %d", list, got, want)
		}
	}
}

func TestReadPowerKey(t *testing.T) {
	event := func(kind, code uint16, value uint32) []byte {
		b := make([]byte, 24)
		binary.NativeEndian.PutUint16(b[16:], kind)
		binary.NativeEndian.PutUint16(b[18:], code)
		binary.NativeEndian.PutUint32(b[20:], value)
		return b
	}
	in := bytes.NewReader(bytes.Join([][]byte{
		event(evKey, keyPower, 1), event(0, 0, 0), event(evKey, keyPower, 0), event(evKey, 30, 1),
	}, nil))
	var got []bool
	for {
		pressed, err := readPowerKey(in)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, pressed)
	}
	if want := []bool{true, false, false, false}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
