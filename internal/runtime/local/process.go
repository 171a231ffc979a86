package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process names a process for good: its start time tells it from a later one
// that was given the same pid.
type process struct {
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"`
}

// startTime returns the start of a process in clock ticks after boot.
func startTime(pid int) (uint64, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	return start, nil
}

func parentOf(pid int) (int, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(fields[1])
}

// statFields returns what the kernel tells of a process after its name.
func statFields(pid int) ([]string, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("process %d: unreadable state", pid)
	}
	return fields, nil
}

// watched is an open handle of a process that may be anybody's child.
type watched struct {
	process
	fd *os.File
}

// watch opens a process. It fails with os.ErrProcessDone if that one has ended.
func watch(p process) (*watched, error) {
	if p.PID == 0 {
		return nil, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", p.PID, err)
	}
	w := &watched{process: p, fd: os.NewFile(uintptr(fd), "pidfd")}
	if start, err := startTime(p.PID); err != nil || start != p.Start || w.ended() {
		w.close()
		return nil, os.ErrProcessDone
	}
	return w, nil
}

// watchPID opens a process that is known by its pid only, because it has just
// been started.
func watchPID(pid int) (*watched, error) {
	start, err := startTime(pid)
	if err != nil {
		return nil, err
	}
	return watch(process{PID: pid, Start: start})
}

// wait returns nil when the process has ended, or os.ErrClosed after close. It
// occupies no thread.
func (w *watched) wait() error {
	raw, err := w.fd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return readable(int(fd), 0) })
}

func (w *watched) ended() bool {
	ended := false
	if raw, err := w.fd.SyscallConn(); err == nil {
		err = raw.Control(func(fd uintptr) { ended = readable(int(fd), 0) })
		return ended || err != nil
	}
	return true
}

// signal sends SIGKILL without waiting for the end, kill then tells of errors.
func (w *watched) signal() {
	if raw, err := w.fd.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
}

// kill sends SIGKILL and waits until the process has ended.
func (w *watched) kill(ctx context.Context) error {
	raw, err := w.fd.SyscallConn()
	if err != nil {
		return err
	}
	var killErr error
	err = raw.Control(func(fd uintptr) {
		killErr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0)
		for killErr == nil && !readable(int(fd), 100) {
			killErr = ctx.Err()
		}
	})
	if errors.Is(killErr, unix.ESRCH) {
		killErr = nil
	}
	return errors.Join(err, killErr)
}

func (w *watched) close() { w.fd.Close() }

func readable(fd, timeoutMs int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, timeoutMs)
	return n > 0 && err == nil
}

// reap collects a dead process if it has become a child of this one, as orphans
// do while this process is a sub-reaper.
func reap(pid int) {
	if pid > 0 {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}

// reapGroup does the same for all of a process group.
func reapGroup(pgid int) {
	for pgid > 0 {
		if pid, err := unix.Wait4(-pgid, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
			return
		}
	}
}
