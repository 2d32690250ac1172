// Package wire speaks Git's smart protocol, version 0, to a remote over HTTP and
// SSH: reference advertisement, upload-pack and receive-pack. It bounds what a
// server may send and how long it may take, and tells apart why it failed.
package wire

import "errors"

// See the errors of the same names in package gitrepo.
var (
	ErrUnreachable       = errors.New("remote is unreachable")
	ErrAuth              = errors.New("authentication failed")
	ErrHostKey           = errors.New("host key verification failed")
	ErrCertificate       = errors.New("certificate verification failed")
	ErrRepositoryMissing = errors.New("repository not found")
	ErrProtocol          = errors.New("protocol error")
	ErrRejected          = errors.New("push rejected")
)
