package reconcile

import (
	"strings"

	"reconciler/spec"
)

// rule says what a changed field takes.
type rule struct {
	impact Impact // on a running machine, or on a disk in use
	// never, where set, is why the field of an existing object cannot change.
	never string
	// special fields are compared by the kind's own code.
	special bool
}

var (
	free    = rule{impact: ImpactNone}
	live    = rule{impact: ImpactLive}
	restart = rule{impact: ImpactRestart}
	special = rule{special: true}
)

func never(why string) rule { return rule{never: why} }

const madeOnce = "the source is used only when the disk is made; raise metadata.incarnation for a fresh disk"

// What is on a host and declared there is where it should be, whatever the host
// was called: spec.host is never compared. A move is seen through Elsewhere on
// the one host, and through Arriving on the other.

// rules names every field of every kind, list entries without their key. A
// field that is missing here fails the reflection test, and is blocked.
var rules = map[spec.Kind]map[string]rule{
	spec.KindCluster: {
		"spec.id":                never("the id of a cluster never changes: every identity follows from it"),
		"spec.iqnBase":           never("iqnBase never changes while disks exist: targets are named by it"),
		"spec.defaults.cpuModel": free,
	},
	spec.KindHost: {
		"spec.roles":                free,
		"spec.addresses.management": free,
		"spec.addresses.storage":    free,
		"spec.addresses.migration":  free,
		"spec.state":                free,
		"spec.signingKey":           free,
		"spec.drift":                free,
	},
	spec.KindStoragePool: {
		"spec.host":                    special,
		"spec.capacity":                free,
		"spec.overcommit":              free,
		"spec.volumes.file.path":       never("the volumes of a pool cannot move to another path"),
		"spec.target.embedded.portals": special,
	},
	spec.KindImage: {
		"spec.source.http.url":  free,
		"spec.source.file.path": free,
		"spec.sha256":           free,
		"spec.format":           free,
		"spec.virtualSize":      free,
	},
	spec.KindSecret: {
		"spec.data[]": free,
		"sops":        free,
	},
	spec.KindNetwork: {
		"spec.user":        live,
		"spec.bridge.name": live,
	},
	spec.KindDisk: {
		"spec.pool":           never("a disk cannot change its pool"),
		"spec.size":           special,
		"spec.source.blank":   never(madeOnce),
		"spec.source.image":   never(madeOnce),
		"spec.deletionPolicy": special,
		"spec.retention":      special,
	},
	spec.KindVirtualMachine: {
		"spec.host":                           special,
		"spec.powerState":                     special,
		"spec.cpu.sockets":                    restart,
		"spec.cpu.cores":                      restart,
		"spec.cpu.threads":                    restart,
		"spec.cpu.max":                        restart,
		"spec.cpu.model":                      restart,
		"spec.memory.size":                    restart,
		"spec.memory.max":                     restart,
		"spec.machine":                        restart,
		"spec.boot.firmware":                  restart,
		"spec.boot.disk":                      special,
		"spec.boot.kernel.image":              restart,
		"spec.boot.initrd.image":              restart,
		"spec.boot.cmdline":                   restart,
		"spec.disks[].disk":                   live,
		"spec.disks[].size":                   live,
		"spec.nics[].network":                 live,
		"spec.nics[].backend":                 live,
		"spec.nics[].mac":                     live,
		"spec.cloudInit.userData.inline":      restart,
		"spec.cloudInit.userData.secret":      restart,
		"spec.cloudInit.userData.key":         restart,
		"spec.cloudInit.metaData.inline":      restart,
		"spec.cloudInit.metaData.secret":      restart,
		"spec.cloudInit.metaData.key":         restart,
		"spec.cloudInit.networkConfig.inline": restart,
		"spec.cloudInit.networkConfig.secret": restart,
		"spec.cloudInit.networkConfig.key":    restart,
		"spec.shutdown.timeout":               free,
		"spec.restartPolicy":                  free,
		"spec.updatePolicy.restart":           free,
		"spec.restartedAt":                    special,
	},
}

// ruleFor finds the rule of a path.
func ruleFor(kind spec.Kind, path string) rule {
	if strings.HasPrefix(path, "metadata.") {
		return free
	}
	if r, ok := rules[kind][generic(path)]; ok {
		return r
	}
	return never("this build does not know how to change the field")
}

// generic drops the keys of list entries: spec.nics[front].mac → spec.nics[].mac.
func generic(path string) string {
	open := strings.IndexByte(path, '[')
	if open < 0 {
		return path
	}
	end := strings.IndexByte(path[open:], ']')
	if end < 0 {
		return path
	}
	return path[:open+1] + generic(path[open+end:])
}

// entry splits spec.disks[root].size into root and size; ok only for the list named.
func entry(path, list string) (name, field string, ok bool) {
	rest, ok := strings.CutPrefix(path, list+"[")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, "].")
}
