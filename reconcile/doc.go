// Package reconcile compares what is wanted with what is there and says what
// to do about it: State, Desired, Diff, Plan. It is pure: no I/O, no clock.
package reconcile
