// Package target is the embedded iSCSI target (RFC 7143): portals, login and
// access, sessions, and the control socket by which exports are changed while
// they are in use. It runs in a process of its own and keeps its own state, so
// that neither the agent nor a restart stands between a guest and its disk.
//
// What it promises beside the protocol:
//
//   - What is admitted is on stable storage first, and is served again after a
//     restart before anyone asks (state.go).
//   - One session per initiator name and grant of a target. A new login closes
//     the older one and gets its final response only when nothing of the older
//     one can reach the volume any more (target.go, admit).
//   - Fencing: once an epoch is gone no command of it touches the volume
//     (target.go, fence).
//   - Login and NOP never wait for volume I/O (execute.go).
package target
