// Command iscsi compares the embedded target with tgtd: the same file, the same
// initiator (QEMU's libiscsi, by qemu-img bench), in turns within one run. It
// prints, for each load, the operations per second of both and their ratio.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"reconciler/drivers/iscsi/target"
)

const (
	initiator = "iqn.2008-11.org.linux-kvm"
	tgtCtl    = 77 // tgtd's control port, its second instance on a machine being another's
)

type load struct {
	name  string
	size  int // bytes of one request
	depth int
	step  int64 // from one request to the next; 0 is sequential
	write bool
	count int // requests of one run by one session
}

// randomStep walks the volume in an order that has no locality: it has no factor
// in common with the number of blocks.
const randomStep = 4096 * 104729

var loads = []load{
	{"4K random read QD32", 4096, 32, randomStep, false, 150_000},
	{"4K random write QD32", 4096, 32, randomStep, true, 150_000},
	{"4K random read QD1", 4096, 1, randomStep, false, 40_000},
	{"4K random write QD1", 4096, 1, randomStep, true, 40_000},
	{"256K sequential read QD8", 256 << 10, 8, 0, false, 12_000},
	{"256K sequential write QD8", 256 << 10, 8, 0, true, 8_000},
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		serve(os.Args[2])
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func serve(dir string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	cfg := target.Config{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level()})),
	}
	if f := os.Getenv("BENCH_CPUPROFILE"); f != "" {
		defer profile(f)()
	}
	if err := target.Serve(ctx, cfg); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func run() error {
	size := flag.Int64("size", 512<<20, "bytes of the volume")
	dirFlag := flag.String("dir", "", "where the volume is made (default: a temporary directory)")
	rounds := flag.Int("rounds", 3, "runs of each load; the median counts")
	sessions := flag.String("sessions", "1,8", "numbers of sessions at once, by comma")
	only := flag.String("run", "", "loads whose name matches")
	scale := flag.Float64("scale", 1, "factor on the number of requests")
	asJSON := flag.Bool("json", false, "print JSON")
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}

	dir, err := os.MkdirTemp(*dirFlag, "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "volume")
	if err := fill(file, *size); err != nil {
		return err
	}
	results := []result{}
	for _, n := range strings.Split(*sessions, ",") {
		n, err := strconv.Atoi(n)
		if err != nil {
			return err
		}
		for _, l := range loads {
			if !match.MatchString(l.name) {
				continue
			}
			l.count = max(int(float64(l.count)**scale)/n, 100)
			var ours, theirs []float64
			for range *rounds {
				for _, side := range []struct {
					start func(dir, file string) (string, func(), error)
					into  *[]float64
				}{{startOurs, &ours}, {startTgtd, &theirs}} {
					url, stop, err := side.start(dir, file)
					if err != nil {
						return err
					}
					ops, err := measure(url, l, n)
					stop()
					if err != nil {
						return err
					}
					*side.into = append(*side.into, ops)
				}
			}
			r := result{l.name, n, median(ours), median(theirs), 0}
			r.Ratio = r.Ours / r.Tgtd
			results = append(results, r)
			if !*asJSON {
				fmt.Printf("%-28s %d session(s)  ours %9.0f/s  tgtd %9.0f/s  ratio %.2f\n", r.Load, r.Sessions, r.Ours, r.Tgtd, r.Ratio)
			}
		}
	}
	idle, err := idleMemory(dir, file)
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(os.Stdout).Encode(map[string]any{"loads": results, "idleSessionBytes": idle})
	}
	fmt.Printf("memory of an idle session: %d KiB\n", idle>>10)
	return nil
}

type result struct {
	Load     string  `json:"load"`
	Sessions int     `json:"sessions"`
	Ours     float64 `json:"ours"` // requests per second, all sessions together
	Tgtd     float64 `json:"tgtd"`
	Ratio    float64 `json:"ratio"`
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// fill makes a volume whose blocks are all allocated and in the page cache.
func fill(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i*7 + i>>8)
	}
	for off := int64(0); off < size; off += int64(len(block)) {
		if _, err := f.WriteAt(block, off); err != nil {
			return err
		}
	}
	return f.Sync()
}

