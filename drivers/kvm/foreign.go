package kvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"reconciler/drivers/kvm/qmp"
	"reconciler/spec"
)

// Foreign is a QEMU that no agent of ours started, as far as its monitor tells.
type Foreign struct {
	PID  int
	Name string // as it calls itself; empty if it has none
	// VM is what a machine like it would be declared as, but for its disks and
	// networks; nil if QEMU could not be asked.
	VM    *spec.VirtualMachine
	Notes []string // what must change before it can be managed
}

// foreignTimeout bounds the questions to one foreign QEMU: a monitor that
// somebody else uses does not greet.
const foreignTimeout = 2 * time.Second

// Foreign asks the QEMU processes of others what they are. It only reads: it
// connects to their monitors, where their command line names a Unix socket, and
// runs query commands. Until it is done their owner has to wait for the monitor.
func (d *Driver) Foreign(ctx context.Context) ([]Foreign, error) {
	procs, err := processes()
	if err != nil {
		return nil, err
	}
	var list []Foreign
	for _, p := range procs {
		if p.owner == "" {
			list = append(list, describeForeign(ctx, p))
		}
	}
	return list, nil
}

func describeForeign(ctx context.Context, p process) Foreign {
	f := Foreign{PID: p.pid, Name: p.name}
	note := func(format string, args ...any) { f.Notes = append(f.Notes, fmt.Sprintf(format, args...)) }
	note("%s was started by something else, and goes on untouched; to manage the machine: shut it down, bring its disks to the storage side, and declare it", describeProcess(p.pid))
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "cmdline"))
	if err != nil {
		note("its command line cannot be read: %v", err)
		return f
	}
	argv := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	sockets := monitors(argv)
	if len(sockets) == 0 {
		note("its command line names no QMP monitor on a Unix socket, so nothing more is known of it")
		return f
	}
	ctx, cancel := context.WithTimeout(ctx, foreignTimeout)
	defer cancel()
	for _, path := range sockets {
		if !filepath.IsAbs(path) {
			path = filepath.Join("/proc", strconv.Itoa(p.pid), "cwd", path)
		}
		if err = f.ask(ctx, path); err == nil {
			break
		}
	}
	if err != nil {
		note("its monitor does not answer, as when somebody else is connected to it: %v", err)
		return f
	}
	f.networks(argv)
	return f
}

// monitors finds the QMP sockets that a command line names.
func monitors(argv []string) []string {
	var paths []string
	chardevs := map[string]string{}
	option := func(v, key string) string {
		for part := range strings.SplitSeq(v, ",") {
			if value, ok := strings.CutPrefix(part, key+"="); ok {
				return value
			}
		}
		return ""
	}
	for i := 0; i+1 < len(argv); i++ {
		v := argv[i+1]
		switch strings.TrimLeft(argv[i], "-") {
		case "chardev":
			if strings.HasPrefix(v, "socket,") {
				chardevs[option(v, "id")] = option(v, "path")
			}
		case "qmp", "qmp-pretty":
			if path, ok := strings.CutPrefix(v, "unix:"); ok {
				path, _, _ = strings.Cut(strings.TrimPrefix(path, "path="), ",")
				paths = append(paths, path)
			}
		case "mon":
			id := option(v, "chardev")
			if id == "" {
				id, _, _ = strings.Cut(v, ",")
			}
			if option(v, "mode") == "control" && chardevs[id] != "" {
				paths = append(paths, chardevs[id])
			}
		}
	}
	return paths
}

// ask reads what the machine is.
func (f *Foreign) ask(ctx context.Context, path string) error {
	conn, err := qmp.Dial(ctx, path)
	if err != nil {
		return err
	}
	defer conn.Close()
	r, err := readMachine(ctx, conn)
	if err != nil {
		return err
	}
	var blocks []struct {
		Device   string
		Qdev     string
		Inserted *struct {
			File  string
			Drv   string
			Image imageInfo
		}
	}
	if err := conn.Do(ctx, "query-block", nil, &blocks); err != nil {
		return err
	}
	var filters []struct {
		Name    string
		MainMAC string `json:"main-mac"`
	}
	// Not every model of a card can say its address.
	if err := conn.Do(ctx, "query-rx-filter", nil, &filters); err != nil && !errors.As(err, new(*qmp.Error)) {
		return err
	}
	vm := &spec.VirtualMachine{
		PowerState: spec.PowerRunning, CPU: spec.CPU{Sockets: max(r.sockets, 1), Cores: max(r.cores, 1), Threads: max(r.threads, 1)},
		Memory: spec.Memory{Size: spec.Size(r.memory)},
	}
	if r.status != "running" {
		f.Notes = append(f.Notes, "its guest does not run now: "+r.status)
	}
	for _, b := range blocks {
		if b.Inserted == nil {
			continue
		}
		f.Notes = append(f.Notes, fmt.Sprintf("its disk %s is %s (%s, %s): make an Image of the file while the machine is off, and a Disk from the Image",
			first(b.Device, b.Qdev), b.Inserted.File, b.Inserted.Drv, spec.Size(b.Inserted.Image.VirtualSize)))
	}
	for i, n := range filters {
		vm.NICs = append(vm.NICs, spec.NIC{Name: "nic" + strconv.Itoa(i), MAC: strings.ToLower(n.MainMAC)})
	}
	f.VM = vm
	return nil
}

func first(list ...string) string {
	i := slices.IndexFunc(list, func(s string) bool { return s != "" })
	if i < 0 {
		return "(unnamed)"
	}
	return list[i]
}

// networks says what the cards are connected to, by the command line: QEMU has
// no query for that.
func (f *Foreign) networks(argv []string) {
	for i := 0; i+1 < len(argv); i++ {
		switch strings.TrimLeft(argv[i], "-") {
		case "netdev", "nic", "net":
			f.Notes = append(f.Notes, "it is connected to a network by "+argv[i]+" "+argv[i+1]+": name a Network of the tree for it")
		}
	}
}
