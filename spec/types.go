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
	KindSecret         Kind = "Secret"
	KindNetwork        Kind = "Network"
	KindVirtualMachine Kind = "VirtualMachine"
)

// Kinds lists every kind, an object's dependencies before the object.
var Kinds = []Kind{KindCluster, KindHost, KindStoragePool, KindImage, KindSecret, KindNetwork, KindDisk, KindVirtualMachine}

const kindCount = 8

// The struct tag `world` says where the truth of a field lies:
//
//	observed  read back from the live host
//	recorded  kept in the durable record of the object
//	policy    changes nothing that runs
//
// The tag `key` on a list names the field that identifies an entry; paths are
// written with it (spec.nics[front].network); by default it is the value of the
// entry's field that `keyFrom` names.
//
// The rest of the tags say what a value may be, and drive the decoder, the
// schema and the reference alike: `default`, `enum`, `format` (see formats),
// `ref` (the kind whose name it is), `min`, `max` and `multiple` in the unit of
// the type. A field without omitempty is required.

// Meta is the metadata of every object.
type Meta struct {
	Name        string            `yaml:"name" world:"recorded" format:"name" doc:"Name of the object, unique within its kind."`
	Labels      map[string]string `yaml:"labels,omitempty" world:"policy" format:"label" doc:"Free key/value pairs for people and tools."`
	Annotations map[string]string `yaml:"annotations,omitempty" world:"policy" format:"annotation" doc:"Free key/value pairs; never interpreted."`
	MovedFrom   []string          `yaml:"movedFrom,omitempty" world:"policy" format:"name" doc:"Former names, oldest first. Keeps the identity over a rename, and stays for ever."`
	Incarnation int               `yaml:"incarnation,omitempty" world:"policy" min:"0" max:"1000000" doc:"Raise it to get a fresh object under a name used before."`
	Drift       string            `yaml:"drift,omitempty" world:"policy" enum:"Correct,Report,Off" doc:"What happens when the object is changed behind the repository's back: Correct puts it right, Report proposes the change as a pull request, Off leaves it alone. By default what its host says."`
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

	// from is nil in an object that was not parsed.
	from *origin
}

// Cluster says what the whole tree belongs to.
type Cluster struct {
	ID       string          `yaml:"id,omitempty" world:"recorded" format:"clusterID" doc:"Identity of the cluster; by default its oldest name. Every UID is derived from it, so it never changes while disks exist."`
	IQNBase  string          `yaml:"iqnBase,omitempty" world:"recorded" format:"iqn" default:"iqn.2026-11.local.reconciler" doc:"Start of every iSCSI qualified name (RFC 7143 section 4.2.7.2). Never changes while disks exist."`
	Defaults ClusterDefaults `yaml:"defaults,omitempty" doc:"Values a machine takes where it says nothing."`
}

// ClusterDefaults are values a machine takes where it says nothing.
type ClusterDefaults struct {
	CPUModel string `yaml:"cpuModel,omitempty" world:"policy" format:"cpuModel" default:"qemu64" doc:"CPU model of machines that name none. A named model can be migrated; host cannot in general."`
}

// Host is a machine that runs an agent.
type Host struct {
	Roles     []string      `yaml:"roles" world:"policy" enum:"Hypervisor,Storage" doc:"What the host does: run machines, serve disks, or both."`
	Addresses HostAddresses `yaml:"addresses" doc:"Where the host is reached."`
	State     string        `yaml:"state,omitempty" world:"policy" enum:"Active,Cordoned" default:"Active" doc:"Cordoned: nothing new starts here."`
	// SigningKey is trusted as of the base of a pull request, never as of its head.
	SigningKey string `yaml:"signingKey,omitempty" world:"policy" format:"sshKey" doc:"Public SSH key of the host's agent, as printed by reconciler key. A plan in CI believes the state a host reports only if it is signed with it."`
	Drift      string `yaml:"drift,omitempty" world:"policy" enum:"Correct,Report,Off" default:"Correct" doc:"What happens to changes made behind the repository's back, for objects of this host that say nothing of their own (metadata.drift)."`
}

// Drift modes.
const (
	DriftCorrect = "Correct"
	DriftReport  = "Report"
	DriftOff     = "Off"
)

// Host roles and states.
const (
	RoleHypervisor    = "Hypervisor"
	RoleStorage       = "Storage"
	HostStateActive   = "Active"
	HostStateCordoned = "Cordoned"
)

