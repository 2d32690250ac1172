package spec

import "time"

// APIVersion is the only version of the language this build reads.
const APIVersion = "reconciler/v1alpha1"

// Kind names a kind of object, as it stands in YAML.
type Kind string

// The kinds this build carries out.
const (
	KindCluster        Kind = "Cluster"
	KindHost           Kind = "Host"
	KindStoragePool    Kind = "StoragePool"
	KindImage          Kind = "Image"
	KindDisk           Kind = "Disk"
	KindNetwork        Kind = "Network"
	KindVirtualMachine Kind = "VirtualMachine"
)

// Kinds lists every kind, an object's dependencies before the object.
var Kinds = []Kind{KindCluster, KindHost, KindStoragePool, KindImage, KindNetwork, KindDisk, KindVirtualMachine}

// The struct tag `world` says where the truth of a field lies:
//
//	observed  read back from the live host
//	recorded  kept in the durable record of the object
//	policy    changes nothing that runs
//
// The tag `key` on a list names the field that identifies an entry; paths are
// written with it (spec.nics[front].network).

// Meta is the metadata of every object.
type Meta struct {
	Name        string            `yaml:"name" world:"recorded" doc:"Name of the object, unique within its kind: lower-case letters, digits and '-', at most 63 characters."`
	Labels      map[string]string `yaml:"labels,omitempty" world:"policy" doc:"Free key/value pairs for people and tools."`
	Annotations map[string]string `yaml:"annotations,omitempty" world:"policy" doc:"Free key/value pairs; never interpreted."`
	MovedFrom   []string          `yaml:"movedFrom,omitempty" world:"policy" doc:"Former names, oldest first. Keeps the identity over a rename, and stays for ever."`
	Incarnation int               `yaml:"incarnation,omitempty" world:"policy" doc:"Raise it to get a fresh object under a name used before. 0 or more."`
}

// Object is one document of a revision.
type Object struct {
	Kind Kind
	Meta Meta
	// UID is the identity: UUIDv5 of cluster id, kind, oldest name and incarnation.
	UID string
	// Spec is a pointer to the kind's spec struct, with defaults filled in.
	Spec any
	// Pos is where the document stands, FILE:LINE:COL.
	Pos string
}

// Cluster says what the whole tree belongs to.
type Cluster struct {
	ID       string          `yaml:"id,omitempty" world:"recorded" doc:"Identity of the cluster; by default its oldest name. Every UID is derived from it, so it never changes while disks exist."`
	IQNBase  string          `yaml:"iqnBase,omitempty" world:"recorded" doc:"Start of every iSCSI qualified name (RFC 7143 section 4.2.7). Never changes while disks exist."`
	Defaults ClusterDefaults `yaml:"defaults,omitempty"`
}

// ClusterDefaults are values a machine takes where it says nothing.
type ClusterDefaults struct {
	CPUModel string `yaml:"cpuModel,omitempty" world:"policy" doc:"CPU model of machines that name none. A named model can be migrated; host cannot in general."`
}

// Host is a machine that runs an agent.
type Host struct {
	Roles     []string      `yaml:"roles" world:"policy" doc:"What the host does: Hypervisor, Storage."`
	Addresses HostAddresses `yaml:"addresses" `
	State     string        `yaml:"state,omitempty" world:"policy" doc:"Active, Cordoned (nothing new starts here)."`
}

// Host roles and states.
const (
	RoleHypervisor    = "Hypervisor"
	RoleStorage       = "Storage"
	HostStateActive   = "Active"
	HostStateCordoned = "Cordoned"
)

// HostAddresses are IP addresses of a host; storage and migration default to management.
type HostAddresses struct {
	Management string `yaml:"management" world:"policy" doc:"IP address of the management network."`
	Storage    string `yaml:"storage,omitempty" world:"policy" doc:"IP address of the storage network; default: management."`
	Migration  string `yaml:"migration,omitempty" world:"policy" doc:"IP address of the migration network; default: management."`
}

// StoragePool is where volumes live and how they are served.
type StoragePool struct {
	Host       string      `yaml:"host" world:"recorded" doc:"The storage host. A pool cannot move."`
	Capacity   Size        `yaml:"capacity" world:"policy" doc:"Space the disks of the pool may use."`
	Overcommit float64     `yaml:"overcommit,omitempty" world:"policy" doc:"The sum of the disks' sizes may be this many times the capacity. 1.0 to 100, default 1.0."`
	Volumes    PoolVolumes `yaml:"volumes"`
	Target     PoolTarget  `yaml:"target"`
}

