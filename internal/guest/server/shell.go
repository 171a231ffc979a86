//go:build linux

package server

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const bash = "/bin/bash"

// argMax is the longest argument the kernel takes, its end included.
const argMax = 128 << 10

// shell is a shell that runs a command.
type shell struct {
	tree   tree
	pid    int
	exit   <-chan syscall.WaitStatus
	output [2]*os.File // stdout and stderr
}

// shells starts the shells of commands.
type shells struct {
	s *Server
}

func newShells(s *Server, waiting int) *shells { return &shells{s: s} }

func (p *shells) refill() {}
func (p *shells) close()  {}

// start runs a command in a shell of its own.
func (p *shells) start(command, cwd string, env []string) (*shell, error) {
	return p.spawn([]string{"bash", "-c", command}, cwd, env, nil)
}

// spawn starts bash as the sandbox user, in a tree, a session and a process group
// of its own, with both output streams as pipes. Extra files become 3 and up.
func (p *shells) spawn(argv []string, cwd string, env []string, extra []uintptr) (sh *shell, err error) {
	s := p.s
	t, err := s.forest.plant()
	if err != nil {
		return nil, err
	}
	sh = &shell{tree: t}
	var ends [2]int
	made := 0
	defer func() {
		for _, fd := range ends[:made] {
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
	for i := range ends {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return nil, err
		}
		ends[i] = fds[1]
		made++
		if err := unix.SetNonblock(fds[0], true); err != nil {
			_ = unix.Close(fds[0])
			return nil, err
		}
		sh.output[i] = os.NewFile(uintptr(fds[0]), "output")
	}
	attr := &syscall.SysProcAttr{Setsid: true}
	if os.Getuid() == 0 {
		attr.Credential = &syscall.Credential{Uid: uint32(s.cfg.UID), Gid: uint32(s.cfg.GID)}
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
	return sh, nil
}
