package kvm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"reconciler/drivers/kvm/cidata"
	"reconciler/reconcile"
	"reconciler/spec"
)

// The seed of cloud-init is a read-only disk with a root port of its own,
// behind all others: whatever comes and goes there, a guest names its other
// disks as it would without it.
const (
	seedDevice  = "seed"
	seedNode    = "seed"
	seedPort    = "port-seed"
	seedAddr    = "0x1e.0"
	seedChassis = maxPorts + 1
	seedFDSet   = 1
)

const cloudInitPath = "spec.cloudInit."

// seedOf puts together what the spec says and the Secrets it names hold; nil
// for a machine without cloudInit.
func seedOf(uid string, want *reconcile.Object, vm *spec.VirtualMachine, in reconcile.Inputs) (*cidata.Seed, error) {
	if vm.CloudInit == nil {
		return nil, nil
	}
	s := &cidata.Seed{InstanceID: instanceID(uid, want.Fields), Hostname: want.Name}
	for _, part := range vm.CloudInit.Parts() {
		text := part.Inline
		if part.Secret != "" {
			secret, ok := in.Secrets[cloudInitPath+part.Field]
			if !ok {
				return nil, fmt.Errorf("%s%s: Secret %s was not decrypted", cloudInitPath, part.Field, part.Secret)
			}
			text = secret.Reveal()
		}
		switch part.Field {
		case "userData":
			s.UserData = text
		case "metaData":
			s.MetaData = text
		case "networkConfig":
			s.NetworkConfig = text
		}
	}
	return s, nil
}

// instanceID is another when what cloud-init is told is. It follows from the
// encrypted form of secrets: a guest shows its id to whoever asks.
func instanceID(uid string, fields []reconcile.Field) string {
	h := sha256.New()
	for _, f := range fields {
		if strings.HasPrefix(f.Path, cloudInitPath) {
			value := f.ID
			if value == "" {
				value = f.Value
			}
			fmt.Fprintf(h, "%q %q\n", f.Path, value)
		}
	}
	return uid + "-" + hex.EncodeToString(h.Sum(nil)[:4])
}

// seedFile keeps the image in memory that no path leads to, for QEMU to
// inherit: it is on no disk, and it is there for as long as the process is.
func seedFile(s *cidata.Seed) (*os.File, error) {
	image, err := s.Image()
	if err != nil {
		return nil, fmt.Errorf("%smetaData: %w", cloudInitPath, err)
	}
	defer clear(image)
	fd, err := unix.MemfdCreate("cidata", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make the cloud-init seed: %w", err)
	}
	f := os.NewFile(uintptr(fd), "cidata")
	defer f.Close()
	if _, err := f.Write(image); err != nil {
		return nil, fmt.Errorf("make the cloud-init seed: %w", err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		return nil, fmt.Errorf("seal the cloud-init seed: %w", err)
	}
	// QEMU takes a descriptor of an fdset only for what it was opened for.
	ro, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("make the cloud-init seed: %w", err)
	}
	return ro, nil
}

// seedArgs adds the disk, whose image QEMU inherits as fd.
func (a *arguments) seedArgs(fd int) {
	a.json("-device", map[string]any{"driver": "pcie-root-port", "id": seedPort, "bus": "pcie.0",
		"addr": seedAddr, "chassis": seedChassis, "slot": seedChassis})
	a.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, seedFDSet))
	a.json("-blockdev", map[string]any{"driver": "file", "node-name": seedNode, "read-only": true,
		"filename": fmt.Sprintf("/dev/fdset/%d", seedFDSet), "locking": "off"})
	a.json("-device", map[string]any{"driver": "virtio-blk-pci", "id": seedDevice, "bus": seedPort, "addr": "0x0",
		"drive": seedNode, "serial": "cidata"})
}

// withoutSeed leaves out what cloud-init was to be told by a disk that is gone.
func withoutSeed(fields []reconcile.Field) []reconcile.Field {
	var out []reconcile.Field
	for _, f := range fields {
		if !strings.HasPrefix(f.Path, cloudInitPath) {
			out = append(out, f)
		}
	}
	return out
}
