//go:build linux

package server

import (
	"errors"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/guest/rawfile"
)

const bash = "/bin/bash"

// argMax is what the kernel takes as one argument, its final NUL included.
const argMax = 128 << 10

// shell is a bash with the tree it lives in.
type shell struct {
	tree   tree
	pid    int
	exit   <-chan syscall.WaitStatus
	output [2]*os.File // stdout and stderr
}

// discard ends a shell that nobody needs.
func (sh *shell) discard(s *Server) {
	sh.tree.kill()
	<-sh.exit
	s.uproot(sh.tree)
	for _, f := range sh.output {
		_ = f.Close()
	}
}

// plainShell starts a bash for one command.
func (s *Server) plainShell(command, cwd string, env []string) (*shell, error) {
	if len(command) < argMax {
		return s.spawn([]string{"bash", "-c", command}, cwd, env, nil)
	}
	// Too long for an argument: it goes in a file in memory. The variable is the one
	// in which bash -c leaves its command.
	const script = `IFS= read -rd '' -u 3 BASH_EXECUTION_STRING; exec 3<&-; eval "$BASH_EXECUTION_STRING"`
	fd, err := unix.MemfdCreate("command", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	defer unix.Close(fd)
	if err := rawfile.WriteAll(fd, []byte(command)); err != nil {
		return nil, os.NewSyscallError("write", err)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, os.NewSyscallError("lseek", err)
	}
	return s.spawn([]string{"bash", "-c", script}, cwd, env, []uintptr{uintptr(fd)})
}

// spawn starts bash as the sandbox user, in a tree, a session and a process group
// of its own, with nothing to read and both outputs as pipes. Extra files become
// descriptors 3 and up.
func (s *Server) spawn(argv []string, cwd string, env []string, extra []uintptr) (_ *shell, err error) {
	t, err := s.forest.plant()
	if err != nil {
		return nil, err
	}
	sh := &shell{tree: t}
	var ends []int
	defer func() {
		for _, fd := range ends {
			_ = unix.Close(fd)
		}
		if err != nil {
			for _, f := range sh.output {
				if f != nil {
					_ = f.Close()
				}
			}
			s.uproot(t)
		}
	}()
	for i := range sh.output {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return nil, os.NewSyscallError("pipe2", err)
		}
		ends = append(ends, fds[1])
		if err := unix.SetNonblock(fds[0], true); err != nil {
			_ = unix.Close(fds[0])
			return nil, os.NewSyscallError("fcntl", err)
		}
		sh.output[i] = os.NewFile(uintptr(fds[0]), "output")
	}
	attr := &syscall.SysProcAttr{Setsid: true}
	if s.cfg.UID != os.Geteuid() {
		attr.Credential = &syscall.Credential{Uid: uint32(s.cfg.UID), Gid: uint32(s.cfg.GID), NoSetGroups: s.cfg.PID1}
	}
	t.attr(attr)
	sh.pid, sh.exit, err = s.reaper.start(bash, argv, &syscall.ProcAttr{
		Dir: s.cfg.Root + cwd, Env: env, Sys: attr,
		Files: append([]uintptr{uintptr(s.null), uintptr(ends[0]), uintptr(ends[1])}, extra...),
	})
	if err != nil {
		return nil, err
	}
	t.born(sh.pid)
	// If memory runs out, it is user work that dies. Not every kernel knows it, and
	// the shell may be gone again.
	_ = rawfile.Write("/proc/"+strconv.Itoa(sh.pid)+"/oom_score_adj", "500", 0, 0)
	return sh, nil
}

// exhausted says whether an error of a start tells that the sandbox is full.
func exhausted(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) ||
		errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}
