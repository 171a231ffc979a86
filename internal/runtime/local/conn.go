package local

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pipeConn is a connection made of two pipes. Unlike a socket, pipes that the
// guest holds live through a checkpoint.
type pipeConn struct {
	r, w *os.File
}

// newPipes returns the host's connection and the guest's two ends.
func newPipes() (conn *pipeConn, guestIn, guestOut *os.File, err error) {
	var in, out [2]int
	if err := unix.Pipe2(in[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, nil, fmt.Errorf("making pipe: %w", err)
	}
	if err := unix.Pipe2(out[:], unix.O_CLOEXEC); err != nil {
		unix.Close(in[0])
		unix.Close(in[1])
		return nil, nil, nil, fmt.Errorf("making pipe: %w", err)
	}
	for _, fd := range []int{in[1], out[0]} {
		// Only the host's ends: os.File then waits in the poller and has deadlines.
		if err := unix.SetNonblock(fd, true); err != nil {
			return nil, nil, nil, fmt.Errorf("making pipe: %w", err)
		}
	}
	return &pipeConn{r: os.NewFile(uintptr(out[0]), "from guest"), w: os.NewFile(uintptr(in[1]), "to guest")},
		os.NewFile(uintptr(in[0]), "guest in"), os.NewFile(uintptr(out[1]), "guest out"), nil
}

func (c *pipeConn) Read(b []byte) (int, error)  { return c.r.Read(b) }
func (c *pipeConn) Write(b []byte) (int, error) { return c.w.Write(b) }
func (c *pipeConn) Close() error                { return errors.Join(c.r.Close(), c.w.Close()) }

func (c *pipeConn) LocalAddr() net.Addr  { return pipeAddr{} }
func (c *pipeConn) RemoteAddr() net.Addr { return pipeAddr{} }

func (c *pipeConn) SetDeadline(t time.Time) error {
	return errors.Join(c.r.SetReadDeadline(t), c.w.SetWriteDeadline(t))
}
func (c *pipeConn) SetReadDeadline(t time.Time) error  { return c.r.SetReadDeadline(t) }
func (c *pipeConn) SetWriteDeadline(t time.Time) error { return c.w.SetWriteDeadline(t) }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "guest" }
