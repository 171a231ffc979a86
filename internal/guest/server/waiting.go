//go:build linux

package server

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/guest/rawfile"
)

// To start bash takes most of the time of a short command. So a few are started
// beforehand, as `bash -c PLACEHOLDER`, and wait in the middle of their start: in
// the file that BASH_ENV names, which reads from descriptor 3. When a command
// comes, its text is written over the placeholder in the shell's memory, and the
// shell is told how its variables and its directory differ from those it was
// started with. From there on it is a `bash -c COMMAND` by every measure: error
// messages, $0, $-, line numbers, and the exec of the last command in place of a
// fork are bash's own.
//
// It takes that bash keeps its argument where the kernel put it. Whether it does
// is tried out before the first use, and whatever does not fit (long commands,
// variables that bash looks at when it starts) gets a shell of its own.
const (
	// placeholderSize bounds the command that fits, its final NUL included.
	placeholderSize = 8 << 10
	// setupMax bounds what a waiting shell is told.
	setupMax = 32 << 10
	// refillDelay is how long a running command keeps the pool from being filled:
	// a shell that starts takes time from it.
	refillDelay = 200 * time.Millisecond
	// placeholderCode is the exit code of a shell that runs its placeholder, and
	// trialCode that of one which runs the trial command.
	placeholderCode = 125
	trialCode       = 42
)

// startFile is what a waiting shell sources: it reads the length of what it is
// told, then the rest. The last line sets $_.
const startFile = `IFS= read -rN 6 -u 3 __crownest && IFS= read -rN "$__crownest" -u 3 __crownest && eval "$__crownest"
: bash
`

// waiting is a shell that waits for its command.
type waiting struct {
	*shell
	env     []string
	cwd     string
	host    string  // the name of the machine when it was started
	bound   bool    // started after the binding, with its environment
	tell    int     // writing end of descriptor 3
	address uintptr // of the placeholder
}

// shells keeps waiting shells. Nil fields and zero values mean that there are none.
type shells struct {
	s      *Server
	target int
	path   string // of the start file, "" if waiting shells cannot be used

	mu     sync.Mutex
	ready  []*waiting
	tried  bool // a trial has shown that it works
	closed bool
	kicked chan struct{}
	later  *time.Timer
	done   chan struct{}
}

// newShells keeps target shells waiting.
func newShells(s *Server, target int) *shells {
	p := &shells{s: s, target: target, kicked: make(chan struct{}, 1), done: make(chan struct{})}
	if target > 0 && s.cfg.Runtime != "" {
		path := s.cfg.Runtime + "/shell"
		if err := rawfile.Write(path, startFile, unix.O_CREAT|unix.O_TRUNC, 0o644); err == nil {
			p.path = path
		}
	}
	if p.path == "" {
		close(p.done)
		return p
	}
	p.later = time.AfterFunc(0, p.refill)
	go p.run()
	return p
}

// close ends the waiting shells and the filling.
func (p *shells) close() {
	p.mu.Lock()
	p.closed = true
	ready := p.ready
	p.ready = nil
	p.mu.Unlock()
	if p.later != nil {
		p.later.Stop()
	}
	p.refill()
	<-p.done
	for _, w := range ready {
		w.discard(p.s)
	}
}

// refill lets the pool be filled now.
func (p *shells) refill() {
	select {
	case p.kicked <- struct{}{}:
	default:
	}
}

// run fills the pool, one shell at a time.
func (p *shells) run() {
	defer close(p.done)
	for range p.kicked {
		for {
			p.mu.Lock()
			short := len(p.ready) < p.target
			closed, tried := p.closed, p.tried
			p.mu.Unlock()
			if closed {
				return
			}
			if !short {
				break
			}
			if !tried {
				if !p.try() {
					return
				}
				continue
			}
			w, err := p.prepare()
			if err != nil {
				break // the sandbox is full; the next command's end tries again
			}
			p.mu.Lock()
			if p.closed {
				p.mu.Unlock()
				w.discard(p.s)
				return
			}
			p.ready = append(p.ready, w)
			p.mu.Unlock()
		}
	}
}

