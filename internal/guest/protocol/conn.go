package protocol

import (
	"errors"
	"io"
	"sync"
)

// Errors that end a connection or a stream.
var (
	// ErrViolation says that the peer broke the rules of the framing.
	ErrViolation = errors.New("protocol violation")
	// ErrClosed says that this side closed the connection.
	ErrClosed = errors.New("connection closed")
	// ErrReset says that the peer gave up on the stream.
	ErrReset = errors.New("stream reset by the peer")
	// ErrBusy says that MaxStreams streams are open.
	ErrBusy = errors.New("too many open streams")
)

// violation is an ErrViolation that says which rule.
type violation string

func (v violation) Error() string        { return "protocol violation: " + string(v) }
func (v violation) Is(target error) bool { return target == ErrViolation }

// kind is the type byte of a frame.
type kind byte

const (
	kindHello   kind = 1 + iota // stream 0, the first frame of each side
	kindOpen                    // a request; the host will send more on the stream
	kindOpenEnd                 // a request with nothing after it
	kindData                    // one message or one piece of bytes
	kindEnd                     // the last message of a direction, may be empty
	kindReset                   // the direction ends here because of a failure
	kindCredit                  // 4 bytes: how much more the receiver of it may send
)

// headSize is the length of a frame's head: kind, stream, payload length.
const headSize = 1 + 4 + 4

func putHead(b []byte, k kind, id uint32, n int) {
	b[0] = byte(k)
	putUint32(b[1:], id)
	putUint32(b[5:], uint32(n))
}

// buffers recycles the memory of full-sized frames.
var buffers = sync.Pool{New: func() any { b := make([]byte, headSize+MaxFrame); return &b }}

// poolFrom is the size from which a frame is worth a pooled buffer.
const poolFrom = 8 << 10

// A buffer holds one frame, head included; pooled is nil for one made to measure.
type buffer struct {
	b      []byte
	pooled *[]byte
}

func newBuffer(payload int) buffer {
	if payload < poolFrom || payload > MaxFrame {
		return buffer{b: make([]byte, headSize+payload)}
	}
	p := buffers.Get().(*[]byte)
	return buffer{b: (*p)[:headSize+payload], pooled: p}
}

func (b buffer) payload() []byte { return b.b[headSize:] }

func (b buffer) free() {
	if b.pooled != nil {
		buffers.Put(b.pooled)
	}
}

// Frame is one received message. Its Data is valid until Release, which also
// lets the peer send as much again.
type Frame struct {
	Data []byte
	// End is true for the last frame of the direction.
	End bool

	s    *Stream
	buf  buffer
	cost int
}

// Release gives the frame's memory back and its bytes to the peer as credit.
func (f *Frame) Release() {
	if f.s == nil {
		return
	}
	s := f.s
	f.s, f.Data = nil, nil
	f.buf.free()
	s.restore(f.cost)
}

// Conn multiplexes streams over one byte stream.
type Conn struct {
	rw   io.ReadWriteCloser
	host bool
	// accept handles a stream the host opened; it runs in its own goroutine and
	// must end the stream. Nil on the host.
	accept func(s *Stream, request []byte)

	mu      sync.Mutex
	room    sync.Cond // signalled when the queue shrinks, a stream gets credit or anything ends
	streams map[uint32]*Stream
	lastID  uint32
	err     error
	queue   []buffer
	queued  int
	writing bool
	wake    chan struct{} // host: tells the writer of work
	done    chan struct{}

	owned sync.WaitGroup
}

func newConn(rw io.ReadWriteCloser, host bool) *Conn {
	c := &Conn{rw: rw, host: host, streams: map[uint32]*Stream{}, done: make(chan struct{})}
	c.room.L = &c.mu
	return c
}

