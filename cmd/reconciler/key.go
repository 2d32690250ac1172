package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"reconciler/agent"
	"reconciler/cmd/reconciler/config"
	"reconciler/trust"
)

func (a *app) keyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Print the public key of this host's agent",
		Long: `key prints the public key with which this host signs its reports, for
spec.signingKey of its Host object: a plan in CI believes only reports that are
signed with it. The private key is hostKeyFile of the configuration; without
one it is kept in the state directory, and made if it is not there yet.`,
		Example: `  reconciler key
  ssh host1 reconciler key`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			key, err := hostKey(c)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, key.Public(), c.Host)
			return err
		},
	}
}

// hostKey is the key that the agent signs with.
func hostKey(c config.Config) (*trust.Key, error) {
	key, err := configuredKey(c)
	if err == nil && key == nil {
		key, err = agent.HostKey(c.StateDir)
	}
	return key, err
}

// configuredKey is the key of the configuration, nil if there is none.
func configuredKey(c config.Config) (*trust.Key, error) {
	if c.HostKeyFile == "" {
		return nil, nil
	}
	data, err := os.ReadFile(c.HostKeyFile)
	if err != nil {
		return nil, fmt.Errorf("hostKeyFile: %w", err)
	}
	key, err := trust.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("hostKeyFile %s: %w", c.HostKeyFile, err)
	}
	return key, nil
}

func signing(c config.Config) agent.Signing {
	s := c.Signing
	return agent.Signing{Required: s.Required, Keys: s.Keys, GPGKeys: s.GPGKeys, Merges: s.Commits == "Merges", TrustedBase: s.TrustedBase}
}
