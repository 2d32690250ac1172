package iscsi

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reconciler/claim"
	"reconciler/reconcile"
	"reconciler/spec"
)

// mountSeeds are the sequences that are drawn. The second mixes volumes where the
// target does not tell one from another.
var mountSeeds = []uint64{3, 8, 11}

// mountWalk draws what happens to a host whose pool is at a mount point: it is
// mounted, unmounted, mounted over with another volume of the same disk, the
// state is lost, the target and the agent end at any moment, machines come and go
// and write.
type mountWalk struct {
	*mounted
	rnd      *rand.Rand
	want     *reconcile.Desired
	backings [2]string // the pool, and a directory that has another volume of its disk
	on       int       // which of them is mounted; -1: none

	launch int
	grant  *claim.Grant
	writes int
	of     map[int]string    // number of a confirmed write → its epoch
	file   map[string]string // epoch → backing its writes are in
	said   []string
}

func (w *mountWalk) say(format string, args ...any) {
	w.said = append(w.said, fmt.Sprintf(format, args...))
}

func (w *mountWalk) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf(format+"\nafter: %s", append(args, strings.Join(w.said, ", "))...)
}

// TestNoSequenceOfMountsMixesVolumes: nothing is ever made in the mount point,
// and what the launches of one epoch write is in one volume.
func TestNoSequenceOfMountsMixesVolumes(t *testing.T) {
	for _, seed := range mountSeeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newMounted(t)
			w := &mountWalk{mounted: m, rnd: rand.New(rand.NewPCG(seed, 8)), on: -1, of: map[int]string{}, file: map[string]string{}}
			w.want = m.tree(m.pool(), diskYAML("web", "size: 4Mi"))
			for i, name := range []string{"other", "backing"} { // the pool last
				dir := filepath.Join(m.dir, name)
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				m.mount(dir)
				m.start(nil)
				m.converge(w.want)
				m.unmount()
				if i == 0 {
					m.loseState(true)
				}
				w.backings[1-i] = dir
			}
			w.want.Known = map[reconcile.Key]string{poolKey(): "it was reported", diskKey("web"): "it was reported"}
			for range 40 {
				w.step()
				if w.on < 0 {
					m.mustBeEmpty()
				}
				w.check()
			}
			// At the end the pool is there, and works.
			if w.on >= 0 {
				m.unmount()
			}
			m.mount(w.backings[0])
			w.on = 0
			m.stopTarget()
			m.start(nil)
			m.base = reconcile.Base{}
			w.pass(true)
			w.end()
			m.converge(w.want)
			w.write()
			if w.grant == nil || w.of[w.writes] == "" {
				w.fail("at the end the disk is not written to")
			}
			w.check()
		})
	}
}

func (w *mountWalk) step() {
	switch n := w.rnd.IntN(20); {
	case n < 3 && w.on < 0:
		w.on = min(w.rnd.IntN(3), 1) * w.rnd.IntN(2)
		w.say("mount %d", w.on)
		w.mount(w.backings[w.on])
	case n < 2 && w.on >= 0:
		w.say("unmount")
		w.unmount()
		w.on = -1
	case n < 4:
		w.say("restart the target")
		w.stopTarget()
		w.startTarget()
	case n < 5:
		w.say("restart the agent")
		w.restart(nil)
	case n < 6:
		w.say("lose the state")
		w.loseState(true)
		w.start(nil)
		w.grant = nil // its secret may be gone
		w.launch++
	case n < 7:
		w.say("lose the agent's state")
		w.loseState(false)
		w.restart(nil)
	case n < 8:
		w.end()
	case n < 14:
		w.pass(w.rnd.IntN(6) > 0)
	default:
		w.write()
	}
}

// pass is the agent's, or what a crash leaves of it.
func (w *mountWalk) pass(whole bool) {
	w.say("pass %t", whole)
	_ = w.d.Ensure(w.ctx())
	s, err := w.d.Observe(w.ctx(), w.want)
	if err != nil {
		w.fail("observe: %v", err)
	}
	p := reconcile.Diff(w.want, w.base, s, w.d.cfg.Now())
	for _, a := range p.Actions {
		if a.State != reconcile.Ready || a.Kind != spec.KindStoragePool && a.Kind != spec.KindDisk {
			continue
		}
		if !whole && w.rnd.IntN(2) == 0 {
			break
		}
		if a.Op == reconcile.OpUnchanged || w.apply(a) == nil {
			w.base.Finish(&a)
		}
	}
	if !whole {
		w.restart(nil)
	}
}

func (w *mountWalk) owner() claim.Owner { return owner(fmt.Sprintf("launch-%d", w.launch)) }

// end ends the machine; the next has another launch.
func (w *mountWalk) end() {
	w.say("end launch %d", w.launch)
	w.launch++
	w.grant = nil
	_ = w.d.Ensure(w.ctx()) // finds who has the disk, where that was lost
	list, err := w.d.List(w.ctx())
	if err != nil {
		w.fail("%v", err)
	}
	for _, c := range list { // as a plan does with the claims of launches that are gone
		if err := w.d.Release(w.ctx(), c.Disk, c.Owner); err != nil {
			w.fail("release: %v", err)
		}
	}
}

// write is the machine's: it starts where it has no disk yet and the disk is
// known, and goes on writing to what it has, whatever became of that.
func (w *mountWalk) write() {
	if w.grant == nil {
		if s, err := w.d.Observe(w.ctx(), w.want); err != nil || s.Objects[diskKey("web")] == nil {
			return
		}
		g, err := w.d.Claim(w.ctx(), diskKey("web").UID, w.owner())
		if err != nil {
			w.say("no claim")
			return
		}
		w.grant = &g
	}
	w.writes++
	n := w.writes
	if _, err := qemuIO(*w.grant, fmt.Sprintf("write -P %d %d 512", pattern(n), n*512), "flush"); err != nil {
		w.say("write %d fails", n)
		return
	}
	w.say("write %d as launch %d", n, w.launch)
	w.of[n] = fmt.Sprintf("%s/%s", w.grant.Initiator, w.grant.Password.Reveal())
}

func pattern(n int) int { return n%250 + 1 }

// check finds every confirmed write in one volume, the same for all of an epoch.
func (w *mountWalk) check() {
	content := map[string][]byte{}
	for _, b := range w.backings {
		data, err := os.ReadFile(filepath.Join(b, diskKey("web").UID+".img"))
		if err != nil {
			w.fail("%v", err)
		}
		content[b] = data
	}
	for n, epoch := range w.of {
		var in []string
		for b, data := range content {
			if data[n*512] == byte(pattern(n)) {
				in = append(in, filepath.Base(b))
			}
		}
		if len(in) != 1 {
			w.fail("write %d is in %q", n, in)
		}
		if was := w.file[epoch]; was != "" && was != in[0] {
			w.fail("write %d is in %s, and others of its epoch are in %s", n, in[0], was)
		}
		w.file[epoch] = in[0]
	}
}