// try finds out whether waiting shells work here.
func (p *shells) try() bool {
	w, err := p.prepare()
	if err != nil {
		return false
	}
	trial := "exit " + strconv.Itoa(trialCode)
	setup, ok := w.setup(trial, w.cwd, w.env, w.host)
	ok = ok && w.command(trial, setup) && (<-w.exit).ExitStatus() == trialCode
	if ok {
		p.s.uproot(w.tree)
		for _, f := range w.output {
			_ = f.Close()
		}
	} else {
		w.discard(p.s)
	}
	p.mu.Lock()
	p.tried = ok
	p.mu.Unlock()
	return ok
}

// prepare starts a shell and lets it wait.
func (p *shells) prepare() (*waiting, error) {
	s := p.s
	s.mu.Lock()
	env, host, bound := append([]string(nil), s.env...), s.hostname, s.bound != ""
	s.mu.Unlock()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(fds[0])
	marker := "exit " + strconv.Itoa(placeholderCode) + " #" + randomID()
	placeholder := marker + strings.Repeat(" ", placeholderSize-1-len(marker))
	sh, err := s.spawn([]string{"bash", "-c", placeholder}, Workspace, append(env, "BASH_ENV="+p.path), []uintptr{uintptr(fds[0])})
	if err != nil {
		_ = unix.Close(fds[1])
		return nil, err
	}
	w := &waiting{shell: sh, env: env, cwd: s.cfg.Root + Workspace, host: host, bound: bound, tell: fds[1]}
	if w.address, err = find(sh.pid, marker); err != nil {
		w.discard(s)
		return nil, err
	}
	// People see it in the list of processes: leave what it does, without the padding.
	short := make([]byte, placeholderSize)
	copy(short, "exit "+strconv.Itoa(placeholderCode))
	if !poke(w.pid, w.address, short) {
		w.discard(s)
		return nil, errPoke
	}
	return w, nil
}

var errPoke = errors.New("cannot write to the memory of a waiting shell")

// discard ends the shell.
func (w *waiting) discard(s *Server) {
	if w.tell >= 0 {
		_ = unix.Close(w.tell)
	}
	w.shell.discard(s)
}

// take returns a shell that runs the command, or nil if there is none fit for it.
func (p *shells) take(command, cwd string, env []string, host string) *shell {
	if p.path == "" || len(command) >= placeholderSize {
		return nil
	}
	p.mu.Lock()
	if len(p.ready) == 0 {
		p.mu.Unlock()
		return nil
	}
	w := p.ready[0]
	setup, ok := w.setup(command, p.s.cfg.Root+cwd, env, host)
	if !ok && w.bound == p.s.isBound() {
		p.mu.Unlock()
		return nil // it is this command that is special, not the shell
	}
	p.ready = p.ready[1:]
	p.later.Reset(refillDelay)
	p.mu.Unlock()
	if ok && w.command(command, setup) {
		return w.shell
	}
	p.s.owned.Add(1)
	go func() {
		defer p.s.owned.Done()
		w.discard(p.s)
	}()
	return nil
}

// command gives the shell its command. If it reports false the shell is of no use.
func (w *waiting) command(command, setup string) bool {
	select {
	case ws := <-w.exit: // somebody killed it
		ended := make(chan syscall.WaitStatus, 1)
		ended <- ws
		w.exit = ended
		return false
	default:
	}
	text := make([]byte, placeholderSize)
	copy(text, command)
	if !poke(w.pid, w.address, text) {
		return false
	}
	if err := rawfile.WriteAll(w.tell, []byte(pad(len(setup))+setup)); err != nil {
		return false
	}
	_ = unix.Close(w.tell)
	w.tell = -1
	return true
}

// pad writes a length in the six characters that the start file reads.
func pad(n int) string {
	s := strconv.Itoa(n)
	return "      "[:6-len(s)] + s
}

