package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"reconciler/gitrepo"
	"reconciler/revision"
)

type loadArgs struct {
	Bare, Cache string
	Estate      [2]int // hosts, objects
	Commits     int    // one-file commits that follow
}

type loadResult struct {
	Fetch, Load    time.Duration
	FetchOne, Next spread
	Peak           int64
}

// repositorySuite loads a large repository, first cold, then with the cache of
// parsed files, then the commits that follow.
func repositorySuite(ctx context.Context, b *bench) ([]row, error) {
	e := estate{hosts: b.pick(200, 4), objects: b.pick(100_000, 2_000)}
	dir, err := b.sub("repository")
	if err != nil {
		return nil, err
	}
	bare := filepath.Join(dir, "cluster.git")
	if err := makeRepository(ctx, bare, e); err != nil {
		return nil, err
	}
	cold, warm := loadResult{}, loadResult{}
	var colds, coldFetches, warms, warmFetches spread
	for i := range b.pick(3, 1) {
		args := loadArgs{Bare: bare, Cache: filepath.Join(dir, fmt.Sprint("cache", i)), Estate: [2]int{e.hosts, e.objects}}
		if err := spawn(ctx, b, "load", "load-cold", args, &cold); err != nil {
			return nil, err
		}
		warm = loadResult{}
		args.Commits = b.pick(30, 3)
		if err := spawn(ctx, b, "load", "load-warm", args, &warm); err != nil {
			return nil, err
		}
		colds, coldFetches = append(colds, cold.Load), append(coldFetches, cold.Fetch)
		warms, warmFetches = append(warms, warm.Load), append(warmFetches, warm.Fetch)
		if err := os.RemoveAll(args.Cache); err != nil {
			return nil, err
		}
	}
	files := fmt.Sprintf("%d files", e.objects)
	return []row{
		within(files+" read, parsed and validated, cold", colds, 10*time.Second),
		within("— the first fetch before that, from a local repository", coldFetches, 0),
		within(files+" in a new process, with the cache of parsed files", warms, 2*time.Second),
		within("— the fetch before that", warmFetches, 0),
		within("then a one-file commit: from its hash to the validated set", warm.Next, 50*time.Millisecond),
		within("— the fetch before that", warm.FetchOne, 0),
		within("— both", sum(warm.Next, warm.FetchOne), 50*time.Millisecond),
		weighs("most memory, cold", cold.Peak, 0),
		weighs("most memory, with the cache", warm.Peak, 0),
	}, nil
}

func sum(a, b spread) spread {
	out := make(spread, len(a))
	for i := range a {
		out[i] = a[i] + b[i]
	}
	return out
}

// loadChild opens a source as the agent does and loads the newest revision,
// then one-file commits as they come.
func loadChild(a loadArgs) (any, error) {
	ctx := context.Background()
	repo, err := gitrepo.Open(gitrepo.Config{URL: a.Bare, Branch: "main", CacheDir: a.Cache})
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	source, err := revision.New(repo, filepath.Join(a.Cache, "parsed"))
	if err != nil {
		return nil, err
	}
	defer source.Close()
	var out loadResult
	began := time.Now()
	head, err := source.Fetch(ctx)
	if err != nil {
		return nil, err
	}
	fetched := time.Now()
	set, err := source.Load(ctx, head.Hash)
	if err != nil {
		return nil, err
	}
	out.Fetch, out.Load = fetched.Sub(began), time.Since(fetched)
	if n := len(set.All()); n != a.Estate[1] {
		return nil, fmt.Errorf("%d objects in place of %d", n, a.Estate[1])
	}
	e := estate{hosts: a.Estate[0], objects: a.Estate[1]}
	for i := range a.Commits {
		if err := commitOne(ctx, a.Bare, e, i, fmt.Sprintf("%d %s", i, a.Cache)); err != nil {
			return nil, err
		}
		began := time.Now()
		next, err := source.Fetch(ctx)
		if err != nil {
			return nil, err
		}
		fetched := time.Now()
		ok, err := source.Descends(ctx, head.Hash, next.Hash)
		if err != nil || !ok || next.Hash == head.Hash {
			return nil, fmt.Errorf("commit %s does not follow %s: %w", next.Hash, head.Hash, err)
		}
		if _, err := source.Load(ctx, next.Hash); err != nil {
			return nil, err
		}
		if err := source.Keep(ctx, next.Hash); err != nil {
			return nil, err
		}
		out.FetchOne = append(out.FetchOne, fetched.Sub(began))
		out.Next = append(out.Next, time.Since(fetched))
		head = next
	}
	out.Peak, err = memoryOf("self", "VmHWM")
	return out, err
}

// makeRepository makes a bare repository of one commit, packed as a server
// would have it.
func makeRepository(ctx context.Context, bare string, e estate) error {
	if err := git(ctx, "", nil, "init", "-q", "--bare", "-b", "main", bare); err != nil {
		return err
	}
	err := fastImport(ctx, bare, func(w io.Writer) {
		fmt.Fprintf(w, "commit refs/heads/main\ncommitter B <b@example.org> 1700000000 +0000\ndata 5\nfirst\n")
		e.files(func(path, content string) {
			fmt.Fprintf(w, "M 100644 inline %s\ndata %d\n%s\n", path, len(content), content)
		})
	})
	if err != nil {
		return err
	}
	return git(ctx, bare, nil, "repack", "-q", "-a", "-d")
}

// commitOne commits a change of the i-th disk's file.
func commitOne(ctx context.Context, bare string, e estate, i int, message string) error {
	content := e.disk(i, 100+i)
	return fastImport(ctx, bare, func(w io.Writer) {
		fmt.Fprintf(w, "commit refs/heads/main\ncommitter B <b@example.org> %d +0000\ndata %d\n%s\nfrom refs/heads/main^0\n", 1700000001+i, len(message), message)
		fmt.Fprintf(w, "M 100644 inline disks/%s/vm-%06d.yaml\ndata %d\n%s\n", host(i%e.hosts), i, len(content), content)
	})
}

func fastImport(ctx context.Context, bare string, write func(io.Writer)) error {
	r, w := io.Pipe()
	go func() {
		buffered := bufio.NewWriterSize(w, 1<<20)
		write(buffered)
		_ = w.CloseWithError(buffered.Flush()) // an error is git's, which tells of it
	}()
	defer r.Close()
	return git(ctx, bare, r, "fast-import", "--quiet")
}

// git runs a command in a directory, without the user's configuration.
func git(ctx context.Context, dir string, stdin io.Reader, args ...string) error {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Stdin = dir, stdin
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("git %s: %w: %s", args[0], err, out)
	}
	return nil
}
