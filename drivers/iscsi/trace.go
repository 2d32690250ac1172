package iscsi

import (
	"context"
	"fmt"
	"time"
)

// Trace is something that tells who had to do with a disk.
type Trace struct {
	At   time.Time
	Text string
}

// Traces are who is logged in to a disk right now, and when its volume was last
// written. It is for people: what cannot be found out is left out.
func (d *Driver) Traces(disk string) []Trace {
	_, v, err := d.find(context.Background(), disk)
	if err != nil {
		return nil
	}
	var list []Trace
	if !v.Modified.IsZero() {
		list = append(list, Trace{v.Modified, "the volume was last written"})
	}
	served, err := d.served(context.Background())
	if err != nil {
		return list
	}
	for _, s := range served[v.Target].Sessions {
		mode := ""
		if s.ReadOnly {
			mode = ", read only"
		}
		list = append(list, Trace{s.Since, fmt.Sprintf("iSCSI session of %s from %s (epoch %d%s)", s.Initiator, s.Address, s.Epoch, mode)})
	}
	return list
}
