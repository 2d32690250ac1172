// Package archtest holds the rules of the source tree as tests: which package
// may import which, what the pure ones must not do, and what every package
// and dependency has to say about itself.
package archtest
