package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/cmd/reconciler/config"
	"reconciler/forge"
)

// What the configuration leaves out follows from the repository's address, and
// a signed push to the branch reaches the agent.
func TestWebhooks(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.Repo, c.Branch = "ssh://git@git.example.org:2222/ops/cluster.git", "main"
	c.Webhook.Listen = l.Addr().String()
	c.Webhook.SecretFile = filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(c.Webhook.SecretFile, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	pushed, done := make(chan struct{}, 1), make(chan error, 1)
	run := webhooks(c, slog.New(slog.DiscardHandler))
	if err := run(ctx, func() {}); err == nil || !strings.Contains(err.Error(), "webhook.listen") {
		t.Errorf("while the address is taken: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	go func() { done <- run(ctx, func() { pushed <- struct{}{} }) }()

	post := func(body string) int {
		mac := hmac.New(sha256.New, []byte("s3cret"))
		mac.Write([]byte(body))
		deadline := time.After(20 * time.Second)
		for tick := time.Tick(10 * time.Millisecond); ; {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+c.Webhook.Listen, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
			resp, err := http.DefaultClient.Do(req)
			if err == nil {
				_ = resp.Body.Close()
				return resp.StatusCode
			}
			select {
			case <-tick:
			case <-deadline:
				t.Fatalf("nobody listens after 20s: %v", err)
			}
		}
	}
	if code := post(`{"ref":"refs/heads/main","repository":"ops/other"}`); code != http.StatusNoContent {
		t.Errorf("a push to another repository: %d", code)
	}
	if code := post(`{"ref":"refs/heads/main","repository":"ops/cluster"}`); code != http.StatusAccepted {
		t.Errorf("a push: %d", code)
	}
	select {
	case <-pushed:
	case <-time.After(20 * time.Second):
		t.Error("the agent was not told of the push after 20s")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if c.Webhook.Listen = ""; webhooks(c, nil) != nil {
		t.Error("something listens although nothing is configured")
	}
}

func TestForgeConfig(t *testing.T) {
	c := config.Default()
	c.Repo = "git@git.example.org:ops/cluster.git"
	if f, err := openForge(c); f != nil || err != nil {
		t.Errorf("without a forge: %v, %v", f, err)
	}
	c.Forge.Kind, c.Forge.TokenFile = "gitea", "/token"
	if _, err := openForge(c); err != nil {
		t.Error(err)
	}
	got := forgeConfig(c)
	if got.Kind != forge.Gitea || got.URL != "https://git.example.org" || got.Repository != "ops/cluster" || got.TokenFile != "/token" {
		t.Errorf("%+v", got)
	}
	c.Repo = "/srv/git/cluster.git"
	if _, err := openForge(c); err == nil || !strings.Contains(err.Error(), "forge.url is missing") {
		t.Errorf("for a repository on this machine: %v", err)
	}
}
