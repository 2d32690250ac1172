package target

import (
	"math/bits"
	"sync"

	"reconciler/drivers/iscsi/scsi"
)

const (
	minBufferBits = 12 // 4 KiB
	maxBufferBits = 24 // scsi.MaxTransfer
)

var _ = [1]struct{}{}[scsi.MaxTransfer-1<<maxBufferBits]

// buffer is a piece of pooled memory.
type buffer struct {
	b     []byte
	class int
}

// bufferPool keeps buffers by power of two. sync.Pool has no lock that sessions
// would share and gives memory back when they are idle.
type bufferPool struct {
	classes [maxBufferBits - minBufferBits + 1]sync.Pool
}

// get returns a buffer of at least n bytes, n <= scsi.MaxTransfer. Its contents
// are those of an earlier use.
func (p *bufferPool) get(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1))-minBufferBits, 0)
	if b, ok := p.classes[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 1<<(class+minBufferBits)), class: class}
}

// put takes a buffer back; nil is none.
func (p *bufferPool) put(b *buffer) {
	if b != nil {
		p.classes[b.class].Put(b)
	}
}
