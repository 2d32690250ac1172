package runner

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// jobTime bounds one job, whatever its timeout-minutes say.
const jobTime = 2 * time.Minute

// execution is one job while it runs.
type execution struct {
	r       *Runner
	task    *task
	record  Run
	dir     string
	env     map[string]string // of all steps
	path    []string
	steps   map[string]map[string]string // outputs of steps that have an id
	failed  bool
	rows    []logRow
	outputs map[string]string
	where   workflow
	job     job
}

func newExecution(r *Runner, t *task) *execution {
	e := &execution{
		r: r, task: t, dir: filepath.Join(r.dir, fmt.Sprint(t.ID)), path: slices.Clone(r.cfg.Path),
		env: map[string]string{}, steps: map[string]map[string]string{}, outputs: map[string]string{},
	}
	e.record = Run{Workflow: e.text("workflow"), Event: e.text("event_name"), Ref: e.text("ref"), SHA: e.text("sha")}
	if event, ok := t.Context["event"].(map[string]any); ok {
		e.record.Action, _ = event["action"].(string)
		if pull, ok := event["pull_request"].(map[string]any); ok {
			if n, ok := pull["number"].(float64); ok {
				e.record.Pull = int(n)
			}
		}
	}
	return e
}

// text is a string of the task's context.
func (e *execution) text(key string) string {
	s, _ := e.task.Context[key].(string)
	return s
}

func (e *execution) say(format string, args ...any) {
	e.rows = append(e.rows, logRow{Time: time.Now(), Content: fmt.Sprintf(format, args...)})
}

func (e *execution) run(ctx context.Context) taskState {
	ctx, cancel := context.WithTimeout(ctx, jobTime)
	defer cancel()
	state := taskState{ID: e.task.ID, StartedAt: time.Now(), Steps: []stepState{}}
	var err error
	var id string
	if e.where, id, e.job, err = parse(e.task.Workflow); err == nil {
		e.record.Job = id
		err = e.prepare(id)
	}
	wanted := true
	if err == nil {
		wanted, err = e.condition(e.job.If)
	}
	switch {
	case err != nil:
		e.say("::error::%v", err)
		state.Result = Failure
	case !wanted:
		state.Result = Skipped
	default:
		state.Steps = e.runSteps(ctx)
		if err := e.collect(); err != nil {
			e.say("::error::outputs: %v", err)
			e.failed = true
		}
		state.Result = Success
		if e.failed {
			state.Result = Failure
		}
	}
	now := time.Now()
	state.StoppedAt = &now
	return state
}

// prepare makes the job's directory and environment.
func (e *execution) prepare(id string) error {
	for _, dir := range []string{"workspace", "home", "tmp"} {
		if err := os.MkdirAll(filepath.Join(e.dir, dir), 0o755); err != nil {
			return err
		}
	}
	event, err := json.Marshal(e.task.Context["event"])
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(e.dir, "event.json"), event, 0o600); err != nil {
		return err
	}
	maps.Copy(e.env, map[string]string{
		"CI": "true", "GITEA_ACTIONS": "true", "GITHUB_ACTIONS": "true", "LANG": "C.UTF-8",
		"HOME": filepath.Join(e.dir, "home"), "TMPDIR": filepath.Join(e.dir, "tmp"), "RUNNER_TEMP": filepath.Join(e.dir, "tmp"),
		"GITHUB_EVENT_PATH": filepath.Join(e.dir, "event.json"), "GITHUB_WORKSPACE": filepath.Join(e.dir, "workspace"),
		"GITHUB_SERVER_URL": e.r.url, "GITHUB_JOB": id,
	})
	for _, key := range []string{"actor", "api_url", "base_ref", "event_name", "head_ref", "ref", "ref_name", "ref_type", "repository",
		"repository_owner", "run_attempt", "run_id", "run_number", "sha", "workflow"} {
		e.env["GITHUB_"+strings.ToUpper(key)] = e.text(key)
	}
	for _, more := range []map[string]string{e.where.Env, e.job.Env} {
		for _, name := range slices.Sorted(maps.Keys(more)) {
			value, err := expand(more[name], e.resolve)
			if err != nil {
				return fmt.Errorf("env %s: %w", name, err)
			}
			e.env[name] = value
		}
	}
	return nil
}

