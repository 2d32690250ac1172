package testbed

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const bootTimeout = 60 * time.Second

func TestWriterSurvivesKillAndPowerdown(t *testing.T) {
	disk := rawFile(t, 64<<20)
	args := []string{
		"-blockdev", "driver=file,node-name=d,filename=" + disk,
		"-device", "virtio-blk-pci,drive=d,serial=d0",
	}
	// A ring of 64 blocks, so that the records go round more than once.
	const cmdline = "rt.mode=writer rt.disk=serial:d0 rt.interval=2ms rt.blocks=64"

	first := Boot(t, cmdline, args...)
	first.Wait(t, `^GUEST up boot=\S+ mode=writer$`, bootTimeout)
	first.Wait(t, `^WRITER start vda serial=d0 writer=[0-9a-f]{16} from=0$`, bootTimeout)
	first.Wait(t, `^REC 150 vda d0$`, bootTimeout)
	first.Kill()

	acks, err := Acks("d0", first.SerialPath)
	if err != nil || len(acks) != 1 || acks[0].Last < 150 {
		t.Fatalf("the console tells of %+v, %v; want one writer beyond 150", acks, err)
	}
	if err := CheckLogs(disk, "d0", first.SerialPath); err != nil {
		t.Fatalf("after kill: %v", err)
	}

	second := Boot(t, cmdline, args...)
	from := number(t, second.Wait(t, `^WRITER start vda serial=d0 writer=\S+ from=(\d+)$`, bootTimeout)[1])
	if from < acks[0].Last || from > acks[0].Last+1 {
		t.Errorf("resumed from %d, %d was the last acknowledged", from, acks[0].Last)
	}
	second.Wait(t, `^REC \d+ vda d0$`, bootTimeout)
	second.Do(t, "system_powerdown", nil)
	second.Wait(t, `^POWER button$`, bootTimeout)
	second.Wait(t, `^WRITER stop vda serial=d0: stopped$`, bootTimeout)
	second.Wait(t, `^GUEST poweroff$`, bootTimeout)
	second.WaitExit(t, bootTimeout)

	if err := CheckLogs(disk, "d0", first.SerialPath, second.SerialPath); err != nil {
		t.Errorf("after powerdown: %v", err)
	}
	acks, err = Acks("", second.SerialPath)
	if err != nil || len(acks) != 1 {
		t.Fatalf("acks of the second boot: %v, %v", acks, err)
	}
	if err := CheckRecords(disk, acks[0].Last+1); err == nil {
		t.Error("a number that was never written passes as acknowledged")
	}
}

func TestHotplug(t *testing.T) {
	disk := rawFile(t, 8<<20)
	vm := Boot(t, "rt.mode=writer rt.disk=all rt.net=dhcp rt.onpower=ignore", "-smp", "1,sockets=2,maxcpus=2")
	vm.Wait(t, `^GUEST up`, bootTimeout)
	vm.Wait(t, `^MEM bytes=\d+$`, bootTimeout)

	vm.Do(t, "blockdev-add", map[string]any{"driver": "file", "node-name": "hot", "filename": disk})
	vm.Do(t, "device_add", map[string]any{"driver": "virtio-blk-pci", "id": "hotdev", "bus": "rp0", "drive": "hot", "serial": "0123456789abcdef0123"})
	vm.Wait(t, `^DISK add vda serial=0123456789abcdef0123 size=8388608$`, bootTimeout)
	vm.Wait(t, `^REC 3 vda 0123456789abcdef0123$`, bootTimeout)

	if err := os.Truncate(disk, 16<<20); err != nil {
		t.Fatal(err)
	}
	vm.Do(t, "block_resize", map[string]any{"node-name": "hot", "size": 16 << 20})
	vm.Wait(t, `^DISK change vda serial=0123456789abcdef0123 size=16777216$`, bootTimeout)
	vm.Wait(t, `^REC \d+ vda`, bootTimeout)

	vm.Do(t, "device_del", map[string]any{"id": "hotdev"})
	vm.WaitEvent(t, "DEVICE_DELETED", bootTimeout)
	vm.Wait(t, `^DISK remove vda$`, bootTimeout)
	vm.Do(t, "blockdev-del", map[string]any{"node-name": "hot"})
	if err := CheckLogs(disk, "0123456789abcdef0123", vm.SerialPath); err != nil {
		t.Error(err)
	}

	vm.Do(t, "netdev_add", map[string]any{"type": "user", "id": "n0"})
	vm.Do(t, "device_add", map[string]any{"driver": "virtio-net-pci", "id": "nic0", "bus": "rp1", "netdev": "n0", "mac": "52:54:00:00:00:07"})
	vm.Wait(t, `^NIC add eth0 mac=52:54:00:00:00:07$`, bootTimeout)
	vm.Wait(t, `^ADDR eth0 10\.0\.2\.15/24$`, bootTimeout)
	vm.Do(t, "device_del", map[string]any{"id": "nic0"})
	vm.Wait(t, `^NIC remove eth0$`, bootTimeout)

	vm.Do(t, "device_add", map[string]any{"driver": "max-x86_64-cpu", "id": "cpu1", "socket-id": 1, "core-id": 0, "thread-id": 0})
	vm.Wait(t, `^CPU online=2$`, bootTimeout)

	vm.Do(t, "system_powerdown", nil)
	vm.Wait(t, `^POWER ignored$`, bootTimeout)
}

