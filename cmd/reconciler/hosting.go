package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"reconciler/agent"
	"reconciler/cmd/reconciler/config"
	"reconciler/forge"
)

// forgeConfig is the forge of a host's configuration; what it leaves out
// follows from the repository's address.
func forgeConfig(c config.Config) forge.Config {
	return forge.Config{
		Kind: forge.Kind(c.Forge.Kind), URL: c.Forge.URL, Repository: c.Forge.Repository,
		TokenFile: c.Forge.TokenFile, CAFile: c.Forge.CAFile,
	}.Locate(c.Repo)
}

// openForge opens the forge; nil where none is configured.
func openForge(c config.Config) (agent.Forge, error) {
	if c.Forge.Kind == "" {
		return nil, nil
	}
	fc := forgeConfig(c)
	if fc.Kind == forge.Gitea && fc.URL == "" {
		return nil, fmt.Errorf("forge.url is missing, and does not follow from repo %q", c.Repo)
	}
	return forge.Open(fc)
}

// webhooks is what listens for them; nil where nothing is to.
func webhooks(c config.Config, log *slog.Logger) func(ctx context.Context, pushed func()) error {
	if c.Webhook.Listen == "" {
		return nil
	}
	return func(ctx context.Context, pushed func()) error {
		receiver, err := forge.NewReceiver(forge.ReceiverConfig{
			SecretFile: c.Webhook.SecretFile, Kind: forge.Kind(c.Forge.Kind), Repository: forgeConfig(c).Repository, Branch: c.Branch, Wake: pushed,
			Failed: func(err error) { log.Warn("a webhook could not be checked", "error", err) },
		})
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", c.Webhook.Listen)
		if err != nil {
			return fmt.Errorf("webhook.listen: %w", err)
		}
		log.Info("listening for webhooks", "address", l.Addr().String())
		return forge.Serve(ctx, l, receiver, c.Webhook.CertFile, c.Webhook.KeyFile)
	}
}
