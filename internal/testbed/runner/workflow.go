package runner

import (
	"bytes"
	"fmt"

	"gopkg.in/yaml.v3"
)

// workflow is what Gitea hands out: the file with one of its jobs. A key that
// stands here without being read has no meaning to Gitea's own runner either,
// or none on one machine; any other key fails the job.
type workflow struct {
	Name        string            `yaml:"name"`
	RunName     string            `yaml:"run-name"`
	On          yaml.Node         `yaml:"on"`
	Permissions yaml.Node         `yaml:"permissions"`
	Concurrency yaml.Node         `yaml:"concurrency"`
	Env         map[string]string `yaml:"env"`
	Defaults    defaults          `yaml:"defaults"`
	Jobs        map[string]job    `yaml:"jobs"`
}

type defaults struct {
	Run struct {
		Shell     string `yaml:"shell"`
		Directory string `yaml:"working-directory"`
	} `yaml:"run"`
}

type job struct {
	Name        string            `yaml:"name"`
	Needs       yaml.Node         `yaml:"needs"`
	RunsOn      yaml.Node         `yaml:"runs-on"`
	If          string            `yaml:"if"`
	Env         map[string]string `yaml:"env"`
	Outputs     map[string]string `yaml:"outputs"`
	Timeout     string            `yaml:"timeout-minutes"`
	Permissions yaml.Node         `yaml:"permissions"`
	Concurrency yaml.Node         `yaml:"concurrency"`
	Defaults    defaults          `yaml:"defaults"`
	Strategy    yaml.Node         `yaml:"strategy"`
	Steps       []step            `yaml:"steps"`
}

type step struct {
	ID        string            `yaml:"id"`
	Name      string            `yaml:"name"`
	If        string            `yaml:"if"`
	Uses      string            `yaml:"uses"`
	With      map[string]string `yaml:"with"`
	Run       string            `yaml:"run"`
	Shell     string            `yaml:"shell"`
	Directory string            `yaml:"working-directory"`
	Env       map[string]string `yaml:"env"`
	Continue  bool              `yaml:"continue-on-error"`
	Timeout   string            `yaml:"timeout-minutes"`
}

// parse reads a task's workflow and its one job.
func parse(data []byte) (w workflow, id string, j job, err error) {
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&w); err != nil {
		return w, "", j, fmt.Errorf("this runner cannot read the workflow: %w", err)
	}
	if len(w.Jobs) != 1 {
		return w, "", j, fmt.Errorf("the task has %d jobs", len(w.Jobs))
	}
	for id, j = range w.Jobs {
	}
	return w, id, j, nil
}
