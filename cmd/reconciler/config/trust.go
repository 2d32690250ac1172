package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

var fullHash = regexp.MustCompile(`^[0-9a-f]{40}$`)

// checkTrust finds contradictions in who is believed, and in what is told to whom.
func (c *Config) checkTrust() []Problem {
	var list []Problem
	add := func(key, msg string) { list = append(list, Problem{key, msg}) }
	s := c.Signing
	if !slices.Contains([]string{"All", "Merges"}, s.Commits) {
		add("signing.commits", "it is All or Merges")
	}
	if s.Required && s.Keys == "" && s.GPGKeys == "" {
		add("signing.required", "signatures are required and no key counts; give signing.keys or signing.gpgKeys")
	}
	if s.TrustedBase != "" && !fullHash.MatchString(s.TrustedBase) {
		add("signing.trustedBase", "it is not the full hash of a commit")
	}
	for _, k := range []struct {
		key  string
		keys []string
	}{{"planSigners", c.PlanSigners}, {"overrideKeys", c.OverrideKeys}} {
		for _, line := range k.keys {
			if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err != nil {
				add(k.key, fmt.Sprintf("%q is not a public SSH key: %v", line, err))
			}
		}
	}
	if c.RequireReviewedPlan && len(c.PlanSigners) == 0 {
		add("requireReviewedPlan", "no plan could ever be approved; give planSigners")
	}
	switch f := c.Forge; {
	case f.Kind == "" && f != (Forge{}):
		add("forge.kind", "it must be given: gitea, github or gitlab")
	case f.Kind != "" && !slices.Contains([]string{"gitea", "github", "gitlab"}, f.Kind):
		add("forge.kind", "it is none of gitea, github, gitlab")
	case f.Kind != "" && f.TokenFile == "":
		add("forge.tokenFile", "a forge takes nothing without a token")
	case f.Kind == "gitea" && f.URL == "" && (strings.HasPrefix(c.Repo, "/") || strings.HasPrefix(c.Repo, "file:")):
		add("forge.url", "the address of the forge is needed: it does not follow from a repo on this machine")
	}
	if u, err := url.Parse(c.Forge.URL); c.Forge.URL != "" && (err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
		add("forge.url", "it is not an http(s) address")
	}
	w := c.Webhook
	if w.Listen != "" {
		if _, err := netip.ParseAddrPort(w.Listen); err != nil {
			add("webhook.listen", "it is not ADDRESS:PORT, such as 192.0.2.1:9443")
		}
		if w.SecretFile == "" {
			add("webhook.secretFile", "a receiver without a secret believes anybody")
		}
	}
	if (w.CertFile == "") != (w.KeyFile == "") {
		add("webhook.certFile", "certFile and keyFile go together")
	}
	return list
}
