//go:build linux

package server

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/guest/protocol"
)

// dial answers OpDial: it joins a stream to a TCP port of the sandbox's loopback.
func (s *Server) dial(st *protocol.Stream, port int) {
	fd, err := connect(port)
	if err != nil {
		s.answer(st, nil, &protocol.Fault{Reason: protocol.ReasonRefused, Text: "nothing answers on the port: " + err.Error()})
		return
	}
	conn := os.NewFile(uintptr(fd), "port")
	defer conn.Close()
	if err := st.Send(protocol.Answer(nil, nil)); err != nil {
		return
	}
	up := make(chan struct{})
	go func() {
		defer close(up)
		upload(st, conn, fd)
	}()
	buf := make([]byte, protocol.MaxChunk)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := st.Send(buf[:n]); err != nil {
				break
			}
		}
		if err == io.EOF {
			_ = st.SendEnd() // a host that is gone needs no end
			<-up             // the other direction may go on
			return
		}
		if err != nil {
			break
		}
	}
	st.Abandon(protocol.ErrClosed)
	<-up
}

// upload copies what the host sends to the port.
func upload(st *protocol.Stream, conn *os.File, fd int) {
	for {
		f, err := st.Receive()
		if err != nil {
			_ = conn.Close() // wakes the other direction
			return
		}
		_, err = conn.Write(f.Data)
		last := f.End
		f.Release()
		if err != nil {
			st.Abandon(protocol.ErrReset)
			_ = conn.Close()
			return
		}
		if last {
			_ = unix.Shutdown(fd, unix.SHUT_WR) // fails if the peer has closed already
			return
		}
	}
}

// connect connects to a port on the loopback, IPv4 first.
func connect(port int) (int, error) {
	v4 := &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	fd, err := connectTo(unix.AF_INET, v4)
	if err == nil {
		return fd, nil
	}
	v6 := &unix.SockaddrInet6{Port: port, Addr: [16]byte{15: 1}}
	if fd, err6 := connectTo(unix.AF_INET6, v6); err6 == nil {
		return fd, nil
	}
	return -1, err
}

func connectTo(family int, addr unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// The loopback answers at once, or its backlog is full: then the kernel gives
	// up by itself, and the host before that.
	err = unix.Connect(fd, addr)
	for err == unix.EINTR || err == unix.EALREADY || err == unix.EINPROGRESS {
		// The connecting goes on without us.
		if _, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1); err == nil {
			var code int
			if code, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
				err = syscall.Errno(code)
			}
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // only latency is lost
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