// setup is what the shell is told: in ASCII, for it counts characters.
func (w *waiting) setup(command, cwd string, env []string, host string) (string, bool) {
	var b strings.Builder
	b.WriteString("exec 3<&-\nunset BASH_ENV __crownest\n")
	have := make(map[string]string, len(w.env))
	for _, kv := range w.env {
		name, value, _ := strings.Cut(kv, "=")
		have[name] = value
	}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		old, known := have[name]
		delete(have, name)
		if known && old == value {
			continue
		}
		if !settable(name) {
			return "", false
		}
		b.WriteString("export " + name + "=")
		quote(&b, value)
		b.WriteByte('\n')
	}
	for name := range have {
		if !settable(name) {
			return "", false
		}
		b.WriteString("unset " + name + "\n")
	}
	if cwd != w.cwd {
		// A fresh shell has no OLDPWD, but the intention to export it. The directory
		// was there a moment ago; without it there is nothing sensible to run.
		b.WriteString("cd -- ")
		quote(&b, cwd)
		b.WriteString(" || exit 126\nunset OLDPWD\nexport OLDPWD\n")
	}
	if host != w.host {
		b.WriteString("HOSTNAME=")
		quote(&b, host)
		b.WriteByte('\n')
	}
	b.WriteString("BASH_EXECUTION_STRING=")
	quote(&b, command)
	b.WriteString("\nSECONDS=0\n")
	return b.String(), b.Len() <= setupMax
}

// settable says whether setting a variable in a running bash does the same as
// having it in the environment of a new one. It does not for those that bash looks
// at when it starts, changes, or does not let anybody set.
func settable(name string) bool {
	if name == "" || strings.HasPrefix(name, "BASH") || strings.HasPrefix(name, "LC_") || strings.HasPrefix(name, "HIST") {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	switch name {
	case "_", "CDPATH", "COLUMNS", "COMP_WORDBREAKS", "DIRSTACK", "ENV", "EPOCHREALTIME", "EPOCHSECONDS", "EUID", "FUNCNAME",
		"GLOBIGNORE", "GROUPS", "HOSTNAME", "HOSTTYPE", "IFS", "IGNOREEOF", "LANG", "LANGUAGE", "LINENO", "LINES", "MACHTYPE",
		"OLDPWD", "OPTARG", "OPTERR", "OPTIND", "OSTYPE", "PIPESTATUS", "POSIXLY_CORRECT", "PPID", "PS4", "PWD", "RANDOM",
		"SECONDS", "SHELL", "SHELLOPTS", "SHLVL", "SRANDOM", "TERM", "TEXTDOMAIN", "TEXTDOMAINDIR", "UID":
		return false
	}
	return true
}

// quote writes a string as bash's $'...', in ASCII.
func quote(b *strings.Builder, s string) {
	const digits = "0123456789abcdef"
	b.WriteString("$'")
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\'' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c >= 0x7f:
			b.WriteString(`\x`)
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		default:
			b.WriteByte(c)
		}
	}
	b.WriteString("'")
}

// stackTop is how much of a stack is searched for the arguments: they lie at its
// very top, below the environment.
const stackTop = placeholderSize + 160<<10

// find returns the address of an argument in the memory of a process.
func find(pid int, marker string) (uintptr, error) {
	maps, err := rawfile.Read("/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.HasSuffix(strings.TrimSpace(line), "[stack]") {
			continue
		}
		from, to, _ := strings.Cut(line[:strings.IndexByte(line, ' ')], "-")
		low, err1 := strconv.ParseUint(from, 16, 64)
		high, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil || high <= low {
			break
		}
		low = max(low, high-min(high, stackTop))
		buf := make([]byte, high-low)
		n, err := unix.ProcessVMReadv(pid, []unix.Iovec{iovec(buf)}, []unix.RemoteIovec{{Base: uintptr(low), Len: len(buf)}}, 0)
		if err != nil {
			return 0, os.NewSyscallError("process_vm_readv", err)
		}
		if i := bytes.Index(buf[:n], []byte(marker)); i >= 0 {
			return uintptr(low) + uintptr(i), nil
		}
	}
	return 0, unix.ESRCH
}

// poke writes into the memory of a process.
func poke(pid int, address uintptr, b []byte) bool {
	n, err := unix.ProcessVMWritev(pid, []unix.Iovec{iovec(b)}, []unix.RemoteIovec{{Base: address, Len: len(b)}}, 0)
	return err == nil && n == len(b)
}

func iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return v
}
