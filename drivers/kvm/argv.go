package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"reconciler/claim"
	"reconciler/drivers/kvm/cidata"
	"reconciler/spec"
)

// Descriptors that QEMU inherits, in the order of exec's extra files.
const (
	fdQMP = iota + 3
	fdRescue
	fdTaps // the first tap; then the seed of cloud-init; the last is the lock's
)

// logLimit is the most, in bytes, that the console log and QEMU's messages may
// each take on disk. The kernel enforces it, so that a guest cannot fill the
// host's disk while no agent is there to turn the log over.
const logLimit = 16 << 20

// disk is an entry of a machine with what is needed to open it.
type disk struct {
	entry string
	name  string
	grant claim.Grant
}

func nodeName(diskUID string) string { return "d" + spec.Serial(diskUID) }
func secretID(diskUID string) string { return "chap-" + spec.Serial(diskUID) }

// nic is a card with what it connects to.
type nic struct {
	name    string
	mac     string
	network nicEntry
	bridge  string // empty: user mode network
}

// blockdev is the argument of blockdev-add. Reads and writes that fail pause
// the guest: no error of the storage reaches a file system.
func blockdev(d disk, timeoutSeconds int) map[string]any {
	return map[string]any{
		"driver": "iscsi", "node-name": nodeName(d.grant.Disk), "transport": "tcp",
		"portal": d.grant.Portal, "target": d.grant.Target, "lun": d.grant.LUN,
		"initiator-name": d.grant.Initiator, "user": d.grant.User, "password-secret": secretID(d.grant.Disk),
		"timeout": timeoutSeconds, "discard": "unmap", "cache": map[string]any{"direct": true},
	}
}

func diskArgs(d disk, device string, port, bootindex int) map[string]any {
	args := map[string]any{
		"driver": "virtio-blk-pci", "id": device, "bus": portID(port), "addr": "0x0",
		"drive": nodeName(d.grant.Disk), "serial": spec.Serial(d.grant.Disk),
		"werror": "stop", "rerror": "stop", "write-cache": "on",
	}
	if bootindex > 0 {
		args["bootindex"] = bootindex
	}
	return args
}

func secretArgs(diskUID, file string) map[string]any {
	return map[string]any{"qom-type": "secret", "id": secretID(diskUID), "file": file}
}

// netdevID tells the kind of the backend to whoever reads the card back.
func netdevID(n nic) string {
	if n.bridge == "" {
		return "user-" + n.name
	}
	return "tap-" + n.name
}

// netdev is the argument of netdev_add; fd is a number at launch, later a name
// given with getfd.
func netdev(n nic, fd string) map[string]any {
	if n.bridge == "" {
		return map[string]any{"type": "user", "id": netdevID(n)}
	}
	return map[string]any{"type": "tap", "id": netdevID(n), "fd": fd}
}

func nicArgs(n nic, port int) map[string]any {
	return map[string]any{
		"driver": "virtio-net-pci", "id": nicDevice(n.name), "bus": portID(port), "addr": "0x0",
		"netdev": netdevID(n), "mac": n.mac, "romfile": "", // nothing boots from the network
	}
}

// birth is everything a QEMU command line follows from.
type birth struct {
	uid, name, launch, owner string
	machine                  string
	accel                    Accel
	vm                       *spec.VirtualMachine
	ports                    int
	slots                    map[string]int
	disks                    []disk
	nics                     []nic
	seed                     *cidata.Seed // nil: none
	kernel, initrd           string       // paths
	secret                   func(diskUID string) string
	console, consoleLog      string // paths
	diskTimeout              int    // seconds
	user                     *User
}

