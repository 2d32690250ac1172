// Package policy decides which ready actions of a plan may run now: budget,
// suspensions and what an operator allowed. It is pure.
package policy
