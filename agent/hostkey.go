package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"reconciler/internal/durable"
	"reconciler/trust"
)

const (
	hostKeyFile = "host_key"
	// hostKeyUsed says that a report was signed with the key of hostKeyFile.
	hostKeyUsed = "host_key.used"
)

// HostKey is the key in the state directory that signs what this host reports.
// It is made where there is none; two processes that do that at the same time
// get the same one.
func HostKey(stateDir string) (*trust.Key, error) {
	dir := filepath.Join(stateDir, "agent")
	path := filepath.Join(dir, hostKeyFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeHostKey(dir, path); err != nil {
			return nil, fmt.Errorf("make the key of this host: %w", err)
		}
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, err
	}
	key, err := trust.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w (if the file is removed, another key is made, and Host.spec.signingKey must be changed to it)", path, err)
	}
	return key, nil
}

// makeHostKey links a key into place that is complete on the disk.
func makeHostKey(dir, path string) (err error) {
	_, private, err := trust.GenerateKey()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, hostKeyFile+".tmp-") // 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(private)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return durable.SyncDir(dir)
}

// openKey finds the key of this host.
func (a *Agent) openKey() (err error) {
	if a.hostKey = a.cfg.HostKey; a.hostKey != nil {
		a.keyUsed = true // as far as anybody knows
		return nil
	}
	if a.hostKey, err = HostKey(a.cfg.StateDir); err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join(a.store.Path(), hostKeyUsed))
	a.keyUsed = err == nil
	return nil
}

// usedKey notes that the key has signed a report. a.mu is held.
func (a *Agent) usedKey() error {
	if a.keyUsed {
		return nil
	}
	if err := a.store.Write(hostKeyUsed, nil); err != nil {
		return err
	}
	a.keyUsed = true
	return nil
}
