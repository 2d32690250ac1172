package main

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write the generated documents")

// Every command tells what it does, how, and with an example that runs it.
func TestEveryCommandHasHelp(t *testing.T) {
	visit((&app{}).root(), func(c *cobra.Command) {
		path := c.CommandPath()
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || len(c.Short) > 76 {
			t.Errorf("%s: short help %q", path, c.Short)
		}
		if len(c.Long) < 40 || !strings.HasSuffix(c.Long, ".") {
			t.Errorf("%s: long help %q", path, c.Long)
		}
		for _, line := range strings.Split(c.Long, "\n") {
			if len([]rune(line)) > 82 {
				t.Errorf("%s: a line of the help is too long: %q", path, line)
			}
		}
		if !strings.Contains(c.Example, "  "+path+"\n") && !strings.Contains(c.Example+"\n", path+" ") && c.Example != "  "+path {
			t.Errorf("%s: the example does not run it: %q", path, c.Example)
		}
		if c.Args == nil && c.Name() != "help" {
			t.Errorf("%s takes any arguments", path)
		}
		if strings.Contains(c.Use, " ") && c.HasParent() && c.ValidArgsFunction == nil {
			t.Errorf("%s does not complete its arguments", path)
		}
	})
}

// The reference is what the commands say of themselves.
func TestCommandsDocument(t *testing.T) {
	const path = "../../docs/commands.md"
	want := commandsDocument((&app{}).root())
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not current; go test ./cmd/reconciler -run TestCommandsDocument -update writes it", path)
	}
}

// The keys in docs/operating.md are those of the configuration.
func TestOperatingDocument(t *testing.T) {
	const (
		path  = "../../docs/operating.md"
		begin = "<!-- configuration: written by go test ./cmd/reconciler -run TestOperatingDocument -update -->\n"
		end   = "<!-- end of configuration -->\n"
	)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the configuration", path)
	}
	table := "\n" + configTable() + "\n"
	if *update {
		if err := os.WriteFile(path, []byte(before+begin+table+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if old != table {
		t.Errorf("%s is not current; go test ./cmd/reconciler -run TestOperatingDocument -update writes it", path)
	}
}
