package spec

// What the language names but this build does not carry out. It is refused by
// name, so that nothing is accepted and ignored.

// laterKinds are kinds.
var laterKinds = map[string]bool{
	"Snapshot": true,
}

// laterFields are fields, by kind and static path.
var laterFields = map[Kind]map[string]bool{
	KindCluster: {
		"spec.policies": true,
	},
	KindHost: {
		"spec.capacity": true,
	},
	KindStoragePool: {
		"spec.volumes.lvmThin": true,
		"spec.target.lio":      true,
	},
	KindDisk: {
		"spec.source.snapshot": true,
		"spec.source.clone":    true,
		"spec.io":              true,
		"spec.encryption":      true,
	},
	KindNetwork: {
		"spec.vlan":                true,
		"spec.vxlan":               true,
		"spec.mtu":                 true,
		"spec.antiSpoofing":        true,
		"spec.bridge.mtu":          true,
		"spec.bridge.antiSpoofing": true,
	},
}

// laterValues are values of enumerations and formats, by kind and static path.
var laterValues = map[Kind]map[string]map[string]bool{
	KindHost: {
		"spec.state": {"Draining": true, "Maintenance": true},
	},
	KindVirtualMachine: {
		"spec.boot.firmware": {"UEFI": true},
		"spec.machine":       {"microvm": true, "pc": true},
	},
}
