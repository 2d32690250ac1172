package gitea

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"reconciler/internal/testbed"
)

// BuildTime bounds how long a test waits for Gitea to be built on a machine
// that has none yet.
const BuildTime = 15 * time.Minute

// Gitea is a forge of one test's own.
type Gitea struct {
	URL   string // http://127.0.0.1:PORT
	Admin User

	dir     string
	files   Files
	port    int
	process *process
}

// User is one who may sign in. The token may do all that the user may.
type User struct {
	Name, Password, Token string
}

// Start brings up a forge with an administrator and nothing else in it, on a
// port of the loopback. It ends with the test.
func Start(t testing.TB) *Gitea {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), BuildTime)
	defer cancel()
	files, err := Ensure(ctx)
	if err != nil {
		t.Fatal(err)
	}
	g := &Gitea{dir: t.TempDir(), files: files, Admin: User{Name: "root-admin", Password: rand.Text()}}
	t.Cleanup(g.Kill)
	// Another process may take the port between its choice and its use.
	for try := 0; ; try++ {
		g.port = freePort(t)
		g.URL = fmt.Sprintf("http://127.0.0.1:%d", g.port)
		g.configure(t)
		if try == 0 {
			g.command(t, "migrate")
			out := g.command(t, "admin", "user", "create", "--admin", "--username", g.Admin.Name, "--password", g.Admin.Password,
				"--email", "admin@example.org", "--must-change-password=false", "--access-token", "--access-token-scopes", "all")
			g.Admin.Token = lastWord(out)
		}
		err := g.start(t.Context())
		if err == nil {
			return g
		}
		if try == 3 || !strings.Contains(g.log(), "address already in use") {
			t.Fatalf("start Gitea: %v\n%s", err, g.log())
		}
	}
}

// configuration is app.ini. Nothing is sent anywhere, and passwords are cheap
// to check.
const configuration = `APP_NAME = forge
RUN_USER = %[1]s
I_AM_BEING_UNSAFE_RUNNING_AS_ROOT = true
WORK_PATH = %[2]s
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = %[3]d
ROOT_URL = %[4]s/
STATIC_ROOT_PATH = %[5]s
OFFLINE_MODE = true
DISABLE_SSH = true
[database]
DB_TYPE = sqlite3
SQLITE_JOURNAL_MODE = WAL
[security]
INSTALL_LOCK = true
SECRET_KEY = %[6]s
INTERNAL_TOKEN = %[6]s
PASSWORD_HASH_ALGO = pbkdf2$1000$50
PASSWORD_COMPLEXITY = off
[oauth2]
ENABLED = false
JWT_SECRET = %[7]s
[service]
DISABLE_REGISTRATION = true
[repository]
DEFAULT_BRANCH = main
[webhook]
ALLOWED_HOST_LIST = loopback
SKIP_TLS_VERIFY = true
DELIVER_TIMEOUT = 5
[session]
PROVIDER = memory
[indexer]
ISSUE_INDEXER_TYPE = db
[queue]
TYPE = level
[cron]
ENABLED = false
[actions]
ENABLED = true
DEFAULT_ACTIONS_URL = self
[packages]
ENABLED = false
[mailer]
ENABLED = false
[log]
MODE = console
LEVEL = Warn
`

func (g *Gitea) configure(t testing.TB) {
	t.Helper()
	const jwt = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8" // 32 bytes, base64url
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(configuration, me.Username, g.dir, g.port, g.URL, g.files.Static, rand.Text(), jwt)
	if err := os.WriteFile(g.path("app.ini"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (g *Gitea) path(name string) string { return filepath.Join(g.dir, name) }

func (g *Gitea) environment() []string {
	return append(os.Environ(), "HOME="+g.dir, "GITEA_WORK_DIR="+g.dir, "GIT_CONFIG_NOSYSTEM=1")
}

// command runs one of Gitea's own and returns what it writes.
func (g *Gitea) command(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), g.files.Program, append([]string{"--config", g.path("app.ini")}, args...)...)
	cmd.Env = g.environment()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("gitea %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// lastWord finds the token that "admin user create" prints: "… created... TOKEN".
func lastWord(out string) string {
	token := ""
	for lines := bufio.NewScanner(strings.NewReader(out)); lines.Scan(); {
		if _, after, ok := strings.Cut(lines.Text(), "ccess token was successfully created..."); ok {
			token = strings.TrimSpace(after)
		}
	}
	return token
}

type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// start runs the server and waits until it answers.
func (g *Gitea) start(ctx context.Context) error {
	log, err := os.Create(g.path("log.txt"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(g.files.Program, "--config", g.path("app.ini"), "web")
	cmd.Env = g.environment()
	cmd.Stdout, cmd.Stderr = log, log
	// It ends with this process, also when that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The signal comes when the thread that forked ends (prctl(2)).
		runtime.LockOSThread()
		defer close(p.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	g.process = p
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for tick := time.Tick(20 * time.Millisecond); ; {
		if g.answers(ctx) {
			return nil
		}
		select {
		case <-tick:
		case <-p.done:
			return errors.New("it ended")
		case <-ctx.Done():
			return errors.New("it does not answer")
		}
	}
}

func (g *Gitea) answers(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.URL+"/api/healthz", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Kill ends the server at once; what it stored stays.
func (g *Gitea) Kill() {
	if g.process == nil {
		return
	}
	_ = syscall.Kill(-g.process.cmd.Process.Pid, syscall.SIGKILL)
	<-g.process.done
	g.process = nil
}

// Restart brings a killed server up again, at the same address.
func (g *Gitea) Restart(t testing.TB) {
	t.Helper()
	if err := g.start(t.Context()); err != nil {
		t.Fatalf("start Gitea again: %v\n%s", err, g.log())
	}
}

// Pause stops the server between two instructions: connections are accepted
// and nothing is answered. The test's end resumes it, too.
func (g *Gitea) Pause(t testing.TB) (resume func()) {
	t.Helper()
	group := -g.process.cmd.Process.Pid
	if err := syscall.Kill(group, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return func() { _ = syscall.Kill(group, syscall.SIGCONT) }
}

// log is the end of what the server wrote.
func (g *Gitea) log() string {
	b, _ := os.ReadFile(g.path("log.txt"))
	return string(bytes.TrimSpace(b[max(0, len(b)-4096):]))
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// await polls what Gitea does in the background and tells nobody about.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	testbed.Await(t, 30*time.Second, what, ok)
}
