package kvm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"reconciler/reconcile"
	"reconciler/spec"
)

// nics resolves the machine's cards, and refuses a bridge that is not there or
// not allowed.
func (d *Driver) nics(uid string, vm *spec.VirtualMachine, want *reconcile.Object, networks map[string]*spec.Network) ([]nic, error) {
	var list []nic
	for _, e := range vm.NICs {
		n, err := d.nic(uid, e, want, networks[e.Name])
		if err != nil {
			return nil, fmt.Errorf("spec.nics[%s]: %w", e.Name, err)
		}
		list = append(list, n)
	}
	return list, nil
}

func (d *Driver) nic(uid string, e spec.NIC, want *reconcile.Object, network *spec.Network) (nic, error) {
	at := "spec.nics[" + e.Name + "].network"
	n := nic{name: e.Name, mac: strings.ToLower(e.MAC), network: nicEntry{Network: e.Network, NetworkID: fieldID(want, at)}}
	if n.mac == "" {
		n.mac = spec.DerivedMAC(uid, e.Name)
	}
	for _, ref := range want.Refs {
		if s, ok := ref.To.Spec.(*spec.Network); ok && ref.Path == at && network == nil {
			network = s
		}
	}
	if network == nil {
		return n, errors.New("the network is not known")
	}
	if network.Bridge == nil {
		return n, nil
	}
	n.bridge = network.Bridge.Name
	l, err := readLinks()
	if err != nil {
		return n, err
	}
	return n, d.checkBridge(n.bridge, l)
}

// wantedNIC returns the card a name is to have; ok is false for none.
func (l *live) wantedNIC(name string) (n nic, ok bool, err error) {
	for _, e := range l.vm.NICs {
		if e.Name == name {
			n, err = l.d.nic(l.m.uid, e, l.want, l.in.Networks[name])
			return n, true, err
		}
	}
	return n, false, nil
}

// fits says that the guest can keep its card: at most the tap has to move.
func (l *live) fits(n nic) (bool, error) {
	have, ok := l.now.nics[n.name]
	if !ok || have.mac != n.mac || have.netdev != netdevID(n) {
		return false, nil
	}
	if n.bridge == "" {
		return true, nil
	}
	links, err := readLinks()
	return links.byName[tapName(l.m.uid, n.name)] != nil, err
}

// releaseNIC unplugs a card that cannot stay.
func (l *live) releaseNIC(ctx context.Context, name string) error {
	n, ok, err := l.wantedNIC(name)
	if err != nil {
		return err
	}
	_, there := l.now.nics[name]
	_, known := l.m.snapshot().Launch.NICs[name]
	if !there && !known {
		return nil
	}
	if ok {
		if !there { // an attach that was cut off: it is begun anew
			return nil
		}
		if fits, err := l.fits(n); fits || err != nil {
			return err
		}
	}
	l.in.Progress("detaching NIC %s", name)
	if there {
		if err := l.answers(ctx); err != nil {
			return err
		}
		if err := l.unplug(ctx, nicDevice(name)); err != nil {
			return err
		}
		delete(l.now.nics, name)
	}
	l.d.step("nic unplugged")
	if err := l.removeNetdevs(ctx, name); err != nil {
		return err
	}
	return l.d.record(l.m, func(r *record) { delete(r.Launch.NICs, name) })
}

// removeNetdevs removes the backend of a card, of either kind, if it is there;
// with it goes the tap.
func (l *live) removeNetdevs(ctx context.Context, name string) error {
	for _, n := range []nic{{name: name}, {name: name, bridge: "any"}} {
		if err := dropped(l.conn.Raw(ctx).NetdevDel(netdevID(n))); err != nil {
			return err
		}
	}
	return dropped(l.conn.Raw(ctx).Closefd(fdName(name)))
}

func fdName(nic string) string { return "tap-" + nic }

// haveNIC plugs the wanted card in, or moves its tap.
func (l *live) haveNIC(ctx context.Context, name string) error {
	n, ok, err := l.wantedNIC(name)
	if !ok || err != nil {
		return err
	}
	if fits, err := l.fits(n); err != nil {
		return err
	} else if fits {
		if n.bridge != "" {
			if err := moveTap(l.m.uid, n); err != nil {
				return err
			}
		}
		return l.recordNIC(n, nil)
	}
	l.in.Progress("attaching NIC %s", name)
	return l.plugNIC(ctx, n)
}

func (l *live) recordNIC(n nic, slots map[string]int) error {
	return l.d.record(l.m, func(r *record) {
		if r.Launch.NICs == nil {
			r.Launch.NICs = map[string]nicEntry{}
		}
		r.Launch.NICs[n.name] = n.network
		if slots != nil {
			r.Slots = slots
		}
	})
}

func (l *live) plugNIC(ctx context.Context, n nic) (err error) {
	slots, port, err := l.slot(nicDevice(n.name))
	if err != nil {
		return err
	}
	if err := l.recordNIC(n, slots); err != nil {
		return err
	}
	l.d.step("nic recorded")
	if err := l.removeNetdevs(ctx, n.name); err != nil {
		return err
	}
	defer func() {
		if refused(err) {
			err = errors.Join(err, l.removeNetdevs(ctx, n.name),
				l.d.record(l.m, func(r *record) { delete(r.Launch.NICs, n.name) }))
		}
	}()
	if n.bridge != "" {
		tap, err := newTap(l.m.uid, n)
		if err != nil {
			return err
		}
		defer tap.Close()
		if err := l.conn.DoFile(ctx, "getfd", map[string]any{"fdname": fdName(n.name)}, nil, tap); err != nil {
			return err
		}
	}
	if err := l.conn.Do(ctx, "netdev_add", netdev(n, fdName(n.name)), nil); err != nil {
		return err
	}
	l.d.step("netdev added")
	if err := l.conn.Do(ctx, "device_add", nicArgs(n, port), nil); err != nil {
		return err
	}
	l.d.step("nic plugged")
	return l.refresh(ctx)
}
