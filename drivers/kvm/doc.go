// Package kvm runs virtual machines as QEMU processes: it observes what runs,
// starts, changes, adopts and ends it. The processes outlive the agent, and
// everything that must be known about them is in the process table, in QEMU or
// in a durable record.
package kvm