// Dial greets the guest as its host and returns the connection and what the
// guest said. To abandon it while it waits, close rw.
func Dial(rw io.ReadWriteCloser) (*Conn, Hello, error) {
	c := newConn(rw, true)
	c.wake = make(chan struct{}, 1)
	if err := writeHello(rw, Hello{Protocol: Version}); err != nil {
		return nil, Hello{}, err
	}
	r := newReader(rw)
	hello, err := readHello(r)
	if err != nil {
		return nil, Hello{}, err
	}
	if hello.Protocol != Version {
		return nil, hello, violation("the guest speaks another version")
	}
	c.owned.Add(2)
	go func() {
		defer c.owned.Done()
		c.fail(c.receive(r))
	}()
	go func() {
		defer c.owned.Done()
		c.write()
	}()
	return c, hello, nil
}

// Serve is the guest's side: it answers the host's greeting with hello, calls
// accept for every stream the host opens, and returns when the connection has
// ended and every accept has returned. attached is told the connection once the
// greeting is over.
func Serve(rw io.ReadWriteCloser, hello func() Hello, attached func(*Conn), accept func(s *Stream, request []byte)) error {
	defer rw.Close()
	r := newReader(rw)
	peer, err := readHello(r)
	if err != nil {
		return err
	}
	if err := writeHello(rw, hello()); err != nil {
		return err
	}
	if peer.Protocol != Version {
		return violation("the host speaks another version")
	}
	c := newConn(rw, false)
	c.accept = accept
	attached(c)
	c.fail(c.receive(r))
	c.owned.Wait()
	return c.Err()
}

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err says why the connection ended, nil while it lives.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and waits for what runs on its behalf. It must not
// be called from an accept function.
func (c *Conn) Close() error {
	c.Abort(ErrClosed)
	c.owned.Wait()
	return nil
}

// Abort ends the connection for a reason, without waiting.
func (c *Conn) Abort(reason error) { c.fail(reason) }

// fail ends the connection once; later reasons are ignored.
func (c *Conn) fail(reason error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = reason
	queue := c.queue
	c.queue, c.queued = nil, 0
	for _, s := range c.streams {
		s.end(reason)
	}
	clear(c.streams)
	c.room.Broadcast()
	close(c.done)
	c.mu.Unlock()
	for _, b := range queue {
		b.free()
	}
	_ = c.rw.Close() // a failed close leaves nothing to do
}

// Open starts a stream with a request. If last is true nothing follows it.
func (c *Conn) Open(request []byte, last bool) (*Stream, error) {
	if len(request) > MaxOpen {
		return nil, violation("request too large")
	}
	k := kindOpen
	if last {
		k = kindOpenEnd
	}
	b := newBuffer(len(request))
	copy(b.payload(), request)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if len(c.streams) >= MaxStreams {
		return nil, ErrBusy
	}
	c.lastID++
	s := newStream(c, c.lastID)
	s.sent = last
	c.streams[s.id] = s
	putHead(b.b, k, s.id, len(request))
	c.enqueue(b)
	return s, nil
}

// enqueue hands a frame to the wire. The caller holds mu and has waited for room
// where the frame is data.
//
// The host writes from a goroutine of its own, so that a guest that does not read
// cannot hold up a caller whose context ends. The guest, which trusts its host,
// writes where it stands: waking another thread costs more than the write.
func (c *Conn) enqueue(b buffer) {
	c.queue = append(c.queue, b)
	c.queued += len(b.b)
	if c.writing {
		return
	}
	if c.host {
		select {
		case c.wake <- struct{}{}:
		default:
		}
		return
	}
	c.writing = true
	c.flush()
	if len(c.queue) == 0 || c.err != nil {
		c.writing = false
		return
	}
	// Others were faster than the wire. Writing on for them would keep the caller
	// from its own work.
	c.owned.Add(1)
	go func() {
		defer c.owned.Done()
		c.mu.Lock()
		defer c.mu.Unlock()
		for len(c.queue) > 0 && c.err == nil {
			c.flush()
		}
		c.writing = false
	}()
}

// write is the host's writer.
func (c *Conn) write() {
	for {
		select {
		case <-c.wake:
		case <-c.done:
			return
		}
		c.mu.Lock()
		c.writing = true
		for len(c.queue) > 0 && c.err == nil {
			c.flush()
		}
		c.writing = false
		c.mu.Unlock()
	}
}