// condition evaluates an if. One that does not ask for the status itself wants
// success, too.
func (e *execution) condition(text string) (bool, error) {
	text = strings.TrimSpace(text)
	if inner, ok := strings.CutPrefix(text, "${{"); ok {
		text = strings.TrimSuffix(inner, "}}")
	}
	if text == "" {
		return !e.failed, nil
	}
	v, err := evaluate(text, e.resolve)
	if err != nil {
		return false, fmt.Errorf("if %s: %w", text, err)
	}
	asks := strings.Contains(text, "always()") || strings.Contains(text, "failure()") || strings.Contains(text, "cancelled()")
	return truthy(v) && (asks || !e.failed), nil
}

func (e *execution) runSteps(ctx context.Context) []stepState {
	var list []stepState
	for i, s := range e.job.Steps {
		state := stepState{ID: int64(i), StartedAt: time.Now(), LogIndex: int64(len(e.rows)), Result: Success}
		wanted, err := e.condition(s.If)
		switch {
		case err == nil && !wanted:
			state.Result = Skipped
		case err == nil:
			err = e.step(ctx, i, s)
		}
		if err != nil {
			e.say("::error::step %d %s: %v", i, s.Name, err)
			state.Result = Failure
			e.failed = e.failed || !s.Continue
		}
		state.StoppedAt, state.LogLength = time.Now(), int64(len(e.rows))-state.LogIndex
		list = append(list, state)
	}
	return list
}

// resolve is the scope of the job's expressions.
func (e *execution) resolve(path []string) (any, error) {
	unknown := fmt.Errorf("%s is not known to this runner", strings.Join(path, "."))
	switch path[0] {
	case "always()":
		return true, nil
	case "success()":
		return !e.failed, nil
	case "failure()":
		return e.failed, nil
	case "cancelled()":
		return false, nil
	case "github", "gitea":
		if len(path) == 2 && path[1] == "workspace" {
			return e.env["GITHUB_WORKSPACE"], nil
		}
		if len(path) == 2 && path[1] == "server_url" {
			return e.r.url, nil
		}
		return walk(e.task.Context, path[1:], unknown)
	case "secrets", "env", "vars":
		m := map[string]map[string]string{"secrets": e.task.Secrets, "env": e.env, "vars": e.task.Vars}[path[0]]
		if len(path) != 2 {
			return nil, unknown
		}
		v, ok := m[path[1]]
		if !ok {
			return nil, unknown
		}
		return v, nil
	case "runner":
		if len(path) == 2 && path[1] == "temp" {
			return e.env["RUNNER_TEMP"], nil
		}
	case "steps":
		if len(path) == 4 && path[2] == "outputs" {
			if v, ok := e.steps[path[1]][path[3]]; ok {
				return v, nil
			}
		}
	case "needs":
		if len(path) < 3 {
			return nil, unknown
		}
		need, ok := e.task.Needs[path[1]]
		if ok && len(path) == 3 && path[2] == "result" {
			return strings.ToLower(strings.TrimPrefix(string(need.Result), "RESULT_")), nil
		}
		if ok && len(path) == 4 && path[2] == "outputs" {
			if v, ok := need.Outputs[path[3]]; ok {
				return v, nil
			}
		}
	}
	return nil, unknown
}

func walk(v any, path []string, unknown error) (any, error) {
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, unknown
		}
		if v, ok = m[key]; !ok {
			return nil, unknown
		}
	}
	return v, nil
}

// collect works out what later jobs may ask for.
func (e *execution) collect() error {
	for name, text := range e.job.Outputs {
		value, err := expand(text, e.resolve)
		if err != nil {
			return err
		}
		e.outputs[name] = value
	}
	return nil
}

func (e *execution) step(ctx context.Context, i int, s step) error {
	env := maps.Clone(e.env)
	for name, text := range s.Env {
		value, err := expand(text, e.resolve)
		if err != nil {
			return fmt.Errorf("env %s: %w", name, err)
		}
		env[name] = value
	}
	switch {
	case s.Uses == "" && s.Run != "":
		return e.script(ctx, i, s, env)
	case strings.HasPrefix(s.Uses, "actions/checkout@") && s.Run == "":
		return e.checkout(ctx, s.With)
	}
	return fmt.Errorf("uses %q is not known to this runner", s.Uses)
}

