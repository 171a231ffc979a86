//go:build linux

package main

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// pair is a connection made of two pipes.
type pair struct{ r, w *os.File }

func (p pair) Read(b []byte) (int, error)  { return p.r.Read(b) }
func (p pair) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p pair) Close() error                { return errors.Join(p.r.Close(), p.w.Close()) }

// pollable makes a descriptor from the host ours: never inherited, and closing it
// wakes whoever waits for it.
func pollable(fd int, name string) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// hostPipes returns the connection that PID 1 was started with.
func hostPipes() (io.ReadWriteCloser, error) {
	r, err := pollable(3, "host")
	if err != nil {
		return nil, err
	}
	w, err := pollable(4, "host")
	if err != nil {
		return nil, err
	}
	return pair{r, w}, nil
}

// listen opens the socket for attach.
func listen() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: socketName}); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, 16); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("listen", err)
	}
	return os.NewFile(uintptr(fd), "attach"), nil
}

// accept waits for root in the sandbox to hand over a connection. Anybody else is
// turned away without a word.
func accept(l *os.File) (io.ReadWriteCloser, error) {
	rc, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	for {
		fd := -1
		var acceptErr error
		if err := rc.Read(func(lfd uintptr) bool {
			fd, _, acceptErr = unix.Accept4(int(lfd), unix.SOCK_CLOEXEC)
			return acceptErr != unix.EAGAIN
		}); err != nil {
			return nil, err
		}
		if acceptErr != nil {
			continue // the client is gone, or a signal came
		}
		conn, err := receive(fd)
		_ = unix.Close(fd)
		return conn, err
	}
}

var errForeign = errors.New("a connection to the attach socket by somebody else than root")

// receive takes the connection that an attach sends.
func receive(fd int) (io.ReadWriteCloser, error) {
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	if peer.Uid != 0 {
		return nil, errForeign
	}
	// Root sends at once; it must not hold up others if it does not.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4*4))
	_, n, _, _, err := unix.Recvmsg(fd, b[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	var fds []int
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return nil, errors.New("attach sent no connection")
	}
	return pollable(fds[0], "host")
}

// attach sends its descriptor 3 to PID 1.
func attach() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socketName}); err != nil {
		return os.NewSyscallError("connect", err)
	}
	if err := unix.Sendmsg(fd, []byte{1}, unix.UnixRights(3), nil, 0); err != nil {
		return os.NewSyscallError("sendmsg", err)
	}
	return nil
}
