package kvm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"reconciler/drivers/kvm/qmp"
)

// reading is what QEMU says of a machine at one moment.
type reading struct {
	status  string // QAPI RunState
	sockets int
	cores   int // of a socket
	threads int // of a core
	memory  int64
	disks   map[string]diskReading // by device id
	nodes   map[string]int64       // block nodes and their sizes, used by a device or not
	nics    map[string]nicReading  // by name
	devices map[string]bool        // ids under /machine/peripheral
}

type diskReading struct {
	node string
	size int64 // of the guest's device, in bytes
}

type nicReading struct {
	mac    string
	netdev string
}

type blockInfo struct {
	Qdev     string
	Inserted *struct {
		NodeName string `json:"node-name"`
		Image    imageInfo
	}
}

type imageInfo struct {
	VirtualSize int64 `json:"virtual-size"`
}

type cpuInfo struct {
	Props struct {
		Socket int `json:"socket-id"`
		Die    int `json:"die-id"`
		Core   int `json:"core-id"`
		Thread int `json:"thread-id"`
	}
}

const peripheral = "/machine/peripheral"

// readMachine asks everything at once; QEMU answers in turn.
func readMachine(ctx context.Context, conn *qmp.Conn) (*reading, error) {
	r := &reading{disks: map[string]diskReading{}, nodes: map[string]int64{}, nics: map[string]nicReading{}, devices: map[string]bool{}}
	var blocks []blockInfo
	var nodes []struct {
		NodeName string `json:"node-name"`
		Image    imageInfo
	}
	var cpus []cpuInfo
	var devices []struct{ Name, Type string }
	err := together(
		func() error {
			s, err := conn.Raw(ctx).QueryStatus()
			r.status = s.Status.String()
			return err
		},
		func() error {
			m, err := conn.Raw(ctx).QueryMemorySizeSummary()
			r.memory = int64(m.BaseMemory)
			if m.PluggedMemory != nil {
				r.memory += int64(*m.PluggedMemory)
			}
			return err
		},
		func() error { return conn.Do(ctx, "query-cpus-fast", nil, &cpus) },
		func() error { return conn.Do(ctx, "query-block", nil, &blocks) },
		func() error {
			return conn.Do(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes)
		},
		func() error { return conn.Do(ctx, "qom-list", map[string]any{"path": peripheral}, &devices) },
	)
	if err != nil {
		return nil, err
	}
	r.topology(cpus)
	for _, n := range nodes {
		r.nodes[n.NodeName] = n.Image.VirtualSize
	}
	for _, b := range blocks {
		id, _, _ := strings.Cut(strings.TrimPrefix(b.Qdev, peripheral+"/"), "/")
		if strings.HasPrefix(id, diskDevice("")) && b.Inserted != nil {
			r.disks[id] = diskReading{node: b.Inserted.NodeName, size: b.Inserted.Image.VirtualSize}
		}
	}
	var asks []func() error
	var mu sync.Mutex
	for _, dev := range devices {
		if !strings.HasPrefix(dev.Type, "child<") {
			continue
		}
		r.devices[dev.Name] = true
		if name, ok := strings.CutPrefix(dev.Name, nicDevice("")); ok {
			asks = append(asks, func() error {
				n, err := readNIC(ctx, conn, dev.Name)
				if refused(err) { // unplugged since the list was read
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				r.nics[name] = n
				return err
			})
		}
	}
	return r, together(asks...)
}

// ports is how many root ports the process has for disks and NICs.
func (r *reading) ports() int {
	n := 0
	for r.devices[portID(n)] {
		n++
	}
	return n
}

func readNIC(ctx context.Context, conn *qmp.Conn, device string) (n nicReading, err error) {
	get := func(property string, out *string) func() error {
		return func() error {
			return conn.Do(ctx, "qom-get", map[string]any{"path": peripheral + "/" + device, "property": property}, out)
		}
	}
	err = together(get("mac", &n.mac), get("netdev", &n.netdev))
	n.mac = strings.ToLower(n.mac)
	return n, err
}

// refused says that QEMU answered with an error.
func refused(err error) bool {
	var e *qmp.Error
	return errors.As(err, &e)
}

// topology counts what the guest sees; every socket and core is alike.
func (r *reading) topology(cpus []cpuInfo) {
	sockets, cores, threads := map[int]bool{}, map[[2]int]bool{}, map[[3]int]bool{}
	for _, c := range cpus {
		p := c.Props
		sockets[p.Socket] = true
		cores[[2]int{p.Socket, p.Core}] = true
		threads[[3]int{p.Socket, p.Core, p.Thread}] = true
	}
	r.sockets = len(sockets)
	r.cores = len(cores) / max(len(sockets), 1)
	r.threads = len(threads) / max(len(cores), 1)
}

// together runs functions at once and returns the first error, by position.
func together(f ...func() error) error {
	errs := make([]error, len(f))
	var wg sync.WaitGroup
	for i := range f {
		wg.Go(func() { errs[i] = f[i]() })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("read the machine back: %w", err)
		}
	}
	return nil
}
