package e2e

import (
	"fmt"
	"slices"
	"strings"

	"reconciler/spec"
)

// change edits one to three fields of one to three objects.
func (h *honest) change() string {
	h.t.Helper()
	var told []string
	n, seen := 1+h.rnd.IntN(3), map[string]bool{}
	for len(told) < n {
		m := []string{willing, careful}[h.rnd.IntN(2)]
		edits := []func(string) string{h.timeout, h.policy, h.retention, h.grow, h.attach, h.detach, h.card, h.memory, h.words, h.comeAndGo}
		i := h.rnd.IntN(len(edits))
		if key := fmt.Sprint(i, m); seen[key] || len(edits)-1 == i && seen["guest"] {
			continue
		} else if seen[key] = true; i == len(edits)-1 {
			seen["guest"] = true
		}
		if what := edits[i](m); what != "" {
			told = append(told, what)
		}
	}
	return strings.Join(told, ", ")
}

// specOf is a part of an object's spec.
func (h *honest) specOf(object string) map[string]any {
	return h.tree[object]["spec"].(map[string]any)
}

// put sets a field and says so.
func (h *honest) put(object, field string, to any) string {
	h.t.Helper()
	h.set(set{object, field, to})
	return fmt.Sprintf("%s %s = %v", object, field, to)
}

// fresh is a number that no field had before.
func (h *honest) fresh() int { h.values++; return h.values }

// Of no impact.
func (h *honest) timeout(m string) string {
	return h.put(m, "spec.shutdown.timeout", fmt.Sprintf("%ds", 31+h.fresh()))
}

func (h *honest) policy(m string) string {
	to := spec.RestartOnFailure
	if h.specOf(m)["restartPolicy"] == to {
		to = spec.RestartAlways
	}
	return h.put(m, "spec.restartPolicy", to)
}

func (h *honest) retention(m string) string {
	return h.put("Disk/"+nameOf(m), "spec.retention", fmt.Sprintf("%dh", 200+h.fresh()))
}

// Done in the running guest.
func (h *honest) grow(m string) string {
	h.grew[nameOf(m)] += 16
	return h.put("Disk/"+nameOf(m), "spec.size", fmt.Sprintf("%dMi", h.grew[nameOf(m)]))
}

func (h *honest) attach(m string) string {
	name := fmt.Sprintf("extra%d", h.fresh())
	h.parse(disk(name, "1Mi"))
	list := h.specOf(m)["disks"].([]any)
	return h.put(m, "spec.disks", append(slices.Clone(list), map[string]any{"name": name, "disk": name}))
}

func (h *honest) detach(m string) string {
	list := h.specOf(m)["disks"].([]any)
	if len(list) < 2 {
		return ""
	}
	return h.put(m, "spec.disks", slices.Clone(list[:len(list)-1]))
}

func (h *honest) card(m string) string {
	list := h.specOf(m)["nics"].([]any)
	if len(list) > 1 {
		return h.put(m, "spec.nics", slices.Clone(list[:1]))
	}
	return h.put(m, "spec.nics", append(slices.Clone(list), map[string]any{"name": "back", "network": "user"}))
}

// Needing a restart.
func (h *honest) memory(m string) string {
	return h.put(m, "spec.memory.size", fmt.Sprintf("%dMi", 129+h.fresh()))
}

func (h *honest) words(m string) string {
	return h.put(m, "spec.boot.cmdline", fmt.Sprintf("console=ttyS0 quiet panic=-1 loglevel=3 honest=%d", h.fresh()))
}

// comeAndGo makes a machine that nobody looks into, or removes it.
func (h *honest) comeAndGo(string) string {
	if h.tree[guest1] != nil {
		delete(h.tree, guest1)
		return "no " + guest1
	}
	h.parse(strings.Replace(vm(nameOf(guest1), "", ""), "timeout: 30s", "timeout: 1s", 1))
	return guest1
}
