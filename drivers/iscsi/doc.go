// Package iscsi is the storage driver: it makes volumes, exports each over an
// iSCSI target of its own, decides who may write it, and observes all of it.
//
// Three records decide what is true, each written and synced before the act it
// describes:
//
//   - beside a volume, its own (package volume): what it is, the policies in
//     force, and its quarantine;
//   - in the state directory, the claims (package claims): who has a disk, by
//     which epoch;
//   - in the state directory, an index of pools and volumes: what must be there
//     even while a pool is not mounted.
//
// The target process keeps a copy of its own of what it serves, so that it can
// start before any agent does. [Driver.Ensure] makes that copy follow the
// records; [Driver.Observe] reads and changes nothing.
package iscsi