// HostAddresses are IP addresses of a host; storage and migration default to management.
type HostAddresses struct {
	Management string `yaml:"management" world:"policy" format:"ip" doc:"IP address of the management network."`
	Storage    string `yaml:"storage,omitempty" world:"policy" format:"ip" doc:"IP address of the storage network; by default the management address."`
	Migration  string `yaml:"migration,omitempty" world:"policy" format:"ip" doc:"IP address of the migration network; by default the management address."`
}

// StoragePool is where volumes live and how they are served.
type StoragePool struct {
	Host       string      `yaml:"host" world:"recorded" ref:"Host" doc:"The storage host. A pool cannot move."`
	Capacity   Size        `yaml:"capacity" world:"policy" min:"1Mi" max:"1024Ti" multiple:"1Mi" doc:"Space the disks of the pool may use."`
	Overcommit float64     `yaml:"overcommit,omitempty" world:"policy" min:"1" max:"100" default:"1.0" doc:"The sum of the disks' sizes may be this many times the capacity."`
	Volumes    PoolVolumes `yaml:"volumes" doc:"Volume backend: exactly one is given."`
	Target     PoolTarget  `yaml:"target" doc:"iSCSI target backend: exactly one is given."`
}

// PoolVolumes is the volume backend: exactly one is given.
type PoolVolumes struct {
	File *FileVolumes `yaml:"file,omitempty" doc:"Every disk in a sparse file."`
}

// FileVolumes keeps every disk in a sparse file.
type FileVolumes struct {
	Path string `yaml:"path" world:"recorded" format:"poolPath" doc:"Directory of the volumes: relative to the state directory, or absolute under a root the host's configuration allows."`
}

// PoolTarget is the iSCSI target backend: exactly one is given.
type PoolTarget struct {
	Embedded *EmbeddedTarget `yaml:"embedded,omitempty" doc:"The project's own iSCSI target."`
}

// EmbeddedTarget is the project's own iSCSI target.
type EmbeddedTarget struct {
	Portals []string `yaml:"portals" world:"recorded" format:"portal" doc:"Where it listens; nothing else is listened on. Pools of a host may share a portal."`
}

// Image is the content a disk starts from, or a kernel or initrd.
type Image struct {
	Source      ImageSource `yaml:"source" doc:"Where the bytes come from: exactly one is given."`
	SHA256      string      `yaml:"sha256" world:"recorded" format:"sha256" doc:"SHA-256 of the file. The content is verified before use."`
	Format      string      `yaml:"format,omitempty" world:"recorded" enum:"raw,qcow2" default:"raw" doc:"Format of the file; stated, never probed."`
	VirtualSize Size        `yaml:"virtualSize,omitempty" world:"recorded" min:"512" max:"64Ti" multiple:"512" doc:"Size a disk sees; a disk made from the image is at least this large. Needed where a disk uses the image. Of a raw image it is the size of the file, rounded up to 512."`
}

// Image formats.
const (
	FormatRaw   = "raw"
	FormatQcow2 = "qcow2"
)

// ImageSource says where the bytes come from: exactly one is given.
type ImageSource struct {
	HTTP *HTTPSource `yaml:"http,omitempty" doc:"Fetched with GET."`
	File *FileSource `yaml:"file,omitempty" doc:"A file of the host's image directory."`
}

// HTTPSource is fetched with GET.
type HTTPSource struct {
	URL string `yaml:"url" world:"recorded" format:"url" doc:"Address of the file, without user or password."`
}

// FileSource is a file of the host's image directory.
type FileSource struct {
	Path string `yaml:"path" world:"recorded" format:"filePath" doc:"Path below the image directory of the host."`
}

// Secret is what a file of the sops program says in secret. This package never
// sees more of it than the encrypted text.
type Secret struct {
	Data map[string]string `yaml:"data" world:"recorded" format:"sops" doc:"Values by key, each as sops encrypts it."`
	// File is the whole file that the document stands in. sops authenticates all
	// of it, so less cannot be decrypted.
	File string `yaml:"-"`
}

// Disk is one logical volume, served over an iSCSI target of its own.
type Disk struct {
	Pool           string     `yaml:"pool" world:"recorded" ref:"StoragePool" doc:"The StoragePool. A disk cannot change its pool."`
	Size           Size       `yaml:"size" world:"observed" min:"1Mi" max:"64Ti" multiple:"1Mi" doc:"Size. A disk grows live and never shrinks."`
	Source         DiskSource `yaml:"source,omitempty" doc:"What a new disk holds: at most one is given, none means blank."`
	DeletionPolicy string     `yaml:"deletionPolicy,omitempty" world:"recorded" enum:"Retain,Delete" default:"Retain" doc:"Retain: a removed disk is kept in quarantine for the retention. Delete: its data may be purged as soon as it is removed."`
	Retention      Duration   `yaml:"retention,omitempty" world:"recorded" min:"1s" max:"87600h" default:"168h" doc:"How long a removed disk can be brought back."`
}

