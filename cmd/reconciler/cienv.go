package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"reconciler/forge"
)

// ciEnv is what the environment of a job says of itself. All of it may be empty.
type ciEnv struct {
	forge, url, repository string
	clone                  string // address of the repository
	pull                   int
	base                   string // branch that is merged into
	head                   string // commit that the job was started for
	run                    string // page of the job
	summary                string // file that is shown on that page
}

// readCIEnv knows the jobs of GitHub, Gitea and GitLab.
func readCIEnv(get func(string) string, read func(string) ([]byte, error)) (ciEnv, error) {
	switch {
	case get("GITHUB_ACTIONS") == "true": // Gitea's jobs say so, too
		return actionsEnv(get, read)
	case get("GITLAB_CI") == "true":
		return gitlabEnv(get)
	}
	return ciEnv{}, nil
}

func actionsEnv(get func(string) string, read func(string) ([]byte, error)) (ciEnv, error) {
	e := ciEnv{
		forge: string(forge.GitHub), url: get("GITHUB_SERVER_URL"), repository: get("GITHUB_REPOSITORY"),
		base: get("GITHUB_BASE_REF"), summary: get("GITHUB_STEP_SUMMARY"),
	}
	run := get("GITHUB_RUN_ID")
	if get("GITEA_ACTIONS") == "true" {
		e.forge, run = string(forge.Gitea), get("GITHUB_RUN_NUMBER")
	}
	if e.url != "" && e.repository != "" {
		page := strings.TrimRight(e.url, "/") + "/" + e.repository
		e.clone = page + ".git"
		if run != "" {
			e.run = page + "/actions/runs/" + run
		}
	}
	path := get("GITHUB_EVENT_PATH")
	if path == "" {
		return e, nil
	}
	data, err := read(path)
	if err != nil {
		return e, fmt.Errorf("the event of the job: %w", err)
	}
	var event struct {
		PullRequest struct {
			Number int `json:"number"`
			Head   struct {
				SHA string `json:"sha"`
			} `json:"head"`
			Base struct {
				Ref string `json:"ref"`
			} `json:"base"`
		} `json:"pull_request"`
	}
	if err := json.Unmarshal(data, &event); err != nil {
		return e, fmt.Errorf("the event of the job, %s: %w", path, err)
	}
	p := event.PullRequest
	e.pull, e.head = p.Number, p.Head.SHA
	if p.Base.Ref != "" {
		e.base = p.Base.Ref
	}
	return e, nil
}

func gitlabEnv(get func(string) string) (ciEnv, error) {
	e := ciEnv{
		forge: string(forge.GitLab), url: get("CI_SERVER_URL"), repository: get("CI_PROJECT_PATH"),
		base: get("CI_MERGE_REQUEST_TARGET_BRANCH_NAME"), run: get("CI_JOB_URL"),
	}
	if page := get("CI_PROJECT_URL"); page != "" {
		e.clone = page + ".git"
	}
	// Of a pipeline of the merged result, CI_COMMIT_SHA is the merge.
	if e.head = get("CI_MERGE_REQUEST_SOURCE_BRANCH_SHA"); e.head == "" {
		e.head = get("CI_COMMIT_SHA")
	}
	iid := get("CI_MERGE_REQUEST_IID")
	if iid == "" {
		e.head = ""
		return e, nil
	}
	var err error
	if e.pull, err = strconv.Atoi(iid); err != nil {
		return e, fmt.Errorf("CI_MERGE_REQUEST_IID: %w", err)
	}
	return e, nil
}
