package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"reconciler/drivers/iscsi/target"
)

func serverPID(dir string) (int, error) {
	c := target.NewClient(filepath.Join(dir, "ours", "run"))
	defer c.Close()
	return c.Ping(context.Background())
}

// waitSessions waits until n sessions are logged in.
func waitSessions(dir string, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), sessionDeadline)
	defer cancel()
	c := target.NewClient(filepath.Join(dir, "ours", "run"))
	defer c.Close()
	for {
		list, err := c.List(ctx)
		if err != nil {
			return fmt.Errorf("waiting for %d sessions: %w", n, err)
		}
		if len(list) == 1 && len(list[0].Sessions) == n {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
}
