package spec

import (
	"hash/maphash"
	"maps"
)

// seed makes hashes unguessable. No result depends on it: hashes find
// candidates, which are then compared.
var seed = maphash.MakeSeed()

// shards is a map that can be copied cheaply: a copy shares all shards until it
// writes to one.
type shards[V any] struct {
	list []map[string]V
	own  []bool // shards that no other copy shares; nil while all are
}

// newShards makes room for n values.
func newShards[V any](n int) shards[V] {
	count := 64
	for count < 4096 && count*32 < n {
		count *= 2
	}
	s := shards[V]{list: make([]map[string]V, count), own: make([]bool, count)}
	for i := range s.own {
		s.own[i] = true
	}
	return s
}

func (s *shards[V]) get(key string) (V, bool) {
	v, ok := s.list[maphash.String(seed, key)&uint64(len(s.list)-1)][key]
	return v, ok
}

// writable returns the shard of a key for this copy alone.
func (s *shards[V]) writable(key string) map[string]V {
	i := maphash.String(seed, key) & uint64(len(s.list)-1)
	switch {
	case s.list[i] == nil:
		s.list[i] = make(map[string]V)
	case !s.own[i]:
		s.list[i] = maps.Clone(s.list[i])
	}
	s.own[i] = true
	return s.list[i]
}

func (s *shards[V]) put(key string, v V) { s.writable(key)[key] = v }
func (s *shards[V]) remove(key string)   { delete(s.writable(key), key) }

// copy returns a map that can be changed without changing s.
func (s *shards[V]) copy() shards[V] {
	return shards[V]{list: append([]map[string]V(nil), s.list...), own: make([]bool, len(s.list))}
}
