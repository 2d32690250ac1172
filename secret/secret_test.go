package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"filippo.io/age"
	"gopkg.in/yaml.v3"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func identities(t testing.TB, name string) []age.Identity {
	t.Helper()
	ids, err := age.ParseIdentities(bytes.NewReader(read(t, name+".txt")))
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// plainDocuments reads what sops decrypted.
func plainDocuments(t testing.TB, data []byte) (list []map[string]any) {
	t.Helper()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var d map[string]any
		err := dec.Decode(&d)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, d)
	}
}

// What sops wrote is read as sops reads it.
func TestFilesOfSOPS(t *testing.T) {
	for name, who := range map[string]string{
		"data": "host", "everything": "host", "suffix": "host", "unencrypted-regex": "host", "mac-only": "host",
		"two-recipients": "host", "nested": "host", "documents": "host", "rotated-key": "rotated",
	} {
		t.Run(name, func(t *testing.T) {
			f, err := open(read(t, name+".yaml"), identities(t, who))
			if err != nil {
				t.Fatal(err)
			}
			if want := plainDocuments(t, read(t, name+".decrypted.yaml")); !reflect.DeepEqual(f.documents, want) {
				t.Errorf("got\n%v\nwant\n%v", f.documents, want)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	swap := func(old, new string) func(string) string {
		return func(s string) string {
			if !strings.Contains(s, old) {
				t.Fatalf("the fixture has no %q", old)
			}
			return strings.Replace(s, old, new, 1)
		}
	}
	line := func(s, start string) string {
		for l := range strings.Lines(s) {
			if strings.HasPrefix(strings.TrimSpace(l), start) {
				return l
			}
		}
		t.Fatalf("the fixture has no line %q", start)
		return ""
	}
	as := func(s string) string { return s }
	for _, c := range []struct {
		name, file, who, want string
		change                func(string) string
	}{
		{"key groups", "shamir", "host", "key groups are not supported", as},
		{"rules about comments", "comments", "host", "rules about comments", as},
		{"for another host", "other-recipient", "host", "none of the recipients age1", as},
		{"rotated away", "rotated-key", "host", "none of the recipients age1", as},
		{"plain", "data.decrypted", "host", "not encrypted by sops", as},
		{"nothing", "data", "host", "not encrypted by sops", func(string) string { return "" }},
		{"not YAML", "data", "host", "not YAML", func(string) string { return "a: [" }},
		{"a list", "data", "host", "not a mapping", func(string) string { return "[1]" }},
		{"readable value", "data", "host", "authentication code", swap("name: web", "name: db")},
		{"readable type", "data", "host", "authentication code", swap("name: web", "name: 1")},
		{"new readable value", "data", "host", "authentication code", swap("metadata:\n", "metadata:\n    labels: {a: b}\n")},
		{"the order", "data", "host", "authentication code", func(s string) string {
			token, int := line(s, "token:"), line(s, "int:")
			return swap(token, int+token)(swap(int, "")(s))
		}},
		{"a value gone", "data", "host", "authentication code", func(s string) string { return swap(line(s, "token:"), "")(s) }},
		{"values change places", "data", "host", "spec.data.token cannot be decrypted", func(s string) string {
			return swap(line(s, "token:"), strings.Replace(line(s, "user-data:"), "user-data:", "token:", 1))(s)
		}},
		{"plain value", "data", "host", "spec.data.token not encrypted", func(s string) string { return swap(line(s, "token:"), "        token: hunter2\n")(s) }},
		{"plain number", "data", "host", "spec.data.int not encrypted", func(s string) string { return swap(line(s, "int:"), "        int: 5\n")(s) }},
		{"type", "data", "host", "spec.data.token is not of its type", func(s string) string {
			return swap(line(s, "token:"), strings.Replace(line(s, "token:"), "type:str", "type:int", 1))(s)
		}},
		{"time", "data", "host", "authentication code", swap(`lastmodified: "20`, `lastmodified: "21`)},
		{"no time", "data", "host", "no time", swap(`lastmodified: "20`, `lastmodified: "x`)},
		{"rule", "data", "host", "not encrypted", swap("encrypted_regex: ^data$", "encrypted_regex: ^metadata$")},
		{"rule with bad expression", "data", "host", "no regular expression", swap("encrypted_regex: ^data$", "encrypted_regex: '('")},
		{"rules", "data", "host", "several", swap("encrypted_regex: ^data$", "encrypted_regex: ^data$\n    encrypted_suffix: x")},
		{"scope of the code", "data", "host", "authentication code", swap("encrypted_regex: ^data$", "encrypted_regex: ^data$\n    mac_only_encrypted: true")},
		{"no code", "data", "host", "authentication code", func(s string) string { return swap(line(s, "mac:"), "    mac: \"\"\n")(s) }},
		{"data key", "data", "host", "none of the recipients", swap("BEGIN AGE", "BEGIN OLD AGE")},
		{"duplicate", "data", "host", "duplicate key", func(s string) string { return swap(line(s, "token:"), line(s, "token:")+line(s, "token:"))(s) }},
		{"document gone", "documents", "host", "authentication code", func(s string) string {
			i, j := strings.Index(s, "\n---\n"), strings.LastIndex(s, "\n---\n")
			return s[:i] + s[j:]
		}},
		{"bomb", "data", "host", "aliases stand for too much", func(s string) string {
			bomb := "x0: &x0 [a, a, a, a, a, a, a, a, a, a]\n"
			for i := range 8 {
				bomb += fmt.Sprintf("x%d: &x%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*x%d, ", i), 10), ", "))
			}
			return s + bomb
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := c.change(string(read(t, c.file+".yaml")))
			_, err := open([]byte(data), identities(t, c.who))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			silent(t, err)
		})
	}
}

// silent fails if an error repeats what was, or should have been, secret.
func silent(t *testing.T, err error) {
	t.Helper()
	for _, s := range []string{"correct horse", "s3cr3t", "hunter2", "ENC[", "AGE-SECRET"} {
		if strings.Contains(fmt.Sprintf("%v %+v", err, err), s) {
			t.Errorf("the error repeats %q: %v", s, err)
		}
	}
}

// No changed byte, and no cut, makes another value of what was encrypted. The
// format does not authenticate the names of the fields beside it.
func TestEveryValueIsAuthenticated(t *testing.T) {
	data, ids := read(t, "data.yaml"), identities(t, "host")
	values := func(data []byte) map[string]any {
		f, err := open(data, ids)
		if err != nil {
			silent(t, err)
			return nil
		}
		spec, _ := f.documents[0]["spec"].(map[string]any)
		values, _ := spec["data"].(map[string]any)
		return values
	}
	want := values(data)
	check := func(got map[string]any, what string, at int) {
		t.Helper()
		for key, v := range got {
			if v != "" && v != nil && !reflect.DeepEqual(v, want[key]) {
				t.Errorf("%s %d after %q: %s has another value", what, at, data[max(0, at-20):at], key)
			}
		}
	}
	start, end := bytes.Index(data, []byte("BEGIN AGE")), bytes.Index(data, []byte("END AGE"))
	for i := range data {
		if start < i && i < end && i%16 != 0 { // age's own affair
			continue
		}
		changed := bytes.Clone(data)
		changed[i] ^= 1
		check(values(changed), "changed at", i)
		if data[i] == '\n' {
			check(values(data[:i]), "cut at", i)
		}
	}
}

func TestValue(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, read(t, "host.txt"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, file := New(key), string(read(t, "documents.yaml"))
	for _, c := range [][3]string{
		{"web", "user-data", "#cloud-config\npassword: correct horse\n"},
		{"db", "user-data", "#cloud-config\npassword: battery staple\n"},
		{"web", "empty", ""},
		{"web", "int", "42"},
		{"web", "float", "1.5"},
		{"web", "yes", "true"},
		{"web", "when", "2026-11-22T10:00:00Z"},
	} {
		got, err := r.Value(file, c[0], c[1])
		if err != nil || got.Reveal() != c[2] {
			t.Errorf("%s %s is %q, %v", c[0], c[1], got.Reveal(), err)
		}
		if fmt.Sprint(got) != "(sensitive)" {
			t.Errorf("the value prints as %v", got)
		}
	}
	for _, c := range [][3]string{
		{"web", "nope", `there is no key "nope"`},
		{"web", "nothing", `key "nothing" is not a text`},
		{"front", "x", `there is no Secret "front" in the file`},
	} {
		if _, err := r.Value(file, c[0], c[1]); err == nil || err.Error() != c[2] {
			t.Errorf("%s %s: %v", c[0], c[1], err)
		}
	}
}

func TestKeyFile(t *testing.T) {
	dir, file := t.TempDir(), string(read(t, "data.yaml"))
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	host := string(read(t, "host.txt"))
	strange := write("strange", host, 0o600)
	if err := os.Chown(strange, 12345, -1); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"":                                     "has no age key",
		filepath.Join(dir, "none"):             "no such file",
		dir:                                    "not a regular file",
		write("group", host, 0o640):            "its mode is 0640 (chmod 600)",
		write("world", host, 0o604):            "its mode is 0604 (chmod 600)",
		strange:                                "it belongs to user 12345",
		write("empty", "# nothing\n\n", 0o600): "no age identity in it",
		write("bad", "# x\nAGE-SECRET-KEY-1"+strings.Repeat("Q", 58)+"\n", 0o600): "line 2 is no age identity",
		write("other", string(read(t, "other.txt")), 0o600):                       "none of the recipients",
	} {
		_, err := New(name).Value(file, "web", "token")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		} else {
			silent(t, err)
		}
	}
	// Several keys, and one that is replaced while the agent runs.
	several := write("several", string(read(t, "other.txt"))+host, 0o600)
	r := New(several)
	if _, err := r.Value(file, "web", "token"); err != nil {
		t.Error(err)
	}
	write("several", string(read(t, "rotated.txt")), 0o600)
	var refused *RecipientError
	if _, err := r.Value(file, "web", "token"); !errors.As(err, &refused) {
		t.Errorf("with another key: %v", err)
	}
	if _, err := r.Value(string(read(t, "rotated-key.yaml")), "web", "token"); err != nil {
		t.Error(err)
	}
}

