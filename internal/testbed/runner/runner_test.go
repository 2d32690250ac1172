package runner

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reconciler/internal/testbed/gitea"
)

const limit = 90 * time.Second

const base = `name: check
on:
  pull_request_target:
    types: [opened, synchronize]
env:
  WHERE: base
jobs:
  first:
    runs-on: ubuntu-latest
    outputs: {word: "${{ steps.say.outputs.word }}"}
    steps:
    - id: say
      env: {KEY: "${{ secrets.KEY }}"}
      run: |
        echo "word=of-$WHERE-${#KEY}" >> "$GITHUB_OUTPUT"
        echo "pull ${{ github.event.pull_request.number }} $GITHUB_REPOSITORY $GITHUB_EVENT_NAME"
  second:
    needs: first
    runs-on: ubuntu-latest
    steps:
    - uses: actions/checkout@v4
      with: {ref: "${{ github.event.pull_request.head.sha }}"}
    - run: echo "got ${{ needs.first.outputs.word }}"; cat file
    - if: github.event_name == 'push'
      run: echo never
    - if: failure()
      run: echo never
`

// The base's workflow runs for pull_request_target, with secrets, whatever the
// pull request does to it; the fork's own runs for pull_request, without.
func TestWhoseWorkflowAndSecrets(t *testing.T) {
	g := gitea.Start(t)
	owner, other := g.NewUser(t, "owner"), g.NewUser(t, "other")
	repo := g.NewRepo(t, owner, "cluster")
	repo.Secret(t, "KEY", "12345")
	repo.Commit(t, owner, "main", "begin", map[string][]byte{".gitea/workflows/check.yaml": []byte(base), "file": []byte("old\n")})
	r := Start(t, g, repo, Config{})
	fork := repo.Fork(t, other)
	edited := strings.ReplaceAll(strings.ReplaceAll(base, "WHERE: base", "WHERE: fork"), "pull_request_target", "pull_request")
	edited = strings.ReplaceAll(edited, `"${{ secrets.KEY }}"`, `"${{ secrets.GITEA_TOKEN }}"`)
	fork.Commit(t, other, "change", "edit the workflow", map[string][]byte{".gitea/workflows/check.yaml": []byte(edited), "file": []byte("new\n")})
	pull := repo.NewPull(t, other, "other:change", "main", "Edit the workflow")

	first := r.Wait(t, limit, "the base's first job", func(run Run) bool { return run.Event == "pull_request_target" && run.Job == "first" })
	if first.Result != Success || first.Pull != pull.Number || first.Secrets["KEY"] != "12345" || !strings.Contains(first.Source, "WHERE: base") ||
		!strings.Contains(first.Log, "pull 1 owner/cluster pull_request_target") {
		t.Errorf("%v", first)
	}
	second := r.Wait(t, limit, "the base's second job", func(run Run) bool { return run.Event == "pull_request_target" && run.Job == "second" })
	if second.Result != Success || !strings.Contains(second.Log, "got of-base-5\nnew\n") || strings.Contains(second.Log, "never") {
		t.Errorf("%v", second)
	}
	for _, run := range r.Runs() {
		if run.Event == "pull_request" {
			t.Errorf("the workflow of a stranger's fork ran: %v", run)
		}
	}
	var status gitea.Status
	for _, s := range repo.Statuses(t, pull.Head.SHA) {
		if strings.HasPrefix(s.Context, "check / second") && s.State == "success" {
			status = s
		}
	}
	if status.Context == "" {
		t.Errorf("Gitea shows no success of the job: %+v", repo.Statuses(t, pull.Head.SHA))
	}
}

// What this runner does not know fails a job; it never becomes an empty text.
func TestUnknownFails(t *testing.T) {
	names := func(path []string) (any, error) {
		e := execution{r: &Runner{url: "http://forge"}, task: &task{Context: map[string]any{"event": map[string]any{"n": 3.0}}}, env: map[string]string{"A": "a"}}
		return e.resolve(path)
	}
	for text, want := range map[string]string{
		"x ${{ github.event.n }}${{env.A}} y":          "x 3a y",
		"${{ env.A == 'A' && !failure() }}":            "true",
		"${{ (env.A != 'a') || github.event.n == 3 }}": "true",
		"${{ env.A == 'b' && 'yes' || '}} no' }}":      "}} no",
		"${{ github.event.m }}":                        "",
		"${{ secrets.NONE }}":                          "",
		"${{ steps.a.outputs.b }}":                     "",
		"${{ needs.a.result }}":                        "",
		"${{ toJSON(github) }}":                        "",
		"${{ github.event }}":                          "",
		"${{ env.A":                                    "",
		"${{ env.A == }}":                              "",
		"${{ env['A'] }}":                              "",
		"${{ 'a }}":                                    "",
		"${{ env.A env.A }}":                           "",
		"no expression":                                "no expression",
	} {
		got, err := expand(text, names)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{
		"jobs: {a: {steps: [{run: a, unknown: b}]}}",
		"jobs: {a: {container: b, steps: []}}",
		"jobs: {a: {}, b: {}}",
		"jobs: {a: {uses: ./other.yaml}}",
	} {
		if _, _, _, err := parse([]byte(text)); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}

func TestWhatStepsSet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "output")
	for text, want := range map[string]string{
		"a=1\nb<<END\nx=1\ny\nEND\nc=p<<q\n": "map[a:1 b:x=1\ny c:p<<q]",
		"":                                   "map[]",
		"b<<END\nx\n":                        "",
		"what is this\n":                     "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := readPairs(path)
		if err == nil && fmt.Sprint(m) != want || err != nil && want != "" {
			t.Errorf("%q: %v, %v", text, m, err)
		}
	}
}