func TestFileSystemAndConsole(t *testing.T) {
	disk := rawFile(t, 32<<20)
	args := []string{
		"-blockdev", "driver=file,node-name=d,discard=unmap,filename=" + disk,
		"-device", "virtio-blk-pci,drive=d,serial=f0",
	}
	var sums []string
	for _, step := range []string{"mkfs", "found"} {
		vm := Boot(t, "rt.mode=fs rt.disk=/dev/vda", args...)
		vm.Wait(t, `^FS step `+step+`$`, bootTimeout)
		sums = append(sums, vm.Wait(t, `^FS ok files=8 sum=([0-9a-f]{64})$`, bootTimeout)[1])
		vm.Type(t, "mount -t tmpfs x /tmp && exit 7")
		vm.Wait(t, `^EXIT 7$`, bootTimeout)
		vm.Type(t, "poweroff")
		vm.Wait(t, `^GUEST poweroff$`, bootTimeout)
		vm.WaitExit(t, bootTimeout)
	}
	if sums[0] != sums[1] {
		t.Errorf("the second boot reads %s, the first wrote %s", sums[1], sums[0])
	}
}

func TestReap(t *testing.T) {
	marker := "reap-" + filepath.Base(t.TempDir()) + strconv.Itoa(os.Getpid())
	cmd := exec.Command("sh", "-c", "sleep 300; : "+marker)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	found, err := Processes(marker)
	if err != nil || len(found) != 1 || found[0].PID != cmd.Process.Pid {
		t.Errorf("found %v, %v; want process %d", found, err, cmd.Process.Pid)
	}
	if err := KillAll(marker); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the process still runs")
	}
}

func TestSerialTakesWholeLinesOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serial")
	s := NewSerial(path)
	expired, cancel := context.WithCancel(t.Context())
	cancel()
	next := func(pattern string) string {
		m, err := s.Next(expired, pattern)
		if err != nil {
			return err.Error()
		}
		return strings.Join(m, " ")
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	none := context.Canceled.Error()
	if got := next("REC"); got != none {
		t.Errorf("without a file: %q", got)
	}
	write("boot\r\nREC 1\r\nREC 12")
	if got := next(`^REC (\d+)$`); got != "REC 1 1" {
		t.Errorf("first line: %q", got)
	}
	if got := next(`^REC`); got != none {
		t.Errorf("half a line counts: %q", got)
	}
	write("boot\r\nREC 1\r\nREC 123\r\n")
	if got := next(`^REC`); got != "REC" {
		t.Errorf("the line's rest: %q", got)
	}
	write("REC 4\n")
	if got := next(`^REC 4$`); got != "REC 4" {
		t.Errorf("after the log was turned over: %q", got)
	}
}

func TestNetns(t *testing.T) {
	ns := NewNetns(t)
	argv := ns.Args("ping", "-c1", "-W5", "127.0.0.1")
	if _, err := exec.LookPath("ping"); err != nil {
		argv = ns.Args("busybox", "ping", "-c1", "-W5", "127.0.0.1")
	}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%v: %v: %s", argv, err, out)
	}
}

func rawFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func number(t *testing.T, text string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
