package odb

import "fmt"

// deltaSizes returns the sizes of base and result that a delta declares, and
// the length of that header.
func deltaSizes(d []byte) (base, result int64, n int, err error) {
	if base, n, err = varint(d); err != nil {
		return 0, 0, 0, err
	}
	result, m, err := varint(d[n:])
	return base, result, n + m, err
}

func varint(b []byte) (v int64, n int, err error) {
	for shift := 0; n < len(b) && shift <= 56; shift += 7 {
		c := b[n]
		n++
		v |= int64(c&0x7f) << shift
		if c&0x80 == 0 {
			return v, n, nil
		}
	}
	return 0, 0, fmt.Errorf("%w: delta header", ErrCorrupt)
}

// applyDelta rebuilds an object from its base. The result is allocated once, at
// the declared size, which must not be over max.
func applyDelta(base, d []byte, max int64) ([]byte, error) {
	bad := func(what string) error { return fmt.Errorf("%w: delta %s", ErrCorrupt, what) }
	baseSize, size, n, err := deltaSizes(d)
	if err != nil {
		return nil, err
	}
	if baseSize != int64(len(base)) {
		return nil, bad("is for another base")
	}
	if size > max {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, size, max)
	}
	out := make([]byte, 0, size)
	for d = d[n:]; len(d) > 0; {
		op := d[0]
		d = d[1:]
		if op == 0 {
			return nil, bad("opcode 0")
		}
		if op&0x80 == 0 {
			k := int(op)
			if k > len(d) || int64(len(out)+k) > size {
				return nil, bad("insert out of range")
			}
			out = append(out, d[:k]...)
			d = d[k:]
			continue
		}
		var off, length uint32
		for i := range 7 {
			if op&(1<<i) == 0 {
				continue
			}
			if len(d) == 0 {
				return nil, bad("cut short")
			}
			if i < 4 {
				off |= uint32(d[0]) << (8 * i)
			} else {
				length |= uint32(d[0]) << (8 * (i - 4))
			}
			d = d[1:]
		}
		if length == 0 {
			length = 0x10000
		}
		end := int64(off) + int64(length)
		if end > int64(len(base)) || int64(len(out))+int64(length) > size {
			return nil, bad("copy out of range")
		}
		out = append(out, base[off:end]...)
	}
	if int64(len(out)) != size {
		return nil, bad("result is short")
	}
	return out, nil
}