// argv returns QEMU's arguments, without the binary. No secret is in it.
func (b *birth) argv() ([]string, error) {
	cpu := b.vm.CPU
	if cpu.Max > cpu.Count() && cpu.Max%(cpu.Cores*cpu.Threads) != 0 {
		return nil, fmt.Errorf("spec.cpu.max %d is not a multiple of cores × threads", cpu.Max)
	}
	maxCPU := max(cpu.Max, cpu.Count())
	smp := fmt.Sprintf("cpus=%d,maxcpus=%d,sockets=%d,cores=%d,threads=%d", cpu.Count(), maxCPU,
		maxCPU/(cpu.Cores*cpu.Threads), cpu.Cores, cpu.Threads)
	mem := fmt.Sprintf("size=%dM", b.vm.Memory.Size/spec.MiB)
	if b.vm.Memory.Max > b.vm.Memory.Size {
		mem += fmt.Sprintf(",slots=16,maxmem=%dM", b.vm.Memory.Max/spec.MiB)
	}
	accel := "kvm"
	model := cpu.Model
	if b.accel == AccelTCG {
		accel = "tcg,thread=multi"
		if model == "host" {
			model = "max" // TCG has no host model; max is all it can do
		}
	}
	if model == "" {
		model = spec.DefaultCPUModel
	}
	qmp := marker(b.owner, b.launch)
	a := &arguments{}
	a.add("-name", "guest="+b.name+",debug-threads=on", "-uuid", b.uid,
		"-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-machine", b.machine+",vmport=off,dump-guest-core=off,memory-backend=ram"+b.firmware(), "-accel", accel,
		"-cpu", model, "-smp", smp, "-m", mem)
	a.json("-object", map[string]any{"qom-type": "memory-backend-ram", "id": "ram", "size": int64(b.vm.Memory.Size)})
	a.add("-action", "shutdown=pause,panic=pause", "-rtc", "base=utc",
		"-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", qmp, fdQMP), "-mon", "chardev="+qmp+",mode=control",
		"-chardev", fmt.Sprintf("socket,id=rescue,fd=%d,server=on,wait=off", fdRescue), "-mon", "chardev=rescue,mode=control",
		// What the guest writes goes to the log and nowhere else: nobody who looks at
		// it can hold the guest up, as the client of a socket would that does not read.
		"-chardev", fmt.Sprintf("pipe,id=console,path=%s,logfile=%s,logappend=on", escape(b.console), escape(b.consoleLog)),
		"-serial", "chardev:console")
	a.add("-sandbox", b.sandbox())
	if b.user != nil {
		a.add("-runas", fmt.Sprintf("%d:%d", b.user.UID, b.user.GID))
	}
	a.json("-object", map[string]any{"qom-type": "rng-builtin", "id": "rng"})
	a.json("-device", map[string]any{"driver": "virtio-rng-pci", "id": "rng0", "rng": "rng", "bus": "pcie.0", "addr": "0x1"})
	a.json("-device", map[string]any{"driver": "pvpanic", "id": "panic0"})
	for port := range b.ports {
		a.json("-device", map[string]any{"driver": "pcie-root-port", "id": portID(port), "bus": "pcie.0",
			"addr": portAddr(port), "multifunction": true, "chassis": port + 1, "slot": port + 1})
	}
	for i, d := range b.disks {
		a.json("-object", secretArgs(d.grant.Disk, b.secret(d.grant.Disk)))
		a.json("-blockdev", blockdev(d, b.diskTimeout))
		a.json("-device", diskArgs(d, diskDevice(d.entry), b.slots[diskDevice(d.entry)], i+1))
	}
	tap := fdTaps
	for _, n := range b.nics {
		a.json("-netdev", netdev(n, strconv.Itoa(tap)))
		a.json("-device", nicArgs(n, b.slots[nicDevice(n.name)]))
		if n.bridge != "" {
			tap++
		}
	}
	if b.seed != nil {
		a.seedArgs(tap) // it comes behind the taps
	}
	if b.vm.Boot.Kernel != nil {
		a.add("-kernel", b.kernel)
		if b.vm.Boot.Initrd != nil {
			a.add("-initrd", b.initrd)
		}
		if b.vm.Boot.Cmdline != "" {
			a.add("-append", b.vm.Boot.Cmdline)
		}
	}
	return a.list, a.err
}

// firmware lets a boot loader on a disk use the serial console, which is the
// only one. A kernel given directly has its own.
func (b *birth) firmware() string {
	if b.vm.Boot.Kernel != nil {
		return ""
	}
	return ",graphics=off"
}

// sandbox filters QEMU's system calls. To drop its user it must be allowed to
// change it; without exec, and without the rights it had, that leads nowhere.
func (b *birth) sandbox() string {
	elevate := "deny"
	if b.user != nil {
		elevate = "allow"
	}
	return "on,obsolete=deny,elevateprivileges=" + elevate + ",spawn=deny,resourcecontrol=deny"
}

type arguments struct {
	list []string
	err  error
}

func (a *arguments) add(args ...string) { a.list = append(a.list, args...) }

func (a *arguments) json(option string, v map[string]any) {
	b, err := json.Marshal(v)
	a.err = errors.Join(a.err, err)
	a.add(option, string(b))
}

// escape protects a value of an option list.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// shell runs QEMU with a limit on the files it writes. Over it, a write fails
// instead of killing QEMU.
const shell = `trap '' XFSZ; ulimit -f "$0"; exec "$@"`

// command is the whole command line of a process.
func (d *Driver) command(uid string, argv []string) []string {
	cmd := []string{"/bin/sh", "-c", shell, strconv.Itoa(logLimit / 512), d.cfg.QEMU}
	return append(cmd, argv...)
}

// qemuBinary knows what the QEMU of this host can do.
type qemuBinary struct {
	path string

	mu       sync.Mutex
	file     os.FileInfo       // the binary that was asked
	machines map[string]string // versioned machine types, and what q35 stands for
	cpus     []string          // models
}

var machineLine = regexp.MustCompile(`^(\S+)\s.*?(?:\(alias of (\S+)\))?$`)

// pin returns the versioned machine type for a spec's: the one pinned before,
// as long as the spec names no other.
func (q *qemuBinary) pin(ctx context.Context, wanted, pinned string) (string, error) {
	if pinned != "" && (wanted == "" || wanted == "q35") {
		wanted = pinned
	}
	if wanted == "" {
		wanted = "q35"
	}
	known, err := q.known(ctx)
	if err != nil {
		return "", err
	}
	version, ok := known[wanted]
	if !ok {
		all := slices.Sorted(maps.Values(known))
		return "", fmt.Errorf("%s has no machine type %s; it has %s", q.path, wanted, strings.Join(slices.Compact(all), ", "))
	}
	return version, nil
}

func (q *qemuBinary) known(ctx context.Context) (map[string]string, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.refresh(); err != nil || q.machines != nil {
		return q.machines, err
	}
	out, err := exec.CommandContext(ctx, q.path, "-machine", "help").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its machine types: %w", q.path, err)
	}
	known := map[string]string{}
	for line := range strings.Lines(string(out)) {
		m := machineLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		if strings.HasPrefix(m[1], "pc-q35-") {
			known[m[1]] = m[1]
		}
		if strings.HasPrefix(m[2], "pc-q35-") {
			known[m[1]] = m[2]
		}
	}
	q.machines = known
	return known, nil
}
