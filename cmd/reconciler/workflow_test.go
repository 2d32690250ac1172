package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func example(t *testing.T, name string, into any) string {
	t.Helper()
	data, err := os.ReadFile("../../examples/cluster-repo/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(data)
}

// reconcilerArgs are the arguments of the one call of reconciler in a script.
func reconcilerArgs(t *testing.T, script string) []string {
	t.Helper()
	_, call, found := strings.Cut(strings.ReplaceAll(script, "\\\n", " "), "reconciler ci ")
	if !found {
		t.Fatalf("it does not call reconciler:\n%s", script)
	}
	call, _, _ = strings.Cut(call, "\n")
	return append([]string{"ci"}, strings.Fields(strings.ReplaceAll(call, `"`, ""))...)
}

// knownFlags fails for a flag that the command does not have.
func knownFlags(t *testing.T, args []string) {
	t.Helper()
	root := (&app{}).root()
	cmd, rest, err := root.Find(args)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Errorf("%v: %v", args, err)
	}
}

// A workflow with secrets is the base's, whatever a pull request makes of it,
// and nothing that the pull request brings is run.
func TestExampleWorkflows(t *testing.T) {
	for _, name := range []string{".github/workflows/plan.yaml", ".gitea/workflows/plan.yaml"} {
		t.Run(name, func(t *testing.T) {
			var w struct {
				On   map[string]yaml.Node `yaml:"on"`
				Jobs map[string]struct {
					Environment string `yaml:"environment"`
					Steps       []struct {
						Uses string            `yaml:"uses"`
						Run  string            `yaml:"run"`
						Env  map[string]string `yaml:"env"`
					} `yaml:"steps"`
				} `yaml:"jobs"`
			}
			example(t, name, &w)
			for event := range w.On {
				if event != "pull_request_target" {
					t.Errorf("it runs on %s, for which a branch brings its own workflow", event)
				}
			}
			if len(w.On) != 1 || len(w.Jobs) == 0 {
				t.Fatalf("%d events, %d jobs", len(w.On), len(w.Jobs))
			}
			for id, j := range w.Jobs {
				if strings.HasPrefix(name, ".github") && j.Environment == "" {
					t.Errorf("job %s: the key is not bound to an environment", id)
				}
				for _, s := range j.Steps {
					if strings.Contains(s.Uses, "checkout") || strings.Contains(s.Run, "git ") {
						t.Errorf("job %s brings the pull request's files: %s%s", id, s.Uses, s.Run)
					}
					// What a person wrote, such as a title or the name of a branch,
					// would be part of the script.
					if strings.Contains(s.Run, "${{") {
						t.Errorf("job %s: an expression in a script:\n%s", id, s.Run)
					}
					if strings.Contains(s.Run, "reconciler") {
						args := reconcilerArgs(t, s.Run)
						knownFlags(t, args)
						if !slices.Contains(args, "--approve-key") {
							t.Errorf("job %s signs nothing: %v", id, args)
						}
					}
				}
			}
		})
	}
}

func TestExampleGitLab(t *testing.T) {
	var w struct {
		Plan struct {
			Rules     []struct{ If string } `yaml:"rules"`
			Variables map[string]string     `yaml:"variables"`
			Script    []string              `yaml:"script"`
		} `yaml:"plan"`
	}
	text := example(t, ".gitlab-ci.yml", &w)
	if w.Plan.Variables["GIT_STRATEGY"] != "none" {
		t.Error("it checks the merge request out")
	}
	if len(w.Plan.Rules) != 1 || !strings.Contains(w.Plan.Rules[0].If, "merge_request_event") {
		t.Errorf("rules %+v", w.Plan.Rules)
	}
	if !strings.Contains(text, "@group/") {
		t.Error("it does not say that it must lie in another project")
	}
	knownFlags(t, reconcilerArgs(t, strings.Join(w.Plan.Script, "\n")))
}
