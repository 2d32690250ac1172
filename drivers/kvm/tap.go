package kvm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"reconciler/reconcile"
	"reconciler/spec"
)

// tapPrefix starts the name of every tap of ours.
const tapPrefix = "rvm"

// tapName follows from machine and card, so that the tap is found again
// without being remembered. 15 bytes are all an interface name has.
func tapName(vmUID, nic string) string {
	sum := sha256.Sum256([]byte(vmUID + "\x00" + nic))
	return tapPrefix + hex.EncodeToString(sum[:6])
}

// newTap makes a tap on a bridge and returns it for QEMU to keep open. It is
// not persistent: the kernel removes it with the last descriptor, so that none
// can be left over, however QEMU and the agent end.
func newTap(vmUID string, n nic) (_ *os.File, err error) {
	bridge, err := netlink.LinkByName(n.bridge)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", n.bridge, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = tapName(vmUID, n.name)
	tap := &netlink.Tuntap{
		LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, NonPersist: true, Queues: 1,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_ONE_QUEUE,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		return nil, fmt.Errorf("make tap %s: %w", attrs.Name, err)
	}
	f := tap.Fds[0]
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	link, err := netlink.LinkByName(attrs.Name)
	if err == nil {
		err = netlink.LinkSetMTU(link, bridge.Attrs().MTU)
	}
	if err == nil {
		err = setAlias(link, vmUID, n.name)
	}
	if err == nil {
		err = netlink.LinkSetMaster(link, bridge)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return nil, fmt.Errorf("set up tap %s on bridge %s: %w", attrs.Name, n.bridge, err)
	}
	return f, nil
}

// setAlias tells people who list interfaces whose tap it is.
func setAlias(link netlink.Link, vmUID, nic string) error {
	return netlink.LinkSetAlias(link, "reconciler "+vmUID+" "+nic)
}

// moveTap puts a card's tap on another bridge; the guest's card stays.
func moveTap(vmUID string, n nic) error {
	bridge, err := netlink.LinkByName(n.bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", n.bridge, err)
	}
	link, err := netlink.LinkByName(tapName(vmUID, n.name))
	if err != nil {
		return fmt.Errorf("tap of %s: %w", n.name, err)
	}
	return netlink.LinkSetMaster(link, bridge)
}

// links are the interfaces of the network namespace the agent runs in.
type links struct {
	err     error // why they are not known
	byName  map[string]netlink.Link
	byIndex map[int]netlink.Link
}

func readLinks() (links, error) {
	l := links{byName: map[string]netlink.Link{}, byIndex: map[int]netlink.Link{}}
	list, err := netlink.LinkList()
	for range 5 { // interfaces came or went while it was read
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
		list, err = netlink.LinkList()
	}
	if err != nil {
		l.err = fmt.Errorf("list the network interfaces: %w", err)
		return l, l.err
	}
	for _, link := range list {
		l.byName[link.Attrs().Name] = link
		l.byIndex[link.Attrs().Index] = link
	}
	return l, nil
}

// backend is what a card really connects to, as reconcile.Backend writes it.
func (l links) backend(vmUID, name string, n nicReading) string {
	kind, _, _ := strings.Cut(n.netdev, "-")
	if kind != "tap" {
		return kind
	}
	tap := l.byName[tapName(vmUID, name)]
	if tap == nil {
		return "tap (missing)"
	}
	bridge := l.byIndex[tap.Attrs().MasterIndex]
	if bridge == nil {
		return "bridge (none)"
	}
	return "bridge " + bridge.Attrs().Name
}

// networks makes those unknown whose bridge a NIC could not join.
func (d *Driver) networks(want *reconcile.Desired, l links, err error, state *reconcile.State) {
	if want == nil {
		return
	}
	for k, o := range want.Objects {
		n, ok := o.Spec.(*spec.Network)
		if !ok || n.Bridge == nil {
			continue
		}
		if err != nil {
			state.Unknown[k] = err.Error()
		} else if why := d.checkBridge(n.Bridge.Name, l); why != nil {
			state.Unknown[k] = why.Error()
		}
	}
}

func (d *Driver) checkBridge(name string, l links) error {
	if !slices.Contains(d.cfg.AllowedBridges, name) {
		return fmt.Errorf("the configuration of this host does not allow bridge %s", name)
	}
	link := l.byName[name]
	if link == nil {
		return fmt.Errorf("bridge %s does not exist on this host", name)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("interface %s of this host is not a bridge", name)
	}
	return nil
}
