package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// The runner's protocol is Connect (connectrpc.com/docs/protocol, unary calls)
// of messages in the JSON form of protobuf: 64-bit integers are strings, bytes
// are base64.

type runnerMessage struct {
	UUID  string `json:"uuid"`
	Token string `json:"token"`
}

// task is what Gitea has a runner do: one job of one run.
type task struct {
	ID       int64               `json:"id,string"`
	Workflow []byte              `json:"workflowPayload"`
	Context  map[string]any      `json:"context"`
	Secrets  map[string]string   `json:"secrets"`
	Vars     map[string]string   `json:"vars"`
	Needs    map[string]taskNeed `json:"needs"`
}

type taskNeed struct {
	Outputs map[string]string `json:"outputs"`
	Result  Result            `json:"result"`
}

// Result is how a job or a step ended.
type Result string

// The results of Gitea's protocol that this runner reports.
const (
	Success Result = "RESULT_SUCCESS"
	Failure Result = "RESULT_FAILURE"
	Skipped Result = "RESULT_SKIPPED"
)

type taskState struct {
	ID        int64       `json:"id,string"`
	Result    Result      `json:"result,omitempty"`
	StartedAt time.Time   `json:"startedAt"`
	StoppedAt *time.Time  `json:"stoppedAt,omitempty"`
	Steps     []stepState `json:"steps"`
}

type stepState struct {
	ID        int64     `json:"id,string"`
	Result    Result    `json:"result"`
	StartedAt time.Time `json:"startedAt"`
	StoppedAt time.Time `json:"stoppedAt"`
	LogIndex  int64     `json:"logIndex,string"`
	LogLength int64     `json:"logLength,string"`
}

type logRow struct {
	Time    time.Time `json:"time"`
	Content string    `json:"content"`
}

// object is a JSON object.
type object map[string]any

// client calls Gitea as a runner.
type client struct {
	url         string
	uuid, token string // empty until it is registered
}

func (c *client) call(ctx context.Context, method string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/api/actions/runner.v1.RunnerService/"+method, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connect-Protocol-Version", "1")
	req.Header.Set("X-Runner-Uuid", c.uuid)
	req.Header.Set("X-Runner-Token", c.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", method, resp.Status, answer)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: %w: %s", method, err, answer)
	}
	return nil
}

func (c *client) register(ctx context.Context, registration, name string, labels []string) error {
	var out struct {
		Runner runnerMessage `json:"runner"`
	}
	err := c.call(ctx, "Register", object{"name": name, "token": registration, "version": "test", "labels": labels}, &out)
	if err != nil {
		return err
	}
	c.uuid, c.token = out.Runner.UUID, out.Runner.Token
	return c.call(ctx, "Declare", object{"version": "test", "labels": labels}, nil)
}

// fetch returns the next task; nil if there is none. Version 0 asks Gitea to
// look even where it believes that this runner knows of all.
func (c *client) fetch(ctx context.Context) (*task, error) {
	var out struct {
		Task *task `json:"task"`
	}
	err := c.call(ctx, "FetchTask", object{"tasksVersion": "0"}, &out)
	return out.Task, err
}

func (c *client) update(ctx context.Context, state taskState, outputs map[string]string) error {
	return c.call(ctx, "UpdateTask", object{"state": state, "outputs": outputs}, nil)
}

// upload stores a task's whole log.
func (c *client) upload(ctx context.Context, id int64, rows []logRow) error {
	return c.call(ctx, "UpdateLog", object{"taskId": fmt.Sprint(id), "index": "0", "rows": rows, "noMore": true}, nil)
}
