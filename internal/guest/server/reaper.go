//go:build linux

package server

import (
	"sync"
	"syscall"
)

// reaper starts processes and collects them. As PID 1 it also collects the
// orphans of the whole sandbox, with one wait for everything: a second wait for a
// certain child would race with it.
type reaper struct {
	// orphan is called after a process was collected that start did not make.
	orphan func()
	all    bool
	wake   chan struct{}

	mu       sync.Mutex
	children map[int]chan<- syscall.WaitStatus
	starting int
	// early holds what ended before its start could register it. It is only kept
	// while a start is under way: everything else in it is an orphan.
	early map[int]syscall.WaitStatus
}

// newReaper returns a reaper; all makes it collect orphans too, which only PID 1
// may do: in another process it would steal the children of others.
func newReaper(all bool, orphan func()) *reaper {
	r := &reaper{
		orphan: orphan, all: all, wake: make(chan struct{}, 1),
		children: map[int]chan<- syscall.WaitStatus{}, early: map[int]syscall.WaitStatus{},
	}
	if all {
		go r.run() // as long as PID 1 lives
	}
	return r
}

// start runs a program; how it ended arrives on the channel.
func (r *reaper) start(path string, argv []string, attr *syscall.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	exit := make(chan syscall.WaitStatus, 1)
	if !r.all {
		pid, err := syscall.ForkExec(path, argv, attr)
		if err != nil {
			return 0, nil, err
		}
		go func() {
			var ws syscall.WaitStatus
			_, _ = wait4(pid, &ws) // it is our child and nobody else waits for it
			exit <- ws
		}()
		return pid, exit, nil
	}
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting--
	if err == nil {
		if ws, ended := r.early[pid]; ended {
			exit <- ws
		} else {
			r.children[pid] = exit
		}
	}
	if r.starting == 0 {
		clear(r.early)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return pid, exit, err
}

func (r *reaper) run() {
	for {
		var ws syscall.WaitStatus
		pid, err := wait4(-1, &ws)
		if err != nil { // no child at all
			<-r.wake
			continue
		}
		r.mu.Lock()
		exit, ours := r.children[pid]
		delete(r.children, pid)
		if !ours && r.starting > 0 {
			r.early[pid] = ws
		}
		r.mu.Unlock()
		if ours {
			exit <- ws
		} else {
			r.orphan()
		}
	}
}

func wait4(pid int, ws *syscall.WaitStatus) (int, error) {
	for {
		got, err := syscall.Wait4(pid, ws, 0, nil)
		if err != syscall.EINTR {
			return got, err
		}
	}
}
