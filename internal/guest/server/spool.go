//go:build linux

package server

import (
	"sync"
	"time"

	"crownest.dev/crownest/internal/guest/protocol"
)

// Bounds of the spools, payload only.
const (
	spoolEach  = 1 << 20
	spoolTotal = 16 << 20
)

// chunkPool recycles full-sized read buffers.
var chunkPool = sync.Pool{New: func() any { b := make([]byte, protocol.MaxChunk); return &b }}

// budget is what all spools together may hold.
type budget struct {
	mu   sync.Mutex
	free sync.Cond
	used int
}

func newBudget() *budget {
	b := &budget{}
	b.free.L = &b.mu
	return b
}

// chunk is one numbered piece of output.
type chunk struct {
	data   []byte
	pooled *[]byte
	stderr bool
	at     time.Time
}

// spool holds a command's output until the host has stored it. All spools share
// one lock, that of the budget: they are waited for together.
type spool struct {
	b     *budget
	ready sync.Cond // signalled when there is something to send

	chunks []chunk
	first  int64 // seq of chunks[0]
	sent   int64 // the highest seq that was ever sent: those chunks stay as they are
	size   int
	ended  bool // nothing will be added
}

func newSpool(b *budget) *spool {
	s := &spool{b: b, first: 1}
	s.ready.L = &b.mu
	return s
}

// next is the seq that the next chunk will get.
func (s *spool) next() int64 { return s.first + int64(len(s.chunks)) }

// room says whether n more bytes may come in. A command whose spool is empty may
// always go on: the total cannot make one command starve for good.
func (s *spool) room(n int) bool {
	return s.size == 0 || (s.size+n <= spoolEach && s.b.used+n <= spoolTotal)
}

// add appends output, waiting for room. It takes over pooled, whose memory data
// is part of, unless it is nil; then data is copied.
func (s *spool) add(data []byte, pooled *[]byte, stderr bool, at time.Time) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	for !s.room(len(data)) {
		s.b.free.Wait()
	}
	s.size += len(data)
	s.b.used += len(data)
	// While the reader is behind, small pieces grow together.
	if n := len(s.chunks); n > 0 && s.next()-1 > s.sent {
		if last := &s.chunks[n-1]; last.stderr == stderr && last.pooled == nil && len(last.data)+len(data) <= protocol.MaxChunk {
			last.data = append(last.data, data...)
			if pooled != nil {
				chunkPool.Put(pooled)
			}
			s.ready.Broadcast()
			return
		}
	}
	if pooled == nil {
		data = append([]byte(nil), data...)
	}
	s.chunks = append(s.chunks, chunk{data: data, pooled: pooled, stderr: stderr, at: at})
	s.ready.Broadcast()
}

// ack frees everything up to seq. The caller holds the lock.
func (s *spool) ack(seq int64) {
	for len(s.chunks) > 0 && s.first <= seq && s.first <= s.sent {
		c := &s.chunks[0]
		s.size -= len(c.data)
		s.b.used -= len(c.data)
		if c.pooled != nil {
			chunkPool.Put(c.pooled)
		}
		*c = chunk{}
		s.chunks = s.chunks[1:]
		s.first++
	}
	if len(s.chunks) == 0 {
		s.chunks = nil
	}
	s.b.free.Broadcast()
}

// drop frees everything.
func (s *spool) drop() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.sent = s.next() - 1
	s.ack(s.sent)
}

// utf8Cut returns how many bytes of b can be sent so that a character which is
// not there completely waits for its rest. Bytes that are no UTF-8 do not wait.
func utf8Cut(b []byte) int {
	for back := 1; back <= 3 && back <= len(b); back++ {
		c := b[len(b)-back]
		if c&0xC0 == 0x80 {
			continue // inside a character
		}
		want := 1
		switch {
		case c >= 0xC2 && c <= 0xDF:
			want = 2
		case c >= 0xE0 && c <= 0xEF:
			want = 3
		case c >= 0xF0 && c <= 0xF4:
			want = 4
		}
		if want > back {
			return len(b) - back
		}
		break
	}
	return len(b)
}