// Deletion policies.
const (
	DeletionRetain = "Retain"
	DeletionDelete = "Delete"
)

// DiskSource is what a new disk holds: at most one is given, none means blank.
type DiskSource struct {
	Blank *struct{} `yaml:"blank,omitempty" world:"recorded" doc:"An empty disk; what a disk without a source is."`
	Image string    `yaml:"image,omitempty" world:"recorded" ref:"Image" doc:"The Image copied to the disk when it is made."`
}

// Network is what a NIC connects to: exactly one is given.
type Network struct {
	User   *UserNetwork   `yaml:"user,omitempty" world:"recorded" doc:"QEMU's user mode network: outgoing connections only, also to the host itself (docs/operating.md has a rule that bounds them), no privileges. It has no settings: write {}."`
	Bridge *BridgeNetwork `yaml:"bridge,omitempty" doc:"An existing bridge of the host."`
}

// UserNetwork has no settings.
type UserNetwork struct{}

// BridgeNetwork connects to an existing bridge of the host.
type BridgeNetwork struct {
	Name string `yaml:"name" world:"recorded" format:"bridge" doc:"Bridge interface. It must exist, and the host's configuration must allow it."`
}

// VirtualMachine is one QEMU process.
type VirtualMachine struct {
	Host          string       `yaml:"host" world:"recorded" ref:"Host" doc:"The hypervisor that runs it."`
	PowerState    string       `yaml:"powerState,omitempty" world:"observed" enum:"Running,Stopped" default:"Running" doc:"Whether it is to run."`
	CPU           CPU          `yaml:"cpu" doc:"The processor the guest sees."`
	Memory        Memory       `yaml:"memory" doc:"The RAM the guest sees."`
	Machine       string       `yaml:"machine,omitempty" world:"recorded" format:"machine" default:"q35" doc:"QEMU machine type. q35 is pinned to a version when the machine is created."`
	Boot          Boot         `yaml:"boot,omitempty" doc:"How the guest starts: a kernel given directly, or firmware."`
	Disks         []VMDisk     `yaml:"disks,omitempty" key:"name" keyFrom:"disk" doc:"Disks, in the order the firmware tries them; with the NICs at most 128."`
	NICs          []NIC        `yaml:"nics,omitempty" key:"name" doc:"virtio network cards."`
	CloudInit     *CloudInit   `yaml:"cloudInit,omitempty" doc:"What cloud-init in the guest reads, from a small read-only disk labelled cidata that is made anew at every start."`
	Shutdown      Shutdown     `yaml:"shutdown,omitempty" doc:"How the guest is asked to stop."`
	RestartPolicy string       `yaml:"restartPolicy,omitempty" world:"policy" enum:"Always,OnFailure,Never" default:"Always" doc:"What to do when the guest or QEMU ends by itself."`
	UpdatePolicy  UpdatePolicy `yaml:"updatePolicy,omitempty" doc:"When changes that need a restart are carried out."`
	RestartedAt   string       `yaml:"restartedAt,omitempty" world:"recorded" format:"time" doc:"A new value asks for one restart."`
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
	Sockets int    `yaml:"sockets,omitempty" world:"observed" min:"1" max:"255" default:"1" doc:"Sockets."`
	Cores   int    `yaml:"cores" world:"observed" min:"1" max:"255" doc:"Cores a socket."`
	Threads int    `yaml:"threads,omitempty" world:"observed" min:"1" max:"255" default:"1" doc:"Threads a core."`
	Max     int    `yaml:"max,omitempty" world:"recorded" min:"1" max:"255" doc:"Most virtual CPUs (sockets × cores × threads) it can ever have; by default what it has."`
	Model   string `yaml:"model,omitempty" world:"recorded" format:"cpuModel" doc:"QEMU CPU model; by default the cluster's defaults.cpuModel."`
}

// Count is the number of virtual CPUs.
func (c CPU) Count() int { return c.Sockets * c.Cores * c.Threads }

// Memory is the RAM the guest sees.
type Memory struct {
	Size Size `yaml:"size" world:"observed" min:"16Mi" max:"16Ti" multiple:"1Mi" doc:"RAM."`
	Max  Size `yaml:"max,omitempty" world:"recorded" min:"16Mi" max:"16Ti" multiple:"1Mi" doc:"Most RAM it can ever have; by default its size."`
}