// PoolVolumes is the volume backend: exactly one is given.
type PoolVolumes struct {
	File *FileVolumes `yaml:"file,omitempty"`
}

// FileVolumes keeps every disk in a sparse file.
type FileVolumes struct {
	Path string `yaml:"path" world:"recorded" doc:"Directory of the volumes: relative to the state directory, or absolute under a root the host's configuration allows."`
}

// PoolTarget is the iSCSI target backend: exactly one is given.
type PoolTarget struct {
	Embedded *EmbeddedTarget `yaml:"embedded,omitempty"`
}

// EmbeddedTarget is the project's own iSCSI target.
type EmbeddedTarget struct {
	Portals []string `yaml:"portals" world:"recorded" doc:"ADDRESS:PORT to listen on; nothing else is listened on. Pools of a host may share a portal."`
}

// Image is the content a disk starts from, or a kernel or initrd.
type Image struct {
	Source      ImageSource `yaml:"source"`
	SHA256      string      `yaml:"sha256" world:"recorded" doc:"SHA-256 of the file, 64 hex digits. The content is verified before use."`
	Format      string      `yaml:"format,omitempty" world:"recorded" doc:"raw or qcow2; stated, never probed. Default raw."`
	VirtualSize Size        `yaml:"virtualSize,omitempty" world:"recorded" doc:"Size a disk sees; a disk made from the image is at least this large. Needed where a disk uses the image."`
}

// ImageSource says where the bytes come from: exactly one is given.
type ImageSource struct {
	HTTP *HTTPSource `yaml:"http,omitempty"`
	File *FileSource `yaml:"file,omitempty"`
}

// HTTPSource is fetched with GET.
type HTTPSource struct {
	URL string `yaml:"url" world:"recorded" doc:"http or https URL, without user or password."`
}

// FileSource is a file of the host's image directory.
type FileSource struct {
	Path string `yaml:"path" world:"recorded" doc:"Path below the image directory of the host."`
}

// Disk is one logical volume, served over an iSCSI target of its own.
type Disk struct {
	Pool           string     `yaml:"pool" world:"recorded" doc:"The StoragePool. A disk cannot change its pool."`
	Size           Size       `yaml:"size" world:"observed" doc:"Size, a multiple of 1Mi. A disk grows live and never shrinks."`
	Source         DiskSource `yaml:"source,omitempty"`
	DeletionPolicy string     `yaml:"deletionPolicy,omitempty" world:"recorded" doc:"Retain (default): a removed disk is kept in quarantine for the retention. Delete: its data may be purged as soon as it is removed."`
	Retention      Duration   `yaml:"retention,omitempty" world:"recorded" doc:"How long a removed disk can be brought back. Default 168h."`
}

// Deletion policies.
const (
	DeletionRetain = "Retain"
	DeletionDelete = "Delete"
)

// DiskSource is what a new disk holds: at most one is given, none means blank.
type DiskSource struct {
	Blank *struct{} `yaml:"blank,omitempty" world:"recorded" doc:"An empty disk. The default."`
	Image string    `yaml:"image,omitempty" world:"recorded" doc:"The Image copied to the disk when it is made."`
}

// Network is what a NIC connects to: exactly one is given.
type Network struct {
	User   *UserNetwork   `yaml:"user,omitempty" world:"recorded" doc:"QEMU's user mode network: outgoing connections only, no privileges."`
	Bridge *BridgeNetwork `yaml:"bridge,omitempty"`
}

// UserNetwork has no settings.
type UserNetwork struct{}

// BridgeNetwork connects to an existing bridge of the host.
type BridgeNetwork struct {
	Name string `yaml:"name" world:"recorded" doc:"Bridge interface, at most 15 characters. It must exist, and the host's configuration must allow it."`
}

