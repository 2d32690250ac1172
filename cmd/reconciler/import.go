package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"reconciler/api"
)

func (a *app) importCmd() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "import [KIND/NAME…]",
		Short: "Write the specs of what runs here and nobody declares",
		Long: `import looks for machines and disks of this host that no tree declares, and
writes the documents that declare them as they are. What the agent's own records
know is adopted when the documents are committed: nothing is restarted, and a
machine keeps its process. Of a QEMU that something else started it reads the
monitor, changes nothing, and says what must be done before it can be managed.

-o names a directory, one file an object; - is standard output, the default.
Notes go to standard error, and into the documents as comments.`,
		Example: `  reconciler import
  reconciler import vm/web-1 disk/web-1-root -o clusters/demo/imported`,
		Args:              objectArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			var names []string
			for _, arg := range args {
				o, err := parseObject(arg)
				if err != nil {
					return err
				}
				names = append(names, o.String())
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			res, err := client.Import(cmd.Context(), api.ImportRequest{Objects: names})
			if err != nil {
				return err
			}
			return a.writeImport(res, out)
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "-", "`DIR` for a file an object, or -")
	return c
}

// objectArgs is for a command that takes any number of objects.
func objectArgs(_ *cobra.Command, args []string) error {
	for _, arg := range args {
		if _, err := parseObject(arg); err != nil {
			return err
		}
	}
	return nil
}

// writeImport writes the documents, and to standard error what is to be known of them.
func (a *app) writeImport(res api.ImportResult, dir string) error {
	for _, note := range res.Notes {
		fmt.Fprintln(a.stderr, clean(note))
	}
	if len(res.Documents) == 0 {
		fmt.Fprintln(a.stderr, "nothing is found that could be declared")
	}
	for i, d := range res.Documents {
		name := clean(d.Kind + "/" + d.Name)
		if d.Adopted {
			fmt.Fprintf(a.stderr, "%s: commit the document, and it is managed as it is\n", name)
		} else {
			fmt.Fprintf(a.stderr, "%s: cannot be adopted as it is; see the notes\n", name)
		}
		var b strings.Builder
		for _, note := range d.Notes {
			fmt.Fprintf(a.stderr, "%s: %s\n", name, clean(note))
			fmt.Fprintf(&b, "# %s\n", clean(note))
		}
		b.WriteString(cleanLines(d.YAML))
		if dir == "-" {
			if i > 0 {
				fmt.Fprintln(a.stdout, "---")
			}
			fmt.Fprint(a.stdout, b.String())
			continue
		}
		if err := writeNew(dir, strings.ToLower(d.Kind)+"-"+filepath.Base(d.Name)+".yaml", b.String()); err != nil {
			return err
		}
	}
	return nil
}

// writeNew writes a file that must not be there yet.
func writeNew(dir, name, text string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return &hinted{fmt.Errorf("%s is there already", path), "move it away, or give another directory"}
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