// Boot is how the guest starts: a kernel given directly, or firmware.
type Boot struct {
	Firmware string    `yaml:"firmware,omitempty" world:"recorded" enum:"BIOS" doc:"BIOS: boot from the first disk; what a machine without a kernel does. Not together with kernel."`
	Kernel   *ImageRef `yaml:"kernel,omitempty" doc:"Kernel to start directly."`
	Initrd   *ImageRef `yaml:"initrd,omitempty" doc:"Initial RAM disk, with kernel only."`
	Cmdline  string    `yaml:"cmdline,omitempty" world:"recorded" format:"cmdline" doc:"Kernel command line, with kernel only."`
}

// FirmwareBIOS is SeaBIOS.
const FirmwareBIOS = "BIOS"

// ImageRef names an Image.
type ImageRef struct {
	Image string `yaml:"image" world:"recorded" ref:"Image" doc:"Name of the Image, whose format is raw."`
}

// MaxDevices is how many disks and NICs a machine can have: each takes a PCI slot,
// and a guest with many more of them does not come up.
const MaxDevices = 128

// VMDisk attaches a Disk.
type VMDisk struct {
	Name string `yaml:"name,omitempty" world:"observed" format:"name" doc:"Name of the entry, unique in the machine; by default the disk's. An entry called as its disk follows when the disk is renamed."`
	Disk string `yaml:"disk" world:"observed" ref:"Disk" doc:"The Disk. A disk belongs to one machine."`
}

// NIC is one virtio network card.
type NIC struct {
	Name    string `yaml:"name" world:"observed" format:"name" doc:"Name of the card, unique in the machine."`
	Network string `yaml:"network" world:"observed" ref:"Network" doc:"The Network it connects to."`
	MAC     string `yaml:"mac,omitempty" world:"observed" format:"mac" doc:"Unicast MAC address; by default derived from the machine's UID and the card's name."`
}

// CloudInit is what cloud-init's data source NoCloud finds.
type CloudInit struct {
	UserData      CloudInitPart  `yaml:"userData" doc:"The user-data: inline, or a key of a Secret. reconciler validate warns of an inline text that cloud-init passes over."`
	MetaData      *CloudInitPart `yaml:"metaData,omitempty" doc:"The meta-data, a YAML mapping. instance-id and local-hostname are added where it does not say them."`
	NetworkConfig *CloudInitPart `yaml:"networkConfig,omitempty" doc:"The network-config, a YAML mapping."`
}

// CloudInitPart is a text: inline, or a key of a Secret.
type CloudInitPart struct {
	Inline string `yaml:"inline,omitempty" world:"recorded" format:"text" doc:"The text itself. Whoever reads the repository reads it too."`
	Secret string `yaml:"secret,omitempty" world:"recorded" ref:"Secret" doc:"The Secret that holds the text."`
	Key    string `yaml:"key,omitempty" world:"recorded" format:"secretKey" doc:"Key of the text in the Secret's data."`
}

// NamedPart is a part with its field in the CloudInit.
type NamedPart struct {
	Field string // userData, metaData, networkConfig
	*CloudInitPart
}

// Parts lists what is given, in the order of the fields.
func (c *CloudInit) Parts() []NamedPart {
	if c == nil {
		return nil
	}
	parts := []NamedPart{{"userData", &c.UserData}}
	if c.MetaData != nil {
		parts = append(parts, NamedPart{"metaData", c.MetaData})
	}
	if c.NetworkConfig != nil {
		parts = append(parts, NamedPart{"networkConfig", c.NetworkConfig})
	}
	return parts
}

// Shutdown is how the guest is asked to stop.
type Shutdown struct {
	Timeout Duration `yaml:"timeout,omitempty" world:"policy" min:"1s" max:"24h" default:"60s" doc:"Time the guest has after the ACPI power button before it is powered off."`
}

// UpdatePolicy is when changes that need a restart are carried out.
type UpdatePolicy struct {
	Restart string `yaml:"restart,omitempty" world:"policy" enum:"Manual,Automatic" default:"Manual" doc:"Manual: the change waits for a restart. Automatic: the machine is restarted."`
}

// Defaults of the language, as the tags say them.
const (
	DefaultRetention       = Duration(168 * time.Hour)
	DefaultShutdownTimeout = Duration(60 * time.Second)
	DefaultCPUModel        = "qemu64"
	DefaultIQNBase         = "iqn.2026-11.local.reconciler"
)
