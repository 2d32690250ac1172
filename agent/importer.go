package agent

import (
	"context"

	"reconciler/api"
)

// Import writes the specs of what runs here and no tree declares.
func (a *Agent) Import(ctx context.Context, r api.ImportRequest) (api.ImportResult, error) {
	return api.ImportResult{}, nil
}