// flush writes what is queued now. It is called with mu held and writing set,
// and lets go of mu while it writes.
func (c *Conn) flush() {
	batch := c.queue
	c.queue = nil
	c.mu.Unlock()
	err := writeAll(c.rw, batch)
	n := 0
	for _, b := range batch {
		n += len(b.b)
		b.free()
	}
	if err != nil {
		c.fail(err)
	}
	c.mu.Lock()
	if c.err == nil {
		c.queued -= n
	}
	c.room.Broadcast()
}

// gatherBelow is the size up to which frames are gathered into one write.
const gatherBelow = 16 << 10

func writeAll(w io.Writer, batch []buffer) error {
	for len(batch) > 0 {
		n, size := 0, 0
		for n < len(batch) && size+len(batch[n].b) <= gatherBelow {
			size += len(batch[n].b)
			n++
		}
		if n < 2 {
			if _, err := w.Write(batch[0].b); err != nil {
				return err
			}
			batch = batch[1:]
			continue
		}
		gathered := make([]byte, 0, size)
		for _, b := range batch[:n] {
			gathered = append(gathered, b.b...)
		}
		if _, err := w.Write(gathered); err != nil {
			return err
		}
		batch = batch[n:]
	}
	return nil
}

// receive reads frames until the connection ends or the peer breaks a rule.
func (c *Conn) receive(r *reader) error {
	for {
		k, id, n, err := r.head()
		if err != nil {
			return err
		}
		limit := MaxFrame
		if k == kindOpen || k == kindOpenEnd {
			limit = MaxOpen
		}
		if n > limit {
			return violation("frame too large")
		}
		b := newBuffer(n)
		if err := r.full(b.payload()); err != nil {
			b.free()
			return err
		}
		if err := c.dispatch(k, id, b); err != nil {
			b.free()
			return err
		}
	}
}

// dispatch takes in one frame. If it returns an error the buffer is the caller's.
func (c *Conn) dispatch(k kind, id uint32, b buffer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if k == kindOpen || k == kindOpenEnd {
		return c.opened(k, id, b)
	}
	s := c.streams[id]
	if s == nil {
		if id == 0 || id > c.lastID {
			return violation("frame for a stream that was never opened")
		}
		if k == kindCredit {
			b.free() // it crossed our last frame
			return nil
		}
		return violation("frame for a stream that has ended")
	}
	n := len(b.payload())
	switch k {
	case kindCredit:
		if n != 4 {
			return violation("malformed credit")
		}
		s.credit += int(uint32At(b.payload()))
		if s.credit > Window {
			return violation("more credit than the window")
		}
		b.free()
	case kindData, kindEnd:
		if s.received {
			return violation("data after the end of a stream")
		}
		cost := n + frameCost
		if s.window -= cost; s.window < 0 {
			return violation("more data than the window")
		}
		if k == kindEnd {
			s.received = true
		}
		if s.abandoned {
			b.free()
			s.grant(cost)
		} else {
			s.queue = append(s.queue, Frame{Data: b.payload(), End: k == kindEnd, s: s, buf: b, cost: cost})
		}
	case kindReset:
		if s.received {
			return violation("reset after the end of a stream")
		}
		s.received = true
		s.end(ErrReset)
		b.free()
	default:
		return violation("unknown kind of frame")
	}
	s.settle()
	s.ready.Broadcast()
	c.room.Broadcast()
	return nil
}

// opened takes in a new stream on the guest's side.
func (c *Conn) opened(k kind, id uint32, b buffer) error {
	switch {
	case c.host:
		return violation("the guest may not open streams")
	case id != c.lastID+1:
		return violation("stream out of order")
	case len(c.streams) >= MaxStreams:
		return violation("too many streams")
	}
	c.lastID = id
	s := newStream(c, id)
	s.received = k == kindOpenEnd
	c.streams[id] = s
	c.owned.Add(1)
	go func() {
		defer c.owned.Done()
		c.accept(s, b.payload())
		s.Close()
		b.free()
	}()
	return nil
}