// measure runs a load in n sessions at once and returns requests per second.
func measure(url string, l load, n int) (float64, error) {
	args := []string{"bench", "-f", "raw", "-t", "none", "-c", strconv.Itoa(l.count), "-d", strconv.Itoa(l.depth), "-s", strconv.Itoa(l.size)}
	if l.step != 0 {
		args = append(args, "-S", strconv.FormatInt(l.step, 10))
	}
	if l.write {
		args = append(args, "-w")
	}
	var wg sync.WaitGroup
	errs := make([]error, n)
	took := make([]float64, n)
	for i := range n {
		wg.Go(func() {
			opts := fmt.Sprintf("driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=%s,file.target=%s,file.lun=%s,file.initiator-name=%s:%d",
				portalOf(url), targetOf(url), lunOf(url), initiator, i)
			cmd := exec.Command("qemu-img", slices.Concat(args[:1], args[3:], []string{"--image-opts", opts})...)
			out, err := cmd.CombinedOutput()
			if err != nil {
				errs[i] = fmt.Errorf("qemu-img: %w: %s", err, out)
				return
			}
			m := seconds.FindSubmatch(out)
			if m == nil {
				errs[i] = fmt.Errorf("qemu-img printed no time: %s", out)
				return
			}
			took[i], errs[i] = strconv.ParseFloat(string(m[1]), 64)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return float64(l.count*n) / slices.Max(took), nil
}

var seconds = regexp.MustCompile(`Run completed in ([0-9.]+) seconds`)

// A volume's URL here is PORTAL/TARGET/LUN.
func portalOf(url string) string { return strings.Split(url, "/")[0] }
func targetOf(url string) string { return strings.Split(url, "/")[1] }
func lunOf(url string) string    { return strings.Split(url, "/")[2] }

// freePortal finds a port that nobody listens on.
func freePortal() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

func startOurs(dir, file string) (string, func(), error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	work := filepath.Join(dir, "ours")
	cmd := exec.Command(self, "serve", work)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = os.RemoveAll(work)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c := target.NewClient(filepath.Join(work, "run"))
	defer c.Close()
	for {
		if _, err = c.Ping(ctx); err == nil {
			break
		}
		if ctx.Err() != nil {
			stop()
			return "", nil, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	const iqn = "iqn.2026-11.local.bench:ours"
	portal, err := freePortal()
	if err != nil {
		stop()
		return "", nil, err
	}
	err = c.Put(ctx, target.Export{IQN: iqn, Path: file, Serial: "00112233445566778899", Portals: []string{portal}})
	if err == nil {
		a := target.Access{Epoch: 1}
		for i := range 64 {
			a.Initiators = append(a.Initiators, fmt.Sprintf("%s:%d", initiator, i))
		}
		err = c.SetAccess(ctx, iqn, []target.Access{a})
	}
	if err != nil {
		stop()
		return "", nil, err
	}
	return portal + "/" + iqn + "/0", stop, nil
}

func startTgtd(dir, file string) (string, func(), error) {
	const iqn = "iqn.2026-11.local.bench:tgtd"
	portal, err := freePortal()
	if err != nil {
		return "", nil, err
	}
	cmd := exec.Command("tgtd", "-f", "-C", strconv.Itoa(tgtCtl), "--iscsi", "portal="+portal)
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	adm := func(args ...string) error {
		out, err := exec.Command("tgtadm", append([]string{"-C", strconv.Itoa(tgtCtl), "--lld", "iscsi"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("tgtadm %v: %w: %s", args, err, out)
		}
		return nil
	}
	stop := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	for range 500 {
		if err = adm("--op", "new", "--mode", "target", "--tid", "1", "-T", iqn); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err == nil {
		err = adm("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", file)
	}
	if err == nil {
		err = adm("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
	}
	if err != nil {
		stop()
		return "", nil, err
	}
	return portal + "/" + iqn + "/1", stop, nil
}

func level() slog.Level {
	if os.Getenv("BENCH_DEBUG") != "" {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}