// VirtualMachine is one QEMU process.
type VirtualMachine struct {
	Host          string       `yaml:"host" world:"recorded" doc:"The hypervisor that runs it."`
	PowerState    string       `yaml:"powerState,omitempty" world:"observed" doc:"Running (default) or Stopped."`
	CPU           CPU          `yaml:"cpu"`
	Memory        Memory       `yaml:"memory"`
	Machine       string       `yaml:"machine,omitempty" world:"recorded" doc:"QEMU machine type: q35 (default) or a versioned pc-q35-X.Y. Pinned to a version when the machine is created."`
	Boot          Boot         `yaml:"boot,omitempty"`
	Disks         []VMDisk     `yaml:"disks,omitempty" key:"name"`
	NICs          []NIC        `yaml:"nics,omitempty" key:"name"`
	Shutdown      Shutdown     `yaml:"shutdown,omitempty"`
	RestartPolicy string       `yaml:"restartPolicy,omitempty" world:"policy" doc:"What to do when the guest or QEMU ends by itself: Always (default), OnFailure, Never."`
	UpdatePolicy  UpdatePolicy `yaml:"updatePolicy,omitempty"`
	RestartedAt   string       `yaml:"restartedAt,omitempty" world:"recorded" doc:"RFC 3339 time. A new value asks for one restart."`
}

// Power states and policies.
const (
	PowerRunning     = "Running"
	PowerStopped     = "Stopped"
	RestartAlways    = "Always"
	RestartOnFailure = "OnFailure"
	RestartNever     = "Never"
	UpdateManual     = "Manual"
	UpdateAutomatic  = "Automatic"
)

// CPU is the processor the guest sees.
type CPU struct {
	Sockets int    `yaml:"sockets,omitempty" world:"observed" doc:"Sockets, default 1."`
	Cores   int    `yaml:"cores" world:"observed" doc:"Cores a socket, 1 to 255."`
	Threads int    `yaml:"threads,omitempty" world:"observed" doc:"Threads a core, default 1."`
	Max     int    `yaml:"max,omitempty" world:"recorded" doc:"Most virtual CPUs (sockets × cores × threads) it can ever have; default: what it has."`
	Model   string `yaml:"model,omitempty" world:"recorded" doc:"QEMU CPU model; default: the cluster's defaults.cpuModel."`
}

// Count is the number of virtual CPUs.
func (c CPU) Count() int { return c.Sockets * c.Cores * c.Threads }

// Memory is the RAM the guest sees.
type Memory struct {
	Size Size `yaml:"size" world:"observed" doc:"RAM, a multiple of 1Mi, at least 16Mi."`
	Max  Size `yaml:"max,omitempty" world:"recorded" doc:"Most RAM it can ever have; default: size."`
}

// Boot is how the guest starts: a kernel given directly, or firmware.
type Boot struct {
	Firmware string    `yaml:"firmware,omitempty" world:"recorded" doc:"BIOS (default): boot from the first disk."`
	Kernel   *ImageRef `yaml:"kernel,omitempty"`
	Initrd   *ImageRef `yaml:"initrd,omitempty"`
	Cmdline  string    `yaml:"cmdline,omitempty" world:"recorded" doc:"Kernel command line, with kernel only."`
}

// FirmwareBIOS is SeaBIOS.
const FirmwareBIOS = "BIOS"

// ImageRef names an Image.
type ImageRef struct {
	Image string `yaml:"image" world:"recorded" doc:"Name of the Image."`
}

// VMDisk attaches a Disk.
type VMDisk struct {
	Name string `yaml:"name,omitempty" world:"observed" doc:"Name of the entry; default: the disk's."`
	Disk string `yaml:"disk" world:"observed" doc:"The Disk. A disk belongs to one machine."`
}

// NIC is one virtio network card.
type NIC struct {
	Name    string `yaml:"name" world:"observed" doc:"Name of the card, unique in the machine."`
	Network string `yaml:"network" world:"observed" doc:"The Network it connects to."`
	MAC     string `yaml:"mac,omitempty" world:"observed" doc:"Unicast MAC address; derived from UID and name when absent."`
}

// Shutdown is how the guest is asked to stop.
type Shutdown struct {
	Timeout Duration `yaml:"timeout,omitempty" world:"policy" doc:"Time the guest has after the ACPI power button before it is powered off. Default 60s."`
}

// UpdatePolicy is when changes that need a restart are carried out.
type UpdatePolicy struct {
	Restart string `yaml:"restart,omitempty" world:"policy" doc:"Manual (default): the change waits for a restart. Automatic: the machine is restarted."`
}

// Defaults of the language.
const (
	DefaultRetention       = Duration(168 * time.Hour)
	DefaultShutdownTimeout = Duration(60 * time.Second)
	DefaultCPUModel        = "qemu64"
	DefaultIQNBase         = "iqn.2026-11.local.reconciler"
)
