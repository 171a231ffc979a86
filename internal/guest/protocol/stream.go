package protocol

import (
	"io"
	"sync"
)

// Stream is one request and what belongs to it. The methods that send may be
// used by one goroutine at a time, and so may those that receive; Abandon and
// Close may be called by any.
type Stream struct {
	c  *Conn
	id uint32

	// All below is guarded by c.mu.
	ready     sync.Cond // signalled when there is something to receive
	queue     []Frame
	err       error
	window    int  // what the peer may still send
	owed      int  // what was consumed and not given back as credit yet
	credit    int  // what this side may still send
	sent      bool // this side has ended its direction
	received  bool // the peer has ended its direction
	abandoned bool // nobody here reads any more
}

func newStream(c *Conn, id uint32) *Stream {
	s := &Stream{c: c, id: id, window: Window, credit: Window}
	s.ready.L = &c.mu
	return s
}

// end makes every call on the stream return err. The caller holds mu.
func (s *Stream) end(err error) {
	if s.err == nil {
		s.err = err
	}
	s.ready.Broadcast()
	s.c.room.Broadcast()
}

// settle forgets a stream that both sides have ended. The caller holds mu.
func (s *Stream) settle() {
	if s.sent && s.received {
		delete(s.c.streams, s.id)
	}
}

// Receive waits for the next frame. After the peer's last frame it returns io.EOF.
func (s *Stream) Receive() (Frame, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for len(s.queue) == 0 {
		switch {
		case s.err != nil:
			return Frame{}, s.err
		case s.received:
			return Frame{}, io.EOF
		}
		s.ready.Wait()
	}
	return s.pop(), nil
}

// TryReceive returns a frame that is already there.
func (s *Stream) TryReceive() (Frame, bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if len(s.queue) == 0 {
		return Frame{}, false
	}
	return s.pop(), true
}

// Answered says that the peer has ended its direction: nothing that is sent now
// matters to it.
func (s *Stream) Answered() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.received
}

func (s *Stream) pop() Frame {
	f := s.queue[0]
	s.queue[0] = Frame{}
	s.queue = s.queue[1:]
	return f
}

// restore counts consumed bytes and gives them back to the peer in large steps.
func (s *Stream) restore(cost int) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.grant(cost)
}

// grant is restore with mu held.
func (s *Stream) grant(cost int) {
	s.owed += cost
	if s.owed < Window/4 || s.received || s.c.err != nil {
		return
	}
	n := s.owed
	s.owed = 0
	s.window += n
	b := newBuffer(4)
	putHead(b.b, kindCredit, s.id, 4)
	putUint32(b.payload(), uint32(n))
	s.c.enqueue(b)
}

// Send sends one message of at most MaxFrame bytes, of which the caller keeps
// the memory. It waits for credit and for room on the wire.
func (s *Stream) Send(parts ...[]byte) error { return s.send(kindData, parts) }

// SendEnd sends the last message of this direction.
func (s *Stream) SendEnd(parts ...[]byte) error { return s.send(kindEnd, parts) }

func (s *Stream) send(k kind, parts [][]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > MaxFrame {
		return violation("message too large")
	}
	m := Prepare(n)
	at := m.Bytes()
	for _, p := range parts {
		at = at[copy(at, p):]
	}
	return s.deliver(k, m)
}

// Outgoing is a message whose bytes are written in place before it is sent.
type Outgoing struct{ b buffer }

// Prepare returns a message of n bytes, at most MaxFrame.
func Prepare(n int) Outgoing { return Outgoing{newBuffer(n)} }

// Bytes is where the message's bytes go.
func (m Outgoing) Bytes() []byte { return m.b.payload() }

// First cuts the message to its first n bytes.
func (m Outgoing) First(n int) Outgoing {
	m.b.b = m.b.b[:headSize+n]
	return m
}

// Discard gives up a message that will not be sent.
func (m Outgoing) Discard() { m.b.free() }

// SendPrepared is Send of a message from Prepare, which it takes over.
func (s *Stream) SendPrepared(m Outgoing) error { return s.deliver(kindData, m) }

func (s *Stream) deliver(k kind, m Outgoing) error {
	b := m.b
	n := len(b.payload())
	putHead(b.b, k, s.id, n)
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for s.err == nil && !s.sent && (s.credit < n+frameCost || c.queued >= maxQueued) {
		c.room.Wait()
	}
	switch {
	case s.err != nil:
		b.free()
		return s.err
	case s.sent:
		b.free()
		return ErrClosed
	}
	s.credit -= n + frameCost
	if k == kindEnd {
		s.sent = true
		s.settle()
	}
	c.enqueue(b)
	return nil
}

// Write sends p in pieces of at most MaxChunk bytes.
func (s *Stream) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, MaxChunk)
		if err := s.Send(p[done : done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// Abandon makes every call on the stream, running or to come, return err, and
// tells the peer. What the peer still sends is dropped.
func (s *Stream) Abandon(err error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.abandon(err)
}

// Close gives up what has not been ended yet. It may be called more than once.
func (s *Stream) Close() { s.Abandon(ErrClosed) }

func (s *Stream) abandon(err error) {
	s.end(err)
	if s.c.err != nil || s.abandoned {
		return
	}
	s.abandoned = true
	queue := s.queue
	s.queue = nil
	for _, f := range queue {
		f.buf.free()
		s.grant(f.cost)
	}
	if !s.sent {
		s.sent = true
		b := newBuffer(0)
		putHead(b.b, kindReset, s.id, 0)
		s.c.enqueue(b)
	}
	s.settle()
}
