package gitrepo

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// BlobCache keeps what was made of blobs (a parsed document, say) by blob hash,
// so that a file is worked on once in its life. A version string names the code
// that made the entries: with another, the cache starts empty. Entries are
// opaque; the cache is a cache, and losing any of it costs time only.
//
// The file is a header and records appended to it, each with its own checksum: a
// tail torn by a crash is cut off when it is opened. It is read in one go.
type BlobCache struct {
	path    string
	version string

	mu      sync.RWMutex
	entries map[BlobHash][]byte
	live    int64    // bytes of the records that entries stand for
	size    int64    // of the file
	f       *os.File // appends; nil before the first Flush
	pending []BlobHash
}

const (
	blobCacheMagic = "reconciler blob cache 1\n"
	blobRecordHead = 20 + 4 + 4 // hash, length, CRC-32C of hash, length and content
	maxBlobEntry   = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// OpenBlobCache reads the cache at path, or starts one. A file that cannot be
// used (damaged header, another version) is replaced at the first Flush. Only one
// process may use a path.
func OpenBlobCache(path, version string) (*BlobCache, error) {
	c := &BlobCache{path: path, version: version, entries: make(map[BlobHash][]byte)}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	head := c.header()
	if len(b) < len(head) || string(b[:len(head)]) != string(head) {
		return c, nil
	}
	c.size = int64(len(head))
	for rest := b[len(head):]; ; {
		h, data, next, ok := readRecord(rest)
		if !ok {
			break
		}
		c.put(h, data)
		c.size += int64(len(rest) - len(next))
		rest = next
	}
	return c, nil
}

func (c *BlobCache) header() []byte {
	b := []byte(blobCacheMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.version)))
	return append(b, c.version...)
}

func recordSum(head, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(head[:24], castagnoli), castagnoli, data)
}

func readRecord(b []byte) (h BlobHash, data, rest []byte, ok bool) {
	if len(b) < blobRecordHead {
		return h, nil, nil, false
	}
	head := b[:blobRecordHead]
	n := int64(binary.BigEndian.Uint32(head[20:]))
	if n > maxBlobEntry || int64(len(b)-blobRecordHead) < n {
		return h, nil, nil, false
	}
	data = b[blobRecordHead:][:n:n]
	if recordSum(head, data) != binary.BigEndian.Uint32(head[24:]) {
		return h, nil, nil, false
	}
	copy(h[:], head)
	return h, data, b[blobRecordHead+n:], true
}

func appendRecord(w io.Writer, h BlobHash, data []byte) error {
	var head [blobRecordHead]byte
	copy(head[:], h[:])
	binary.BigEndian.PutUint32(head[20:], uint32(len(data)))
	binary.BigEndian.PutUint32(head[24:], recordSum(head[:], data))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

func (c *BlobCache) put(h BlobHash, data []byte) {
	if old, ok := c.entries[h]; ok {
		c.live -= int64(blobRecordHead + len(old))
	}
	c.entries[h] = data
	c.live += int64(blobRecordHead + len(data))
}

// Get returns the entry of a blob, which the caller must not change.
func (c *BlobCache) Get(h BlobHash) ([]byte, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	data, ok := c.entries[h]
	return data, ok
}

// Put adds an entry, which the cache keeps; it is on disk after Flush. Entries
// over 64 MiB are left out.
func (c *BlobCache) Put(h BlobHash, data []byte) {
	if len(data) > maxBlobEntry {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(h, data)
	c.pending = append(c.pending, h)
}

// Len is the number of entries.
func (c *BlobCache) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.entries)
}

// Flush appends what was Put to the file. It does not sync: a record that did
// not reach the disk is noticed by its checksum and made again.
func (c *BlobCache) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		return nil
	}
	if c.size == 0 {
		return c.rewrite()
	}
	if c.f == nil {
		f, err := os.OpenFile(c.path, os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		// What follows the last good record is torn.
		if err := f.Truncate(c.size); err != nil {
			return errors.Join(err, f.Close())
		}
		c.f = f
	}
	w := bufio.NewWriterSize(io.NewOffsetWriter(c.f, c.size), 256<<10)
	n := int64(0)
	for _, h := range c.pending {
		data := c.entries[h]
		if err := appendRecord(w, h, data); err != nil {
			return err
		}
		n += int64(blobRecordHead + len(data))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	c.size += n
	c.pending = nil
	return nil
}

// Retain drops the entries for which keep is false, and rewrites the file if
// more than half of it is dead. Call it now and then with the newest tree.
func (c *BlobCache) Retain(keep func(BlobHash) bool) error {
	if err := c.Flush(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for h, data := range c.entries {
		if !keep(h) {
			delete(c.entries, h)
			c.live -= int64(blobRecordHead + len(data))
		}
	}
	if c.size <= 2*c.live+64<<10 {
		return nil
	}
	return c.rewrite()
}

// rewrite replaces the file by one of the live entries.
func (c *BlobCache) rewrite() error {
	if err := c.closeFile(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(c.path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 256<<10)
	head := c.header()
	_, err = w.Write(head)
	size := int64(len(head))
	for h, data := range c.entries {
		if err != nil {
			break
		}
		err = appendRecord(w, h, data)
		size += int64(blobRecordHead + len(data))
	}
	if err = errors.Join(err, w.Flush(), f.Close()); err == nil {
		err = os.Rename(f.Name(), c.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("blob cache: %w", err), os.Remove(f.Name()))
	}
	c.size, c.pending = size, nil
	return nil
}

func (c *BlobCache) closeFile() error {
	if c.f == nil {
		return nil
	}
	err := c.f.Close()
	c.f = nil
	return err
}

// Close writes what is pending and releases the file.
func (c *BlobCache) Close() error {
	err := c.Flush()
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(err, c.closeFile())
}
