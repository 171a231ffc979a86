package template

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// command is one external program of a build.
type command struct {
	argv    []string
	dir     string
	env     []string
	offline bool
	stdout  io.Writer // nil: to lines, like stderr
	lines   func(string)
}

// run runs the program in a process and mount namespace of its own. The kernel
// ends the whole tree and undoes every mount when the program ends, when ctx is
// done, and when this process dies, in whatever way: there is nothing to clean up
// but files.
func (c command) run(ctx context.Context) error {
	// The parent death signal is tied to the thread that forks.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	const enter = `mount -t proc proc /proc && exec "$@"`
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", enter, "sh"}, c.argv...)...)
	cmd.Dir, cmd.Env = c.dir, c.env
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWPID,
		Unshareflags: syscall.CLONE_NEWNS, // Go then makes every mount private
		Pdeathsig:    syscall.SIGKILL,
		Setpgid:      true, // an interrupt at the terminal is ours to handle
	}
	if c.offline {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
	}
	out := &lineWriter{emit: c.lines}
	cmd.Stdout, cmd.Stderr = out, out
	if c.stdout != nil {
		cmd.Stdout = c.stdout
	}
	err := cmd.Run()
	out.flush()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.argv[0], err)
	}
	return nil
}

// maxLine bounds one line of a program's output.
const maxLine = 500

// lineWriter cuts a program's output into lines, carriage returns included, and
// drops what makes a line too long.
type lineWriter struct {
	emit func(string)
	buf  []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		end := bytes.IndexAny(rest, "\r\n")
		part := rest
		if end >= 0 {
			part = rest[:end]
		}
		w.buf = append(w.buf, part[:min(len(part), maxLine-len(w.buf))]...)
		if end < 0 {
			break
		}
		w.flush()
		rest = rest[end+1:]
	}
	return len(p), nil
}

func (w *lineWriter) flush() {
	if line := strings.TrimSpace(strings.ToValidUTF8(string(w.buf), "?")); line != "" {
		w.emit(line)
	}
	w.buf = w.buf[:0]
}

// tail keeps the last lines of a build's output for its error message.
type tail struct {
	mu    sync.Mutex
	lines []string
}

// tailLines is how many lines of output an error message shows.
const tailLines = 20

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == tailLines {
		copy(t.lines, t.lines[1:])
		t.lines = t.lines[:tailLines-1]
	}
	t.lines = append(t.lines, line)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}
