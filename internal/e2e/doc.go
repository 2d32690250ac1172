// Package e2e tests the real binary on real Git repositories, real QEMU and
// real iSCSI sessions, from a commit to what the guest sees.
package e2e
