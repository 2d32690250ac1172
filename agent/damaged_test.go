package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/api"
	"reconciler/policy"
	"reconciler/reconcile"
	"reconciler/spec"
	"reconciler/status"
)

// damages are what can have become of a file.
var damages = map[string]func([]byte) []byte{
	"empty":   func([]byte) []byte { return nil },
	"cut off": func(b []byte) []byte { return b[:len(b)/2] },
	"zeroes":  func(b []byte) []byte { return make([]byte, len(b)) },
	"garbled": func(b []byte) []byte { return []byte(strings.Repeat("\xff{\"", 40)) },
	"another": func([]byte) []byte {
		return []byte(`{"good": 7, "objects": 7, "entries": 7, "plans": 7, "offered": 7}`)
	},
}

// records are the files of the agent that a pass leaves or reads.
var records = []string{stateFile, baseFile, ownersFile, reviewFile, saidFile, driftFile}

// damagedSim is a host with a disk in use, one that the tree has given up, and a
// suspension of the other machine; every record of its agent is there.
func damagedSim(t *testing.T) *sim {
	s := newSim(t, func(c *Config) {
		c.Forge = &pacedForge{began: time.Now()}
		c.Drift.Branches = &hosted{}
	})
	s.commit(map[string]string{"vm.yaml": simVM("web", ", memory: {size: 64Mi}") + simVM("kept", ", memory: {size: 64Mi}"), "disk.yaml": simDisk("data")})
	s.mustPass()
	if err := s.agent.Suspend(t.Context(), api.SuspendRequest{Object: "VirtualMachine/kept", Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]any{
		ownersFile: owners{}.record(), reviewFile: reviewMemory{Begun: true}, saidFile: mapRecord[verdict]{}, driftFile: made{},
	} {
		if _, err := os.Stat(filepath.Join(s.dir, "agent", name)); err != nil {
			if err := s.agent.store.save(name, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.ran()
	return s
}

// Whatever becomes of one record of the agent, it starts, says so, and takes
// nothing away; where the record may have held something back, the host waits.
func TestDamagedRecordOfTheAgent(t *testing.T) {
	for _, name := range records {
		for how, damage := range damages {
			t.Run(name+" "+how, func(t *testing.T) {
				s := damagedSim(t)
				path := filepath.Join(s.dir, "agent", name)
				was, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, damage(was), 0o600); err != nil {
					t.Fatal(err)
				}
				s.restart()
				// A machine crashes, and the tree gives up the disk.
				s.set(spec.KindVirtualMachine, "web", func(l *reconcile.Live) { l.VM.Power = reconcile.PowerStopped })
				s.commit(map[string]string{"vm.yaml": simVM("web", ", memory: {size: 64Mi}") + simVM("kept", ", memory: {size: 64Mi}")})
				s.mustPass()
				for _, b := range s.ran() {
					if b.object == "Disk/data" && name != reviewFile && name != saidFile && name != driftFile && name != ownersFile {
						t.Errorf("%s of a disk that no record speaks of", b.op)
					}
					if b.object == "VirtualMachine/kept" || name == stateFile {
						t.Errorf("%s %s, of which a suspension may be lost", b.op, b.object)
					}
				}
				if got := suspended(s.agent); (name == stateFile) != strings.Contains(got, stateFile+".damaged") {
					t.Errorf("suspended: %q", got)
				}
				if c := condition(s.agent, "RecordsIntact"); c.Status != status.False || !strings.Contains(c.Message, path) {
					t.Errorf("the status does not name %s: %+v", path, c)
				}
				if aside, err := os.ReadFile(path + ".damaged"); err != nil || string(aside) != string(damage(was)) {
					t.Errorf("what was there is not kept: %q, %v", aside, err)
				}
				// Once somebody has dealt with it, all is as ever.
				if err := os.Remove(path + ".damaged"); err != nil {
					t.Fatal(err)
				}
				if err := s.agent.Resume(t.Context(), api.ResumeRequest{}); err != nil && name == stateFile {
					t.Fatal(err)
				}
				s.mustPass()
				if vm := s.live(spec.KindVirtualMachine, "web"); vm.VM.Power != reconcile.PowerRunning {
					t.Errorf("the machine is %s", vm.VM.Power)
				}
				if c := condition(s.agent, "RecordsIntact"); c.Type != "" {
					t.Errorf("still said: %+v", c)
				}
			})
		}
	}
}

// A record that a later build wrote stays as it is, and the agent does not start.
func TestLaterRecordOfTheAgent(t *testing.T) {
	for _, name := range records {
		s := damagedSim(t)
		path := filepath.Join(s.dir, "agent", name)
		text := fmt.Sprintf(`{"version":%d,"more":1}`, recordVersion+1)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(s.cfg); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "newer reconciler") {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

func suspended(a *Agent) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []string
	for _, s := range a.mem.Suspensions {
		if s.Key == (reconcile.Key{}) {
			all = append(all, s.Reason)
		}
	}
	return strings.Join(all, "; ")
}

func condition(a *Agent, kind string) status.Condition {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.host.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return status.Condition{}
}

// An agent that was killed between setting a record aside and writing down what
// follows from that suspends the host when it comes up, and once.
func TestKilledWhileARecordWasSetAside(t *testing.T) {
	for _, name := range []string{stateFile, ownersFile} {
		t.Run(name, func(t *testing.T) {
			s := damagedSim(t)
			s.cfg.Tenants = []policy.Tenant{{Name: "red", Path: "red", Kinds: policy.TenantKinds()}}
			path := filepath.Join(s.dir, "agent", name)
			if err := os.Rename(path, path+".damaged"); err != nil {
				t.Fatal(err)
			}
			s.restart()
			if got := suspended(s.agent); !strings.Contains(got, name+".damaged") {
				t.Fatalf("suspended: %q", got)
			}
			if err := s.agent.Resume(t.Context(), api.ResumeRequest{}); err != nil {
				t.Fatal(err)
			}
			s.restart()
			if got := suspended(s.agent); got != "" {
				t.Errorf("suspended again: %q", got)
			}
		})
	}
}