func (e *execution) script(ctx context.Context, i int, s step, env map[string]string) error {
	text, err := expand(s.Run, e.resolve)
	if err != nil {
		return err
	}
	dir, err := expand(cmp.Or(s.Directory, e.job.Defaults.Run.Directory, e.where.Defaults.Run.Directory, "."), e.resolve)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(e.env["GITHUB_WORKSPACE"], dir)
	}
	name := cmp.Or(s.Shell, e.job.Defaults.Run.Shell, e.where.Defaults.Run.Shell, "bash")
	shell, ok := map[string][]string{"bash": {"bash", "--noprofile", "--norc", "-eo", "pipefail"}, "sh": {"sh", "-e"}}[name]
	if !ok {
		return fmt.Errorf("the shell %q is not known to this runner", name)
	}
	script := filepath.Join(e.dir, fmt.Sprintf("step-%d.sh", i))
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		return err
	}
	files := map[string]string{}
	for _, name := range []string{"GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_PATH", "GITHUB_STEP_SUMMARY"} {
		files[name] = filepath.Join(e.dir, fmt.Sprintf("%s-%d", name, i))
		if err := os.WriteFile(files[name], nil, 0o600); err != nil {
			return err
		}
	}
	maps.Copy(env, files)
	err = e.command(ctx, dir, env, append(shell, script)...)
	outputs, oerr := readPairs(files["GITHUB_OUTPUT"])
	more, merr := readPairs(files["GITHUB_ENV"])
	added, perr := os.ReadFile(files["GITHUB_PATH"])
	if s.ID != "" {
		e.steps[s.ID] = outputs
	}
	maps.Copy(e.env, more)
	e.path = append(strings.Fields(string(added)), e.path...)
	return errors.Join(err, oerr, merr, perr)
}

// command runs one in a process group of its own and logs what it writes.
func (e *execution) command(ctx context.Context, dir string, env map[string]string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	// Nothing of the test's own environment: a job sees what it is given.
	cmd.Env = []string{"PATH=" + strings.Join(append(slices.Clone(e.path), "/usr/local/bin", "/usr/bin", "/bin"), ":")}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		cmd.Env = append(cmd.Env, name+"="+env[name])
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	for lines := bufio.NewReader(&out); ; {
		line, rerr := lines.ReadString('\n')
		if line != "" {
			e.say("%s", strings.TrimSuffix(line, "\n"))
		}
		if rerr == io.EOF {
			return err
		}
	}
}

// checkout does what actions/checkout does, with its inputs ref, path,
// repository, token and fetch-depth.
func (e *execution) checkout(ctx context.Context, with map[string]string) error {
	in := map[string]string{"ref": e.text("sha"), "repository": e.text("repository"), "token": e.text("token"), "path": ".", "fetch-depth": "1", "persist-credentials": "true"}
	for name, text := range with {
		if _, ok := in[name]; !ok {
			return fmt.Errorf("the input %s of actions/checkout is not known to this runner", name)
		}
		value, err := expand(text, e.resolve)
		if err != nil {
			return err
		}
		in[name] = value
	}
	dir := filepath.Join(e.env["GITHUB_WORKSPACE"], in["path"])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	depth := []string{"--depth=" + in["fetch-depth"]}
	if in["fetch-depth"] == "0" {
		depth = nil
	}
	header := "http." + e.r.url + "/.extraheader"
	remote := e.r.url + "/" + in["repository"]
	fetch := append([]string{"git", "-c", header + "=Authorization: token " + in["token"], "fetch", "-q", "--no-tags"}, depth...)
	commands := [][]string{
		{"git", "init", "-q"},
		{"git", "remote", "add", "origin", remote},
		append(fetch, "origin", in["ref"]),
		{"git", "checkout", "-q", "--detach", "FETCH_HEAD"},
	}
	if in["persist-credentials"] != "false" {
		commands = append(commands, []string{"git", "config", header, "Authorization: token " + in["token"]})
	}
	for _, argv := range commands {
		if err := e.command(ctx, dir, e.env, argv...); err != nil {
			return fmt.Errorf("checkout of %s: %w", in["ref"], err)
		}
	}
	return nil
}

// readPairs reads NAME=VALUE lines, and NAME<<END, lines, END.
func readPairs(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for lines := strings.Split(string(data), "\n"); len(lines) > 0; lines = lines[1:] {
		line := lines[0]
		if name, end, ok := strings.Cut(line, "<<"); ok && !strings.Contains(name, "=") {
			n := slices.Index(lines, end)
			if n < 0 {
				return nil, fmt.Errorf("%s has no end %s", name, end)
			}
			m[name] = strings.Join(lines[1:n], "\n")
			lines = lines[n:]
			continue
		}
		if name, value, ok := strings.Cut(line, "="); ok {
			m[name] = value
		} else if line != "" {
			return nil, fmt.Errorf("%q sets nothing", line)
		}
	}
	return m, nil
}
