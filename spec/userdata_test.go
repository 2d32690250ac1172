package spec

import (
	"encoding/json"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// cloudInitSays is what cloud-init 22.4.2 of Debian 12 makes of a user-data
// text: its user_data.py and handlers were run on it, and what they wrote to
// scripts was executed.
type cloudInitSays struct {
	Text  string
	Taken bool
	Says  string // its first warning
	Empty bool   // there is nothing to take
}

// Nothing that cloud-init takes is warned of, and everything that it does not,
// but for tabs that only its own YAML reader minds.
func TestUserData(t *testing.T) {
	data, err := os.ReadFile("testdata/user-data.json")
	if err != nil {
		t.Fatal(err)
	}
	var list []cloudInitSays
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	itsLine := regexp.MustCompile(`Invalid format at line (\d+) column`)
	for _, c := range list {
		line, col, prob := userData(c.Text)
		switch {
		case c.Taken && prob != nil:
			t.Errorf("%q: warns of what is taken: %v", c.Text, prob)
		case !c.Taken && prob == nil && !c.Empty && !strings.Contains(c.Says, `'\\t'`) && !strings.Contains(c.Says, `'\t'`):
			t.Errorf("%q: does not warn: %s", c.Text, c.Says)
		case prob != nil && (line < 1 || col < 1 || line > 1+strings.Count(c.Text, "\n")):
			t.Errorf("%q: at %d:%d", c.Text, line, col)
		}
		if m := itsLine.FindStringSubmatch(c.Says); prob != nil && m != nil {
			// It names where the thing begins that is broken, we where it breaks.
			if n, _ := strconv.Atoi(m[1]); line < n || line > n+2 {
				t.Errorf("%q: at line %d, cloud-init says %s", c.Text, line, c.Says)
			}
		}
	}
}

func TestUserDataWarnings(t *testing.T) {
	machine := func(userData string) string {
		return caseFile("VirtualMachine x\nspec:\n  host: host1\n  cpu: {cores: 1}\n  memory: {size: 64Mi}\n  cloudInit:\n    userData:\n") + userData
	}
	for doc, want := range map[string]string{
		machine("      inline: |\n        #cloud-config\n        users: []\n"):                           "",
		machine("      inline: |\n\n        #cloud-config\n        users: []\n"):                         "",
		machine("      inline: |\n        # cloud-config\n        users: []\n"):                          `11:9: spec.cloudInit.userData.inline: cloud-init passes over a text that begins with "# cloud-config" (write #cloud-config and nothing else)`,
		machine("      inline: |\n        users: []\n"):                                                  `11:9: spec.cloudInit.userData.inline: cloud-init passes over a text that begins with "users: []" (write #cloud-config as the first line)`,
		machine("      inline: |\n        echo hello\n"):                                                 `11:9: spec.cloudInit.userData.inline: cloud-init passes over a text that begins with "echo hello" (the first line is #cloud-config, #! and an interpreter, or another that cloud-init knows)`,
		machine("      inline: |\n\n        #!/bin/sh\n        true\n"):                                  `11:1: spec.cloudInit.userData.inline: cloud-init takes "#!" only at the very beginning of a text (remove what is blank before it)`,
		machine("      inline: |\n        #cloud-config\n        runcmd:\n          - a: b: c\n"):        `13:11: spec.cloudInit.userData.inline: cloud-init passes over what is not YAML: mapping values are not allowed in this context`,
		machine("      inline: |2\n          #cloud-config\n          hostname: {{ name }}\n"):           `12:22: spec.cloudInit.userData.inline: cloud-init passes over what is not YAML: a key is no text (write what is in braces in quotes)`,
		machine("      inline: |\r\n        #cloud-config\r\n        - a\r\n"):                           `12:9: spec.cloudInit.userData.inline: cloud-init passes over YAML that is not a mapping`,
		machine("      inline: \"#cloud-config\\na: [\\n\"\n"):                                           `10:15: spec.cloudInit.userData.inline: cloud-init passes over what is not YAML: did not find expected node content`,
		machine("      inline: |\n        #cloud-config\n        a: 1\n        ---\n        b: 1\n"):     `13:9: spec.cloudInit.userData.inline: cloud-init passes over YAML of more than one document (put all into one)`,
		machine("      inline: &x |\n        #cloud-config\n        a: 1\n    metaData: {inline: *x}\n"): "",
	} {
		objects, err := Parse("a.yaml", []byte(doc))
		if err != nil || len(objects) != 1 {
			t.Errorf("%q: %v", doc, err)
			continue
		}
		if got := strings.TrimPrefix(objects[0].from.warnings.Error(), ":"); got != want {
			t.Errorf("%s\n got %s\nwant %s", doc, got, want)
		}
		set, err := Parse("b.yaml", []byte(base))
		if err != nil {
			t.Fatal(err)
		}
		linked, err := Link(append(set, objects...), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(linked.Warnings().Error(), "a.yaml:", ""); got != want {
			t.Errorf("of the set: %s", got)
		}
	}
}

func FuzzUserData(f *testing.F) {
	for _, text := range []string{"#cloud-config\na: [\n", "\n#!/bin/sh\n", "## template: jinja\n", "#cloud-boothook", "#cloud-config\n\u2028- a: *b", " \ufeff# Cloud-Config"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		line, col, prob := userData(text)
		if prob != nil && (line < 1 || col < 1 || line > 1+strings.Count(text, "\n") || strings.ContainsAny(prob.Error(), "\n\x00")) {
			t.Errorf("%q: %d:%d: %v", text, line, col, prob)
		}
	})
}
