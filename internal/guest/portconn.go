package guest

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"crownest.dev/crownest/internal/guest/protocol"
)

// portConn is a connection to a port in the sandbox. It knows half-close.
type portConn struct {
	s    *protocol.Stream
	port int

	rmu   sync.Mutex
	frame protocol.Frame
	rest  []byte
	eof   bool

	wmu sync.Mutex

	mu     sync.Mutex
	timers [2]*time.Timer // of the read and the write deadline
	passed [2]bool
	closed bool
}

func newPortConn(s *protocol.Stream, port int) *portConn { return &portConn{s: s, port: port} }

// Read implements net.Conn.
func (p *portConn) Read(b []byte) (int, error) {
	p.rmu.Lock()
	defer p.rmu.Unlock()
	for len(p.rest) == 0 {
		if p.eof {
			return 0, io.EOF
		}
		p.frame.Release()
		f, err := p.s.Receive()
		if err != nil {
			return 0, p.failed(err)
		}
		p.frame, p.rest, p.eof = f, f.Data, f.End
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// Write implements net.Conn.
func (p *portConn) Write(b []byte) (int, error) {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	n, err := p.s.Write(b)
	if err != nil {
		err = p.failed(err)
	}
	return n, err
}

func (p *portConn) failed(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.passed[0] || p.passed[1]:
		return os.ErrDeadlineExceeded
	case p.closed:
		return net.ErrClosed
	case errors.Is(err, io.EOF), errors.Is(err, protocol.ErrReset):
		return err
	}
	return disconnected(err)
}

// CloseWrite ends what is sent; the other direction goes on.
func (p *portConn) CloseWrite() error {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	if err := p.s.SendEnd(); err != nil {
		return p.failed(err)
	}
	return nil
}

// Close implements net.Conn.
func (p *portConn) Close() error {
	p.mu.Lock()
	p.closed = true
	for _, t := range p.timers {
		if t != nil {
			t.Stop()
		}
	}
	p.mu.Unlock()
	p.s.Close()
	return nil
}

// deadline arms one deadline. A deadline that passes ends the connection: unlike
// a socket's, it cannot be moved afterwards.
func (p *portConn) deadline(which int, t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	if old := p.timers[which]; old != nil {
		old.Stop()
		p.timers[which] = nil
	}
	if t.IsZero() {
		return nil
	}
	p.timers[which] = time.AfterFunc(time.Until(t), func() {
		p.mu.Lock()
		p.passed[which] = true
		p.mu.Unlock()
		p.s.Abandon(os.ErrDeadlineExceeded)
	})
	return nil
}

// SetDeadline implements net.Conn.
func (p *portConn) SetDeadline(t time.Time) error {
	return errors.Join(p.deadline(0, t), p.deadline(1, t))
}

// SetReadDeadline implements net.Conn.
func (p *portConn) SetReadDeadline(t time.Time) error { return p.deadline(0, t) }

// SetWriteDeadline implements net.Conn.
func (p *portConn) SetWriteDeadline(t time.Time) error { return p.deadline(1, t) }

// LocalAddr implements net.Conn.
func (p *portConn) LocalAddr() net.Addr { return portAddr(0) }

// RemoteAddr implements net.Conn.
func (p *portConn) RemoteAddr() net.Addr { return portAddr(p.port) }

// portAddr is an address on a sandbox's loopback.
type portAddr int

func (portAddr) Network() string { return "sandbox" }

func (a portAddr) String() string { return "localhost:" + strconv.Itoa(int(a)) }
