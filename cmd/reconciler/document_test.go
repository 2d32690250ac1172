package main

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"reconciler/cmd/reconciler/config"
	"reconciler/spec"
)

// commandsDocument writes docs/commands.md.
func commandsDocument(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# Commands\n\n")
	b.WriteString("Generated from the commands themselves; do not edit. The configuration file is described in\n[operating](operating.md#configuration).\n\n")
	b.WriteString(root.Long + "\n\n")
	b.WriteString("| command | does |\n|---|---|\n")
	visit(root, func(c *cobra.Command) {
		if c.HasParent() && shown(c) {
			fmt.Fprintf(&b, "| [`%s`](#%s) | %s |\n", strings.TrimPrefix(c.CommandPath(), "reconciler "), anchor(c), c.Short)
		}
	})
	b.WriteString("\n## Flags of every command\n\n")
	writeFlags(&b, root.PersistentFlags())
	b.WriteString("## Exit codes\n\n```text\n" + outcomesHelp + usageHelp + detailedHelp + "\n" + incompleteHelp + "```\n\n`ci plan` tells of an incomplete plan without the flag, too.\n\n")
	visit(root, func(c *cobra.Command) {
		if c.HasParent() && shown(c) {
			writeCommand(&b, c)
		}
	})
	return strings.TrimSpace(b.String()) + "\n"
}

func configTable() string {
	var b strings.Builder
	b.WriteString("| key | default | says |\n|---|---|---|\n")
	writeKeys(&b, reflect.ValueOf(config.Default()), "")
	return b.String()
}

func shown(c *cobra.Command) bool { return !c.Hidden && c.Name() != "help" }

func anchor(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

func writeCommand(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "## %s\n\n", c.CommandPath())
	fmt.Fprintf(b, "```text\n%s\n```\n\n", c.UseLine())
	b.WriteString(c.Long + "\n\n")
	writeFlags(b, c.LocalNonPersistentFlags())
	if f := formats(c); f != nil {
		fmt.Fprintf(b, "Output formats (`-o`): %s.\n\n", strings.Join(f, ", "))
	}
	fmt.Fprintf(b, "```sh\n%s\n```\n\n", unindent(c.Example))
}

func writeFlags(b *strings.Builder, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	b.WriteString("| flag | says |\n|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", strings.TrimSpace(name+" "+strings.ReplaceAll(value, "|", `\|`)), strings.ReplaceAll(usage, "|", `\|`))
	})
	b.WriteString("\n")
}

func unindent(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}

func writeKeys(b *strings.Builder, v reflect.Value, prefix string) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		key := prefix + f.Tag.Get("yaml")
		if f.Type.Kind() == reflect.Struct {
			writeKeys(b, v.Field(i), key+".")
			continue
		}
		if f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct {
			writeKeys(b, reflect.Zero(f.Type.Elem()), key+"[].")
			continue
		}
		def := ""
		if !v.Field(i).IsZero() {
			def = "`" + plainValue(v.Field(i).Interface()) + "`"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", key, def, f.Tag.Get("doc"))
	}
}

// plainValue writes a duration as people do: 1m, not 1m0s.
func plainValue(v any) string {
	if d, ok := v.(time.Duration); ok {
		return spec.Duration(d).String()
	}
	return fmt.Sprint(v)
}