func FuzzOpen(f *testing.F) {
	names, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		f.Add(read(f, filepath.Base(name)))
	}
	ids := identities(f, "host")
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := open(data, ids)
		if err == nil {
			_, _ = file.value("web", "token")
		} else {
			silent(t, err)
		}
	})
}

func BenchmarkValue(b *testing.B) {
	key := filepath.Join(b.TempDir(), "key")
	if err := os.WriteFile(key, read(b, "host.txt"), 0o600); err != nil {
		b.Fatal(err)
	}
	r, file := New(key), string(read(b, "data.yaml"))
	for b.Loop() {
		if _, err := r.Value(file, "web", "user-data"); err != nil {
			b.Fatal(err)
		}
	}
}

// sops authenticates what is readable as one text, not value by value: a name may
// be cut in two where something else follows it. So Secrets of tenants have
// nothing else (policy.CheckTenants).
func TestNameCanBeCut(t *testing.T) {
	data := string(read(t, "data.yaml"))
	cut := strings.Replace(data, "    name: web\n", "    name: we\n    labels:\n        x: b\n", 1)
	f, err := open([]byte(cut), identities(t, "host"))
	if err != nil {
		t.Fatalf("sops tells values apart by now: %v", err)
	}
	if text, err := f.value("we", "user-data"); err != nil || text == "" {
		t.Errorf("%q, %v", text, err)
	}
}
