// Package wire speaks Git's smart protocol, version 0, to a remote over HTTP and
// SSH: reference advertisement, upload-pack and receive-pack. It bounds what a
// server may send and how long it may take, and tells apart why it failed.
package wire

import (
	"errors"
	"strings"
)

// See the errors of the same names in package gitrepo.
var (
	ErrUnreachable       = errors.New("remote is unreachable")
	ErrAuth              = errors.New("authentication failed")
	ErrHostKey           = errors.New("host key verification failed")
	ErrCertificate       = errors.New("certificate verification failed")
	ErrRepositoryMissing = errors.New("repository not found")
	ErrProtocol          = errors.New("remote answered unexpectedly")
	ErrRejected          = errors.New("push rejected")
	ErrStale             = errors.New("ref changed meanwhile")
	ErrNotOurRef         = errors.New("remote does not offer this commit")
)

// clean makes a server's words fit for one line of a log.
func clean(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == 0xFFFD {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// refusal finds out what a server means that sends an error instead of an answer.
func refusal(message string) error {
	low := strings.ToLower(message)
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(low, p) {
				return true
			}
		}
		return false
	}
	switch {
	case has("not our ref"):
		return ErrNotOurRef
	case has("not appear to be a git repository", "repository not found", "does not exist", "no such repository", "could not be found", "not a git repository"):
		return ErrRepositoryMissing
	case has("denied", "not authorized", "unauthorized", "forbidden", "not allowed"):
		return ErrAuth
	}
	return ErrProtocol
}
