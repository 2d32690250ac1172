package odb

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
)

// DB is a set of packs and, for a repository that is not ours, loose objects
// and alternates. It is safe for concurrent use.
type DB struct {
	objects   string // .../objects
	looseDirs []string
	packDirs  []string

	mu    sync.Mutex // serialises changes of packs
	packs atomic.Pointer[[]*pack]
}

// OpenCache opens the cache's own database: packs only. Torn packs and
// leftovers of a killed process are removed first, and their names returned.
func OpenCache(objects string) (db *DB, removed []string, err error) {
	dir := filepath.Join(objects, "pack")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	db = &DB{objects: objects, packDirs: []string{dir}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	var packs []*pack
	good := make(map[string]bool)
	for _, e := range entries {
		base, ok := strings.CutSuffix(e.Name(), ".idx")
		if !ok {
			continue
		}
		p, err := openPack(filepath.Join(dir, base))
		switch {
		case err == nil:
			packs = append(packs, p)
			good[base] = true
		case !errors.Is(err, ErrCorrupt) && !errors.Is(err, os.ErrNotExist):
			return nil, nil, err
		}
	}
	for _, e := range entries {
		if base, ext, _ := strings.Cut(e.Name(), "."); good[base] && (ext == "idx" || ext == "pack") {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return nil, nil, err
		}
		removed = append(removed, e.Name())
	}
	db.setPacks(packs)
	return db, removed, nil
}

// OpenRepository opens the objects directory of a repository for reading, with
// its loose objects and alternates.
func OpenRepository(objects string) (*DB, error) {
	db := &DB{objects: objects}
	if err := db.addDir(objects, 0); err != nil {
		return nil, err
	}
	return db, db.Refresh()
}

func (db *DB) addDir(objects string, depth int) error {
	const maxAlternates = 5 // as git
	if _, err := os.Stat(objects); err != nil {
		return err
	}
	db.looseDirs = append(db.looseDirs, objects)
	db.packDirs = append(db.packDirs, filepath.Join(objects, "pack"))
	b, err := os.ReadFile(filepath.Join(objects, "info", "alternates"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if depth == maxAlternates {
		return fmt.Errorf("%s: alternates nest deeper than %d", objects, maxAlternates)
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		if !filepath.IsAbs(line) {
			line = filepath.Join(objects, line)
		}
		if err := db.addDir(line, depth+1); err != nil {
			return fmt.Errorf("alternate: %w", err)
		}
	}
	return nil
}

// Refresh looks for packs that came or went since; a pack that is open stays
// readable after git has unlinked it.
func (db *DB) Refresh() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	have := make(map[string]*pack)
	for _, p := range db.list() {
		have[p.base] = p
	}
	var packs []*pack
	for _, dir := range db.packDirs {
		names, err := filepath.Glob(filepath.Join(globQuote(dir), "*.idx"))
		if err != nil {
			return err
		}
		for _, name := range names {
			base := strings.TrimSuffix(name, ".idx")
			p := have[base]
			if p == nil {
				if p, err = openPack(base); errors.Is(err, os.ErrNotExist) {
					continue // repacked while we looked
				} else if err != nil {
					return err
				}
			}
			packs = append(packs, p)
		}
	}
	db.setPacks(packs)
	return nil
}

func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// setPacks publishes a list, biggest pack first: most objects are found there.
func (db *DB) setPacks(packs []*pack) {
	sort.Slice(packs, func(i, j int) bool {
		if packs[i].n != packs[j].n {
			return packs[i].n > packs[j].n
		}
		return packs[i].base < packs[j].base
	})
	db.packs.Store(&packs)
}

func (db *DB) list() []*pack {
	if p := db.packs.Load(); p != nil {
		return *p
	}
	return nil
}

func (db *DB) find(h Hash) (*pack, int64, bool) {
	for _, p := range db.list() {
		if off, ok := p.find(h); ok {
			return p, off, true
		}
	}
	return nil, 0, false
}

// Has reports whether the object is there (its content is not read).
func (db *DB) Has(h Hash) bool {
	if _, _, ok := db.find(h); ok {
		return true
	}
	name := h.String()
	for _, dir := range db.looseDirs {
		if _, err := os.Lstat(filepath.Join(dir, name[:2], name[2:])); err == nil {
			return true
		}
	}
	return false
}

// InLargest reports whether the biggest pack has the object: after a repack,
// what came later is elsewhere.
func (db *DB) InLargest(h Hash) bool {
	packs := db.list()
	if len(packs) == 0 {
		return false
	}
	_, ok := packs[0].find(h)
	return ok
}

// Order sorts positions of hashes into pack order, in which reading them all is
// cheapest; objects that are not packed come last.
func (db *DB) Order(n int, hash func(int) Hash) []int {
	type spot struct {
		pack, i int
		off     int64
	}
	packs := db.list()
	spots := make([]spot, n)
	for i := range spots {
		spots[i] = spot{pack: len(packs), i: i}
		h := hash(i)
		for j, p := range packs {
			if off, ok := p.find(h); ok {
				spots[i].pack, spots[i].off = j, off
				break
			}
		}
	}
	sort.Slice(spots, func(a, b int) bool {
		x, y := spots[a], spots[b]
		if x.pack != y.pack {
			return x.pack < y.pack
		}
		if x.off != y.off {
			return x.off < y.off
		}
		return x.i < y.i
	})
	order := make([]int, n)
	for k, s := range spots {
		order[k] = s.i
	}
	return order
}

// ErrAmbiguous is returned by Prefix when several objects match.
var ErrAmbiguous = errors.New("abbreviated hash is ambiguous")

// Prefix finds the one object whose hexadecimal name starts with abbrev and for
// which accept returns true.
func (db *DB) Prefix(abbrev string, accept func(Hash) bool) (Hash, error) {
	even := abbrev[:len(abbrev)&^1]
	key, err := hex.DecodeString(even)
	if err != nil {
		return Hash{}, fmt.Errorf("%s: %w", abbrev, ErrNotFound)
	}
	var found []Hash
	add := func(h Hash) {
		if !strings.HasPrefix(h.String(), abbrev) || len(found) > 0 && found[0] == h || !accept(h) {
			return
		}
		found = append(found, h)
	}
	for _, p := range db.list() {
		for i := p.search(key); i < p.n && strings.HasPrefix(string(p.hashAt(i)), string(key)); i++ {
			add(Hash(p.hashAt(i)))
		}
	}
	for _, dir := range db.looseDirs {
		entries, err := os.ReadDir(filepath.Join(dir, abbrev[:2]))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Hash{}, err
		}
		for _, e := range entries {
			if name := abbrev[:2] + e.Name(); len(name) == 2*hashSize {
				add(Hash(decodeHex(name)))
			}
		}
	}
	switch len(found) {
	case 0:
		return Hash{}, fmt.Errorf("%s: %w", abbrev, ErrNotFound)
	case 1:
		return found[0], nil
	}
	return Hash{}, fmt.Errorf("%s: %w", abbrev, ErrAmbiguous)
}

func decodeHex(s string) (h Hash) {
	if b, err := hex.DecodeString(s); err == nil {
		copy(h[:], b)
	}
	return h
}

// Stats is what the database holds on disk.
type Stats struct {
	Packs   int
	Objects int
	Bytes   int64
}

// Stats counts packs; an object in two packs counts twice.
func (db *DB) Stats() (s Stats) {
	for _, p := range db.list() {
		s.Packs++
		s.Objects += p.n
		s.Bytes += p.size + int64(len(p.idx))
	}
	return s
}
