//go:build linux

package server

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/guest/protocol"
)

// Bounds of what the guest keeps.
const (
	keptCommands   = 1024 // ended ones; the oldest are forgotten beyond
	keptOperations = 4096
)

// ErrSuperseded ends a connection when a newer one arrives.
var ErrSuperseded = errors.New("superseded by a newer connection")

// Config says where and as whom the guest works.
type Config struct {
	// Root is "" in a sandbox. Elsewhere, in tests, /workspace is below it.
	Root string
	// UID and GID are the sandbox user's. Without root they must be the process's own.
	UID, GID int
	// Home is the sandbox user's home directory.
	Home string
	// Cgroup is a directory of a cgroup v2 hierarchy to work in, "" for none.
	Cgroup string
	// PID1 makes the server collect every orphan.
	PID1 bool
	// Build is the version of the guest.
	Build string
	// Shells is how many shells wait for their command.
	Shells int
	// Runtime is a directory for the guest's own files, readable by the sandbox
	// user and writable by root alone.
	Runtime string
}

// Server is the guest of one sandbox. Connections come and go; commands stay.
type Server struct {
	cfg        Config
	generation string
	workspace  int // O_PATH descriptor of /workspace
	null       int
	forest     forest
	reaper     *reaper
	budget     *budget
	shells     *shells
	ops        operations

	owned sync.WaitGroup // everything that belongs to a command

	mu        sync.Mutex
	conn      *protocol.Conn
	bound     string
	hostname  string   // as the binding set it
	env       []string // base environment
	skew      time.Duration
	commands  map[string]*command
	ended     []string // in the order of their end
	lingering []tree   // of ended commands whose processes live on
	closed    bool
}

// Workspace is where user files are, as users see it.
const Workspace = "/workspace"

// New prepares a guest. The workspace must exist.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, budget: newBudget(), commands: map[string]*command{}, workspace: -1, null: -1}
	s.ops.results = map[string]*operation{}
	s.generation = randomID()
	s.env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + cfg.Home, "USER=sandbox", "LOGNAME=sandbox", "SHELL=/bin/bash", "LANG=C.UTF-8",
	}
	var err error
	if s.workspace, err = unix.Open(cfg.Root+Workspace, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, &os.PathError{Op: "open", Path: cfg.Root + Workspace, Err: err}
	}
	if s.null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		_ = unix.Close(s.workspace)
		return nil, &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	s.forest = scans{}
	if cfg.Cgroup != "" {
		if f, err := newCgroups(cfg.Cgroup); err == nil {
			s.forest = f
		}
	}
	s.reaper = newReaper(cfg.PID1, s.sweep)
	s.shells = newShells(s, cfg.Shells)
	return s, nil
}

// Serve speaks with a host until the connection ends, which leaves every command
// as it is. A later Serve supersedes an earlier one.
func (s *Server) Serve(rw io.ReadWriteCloser) error {
	attached := func(c *protocol.Conn) {
		s.mu.Lock()
		old := s.conn
		s.conn = c
		s.mu.Unlock()
		if old != nil {
			old.Abort(ErrSuperseded)
		}
	}
	return protocol.Serve(rw, s.hello, attached, s.accept)
}

// Close kills every command, ends the connection and waits for all of it. PID 1
// never closes; tests do.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	conn := s.conn
	var running []*command
	for _, c := range s.commands {
		running = append(running, c)
	}
	s.mu.Unlock()
	s.shells.close()
	for _, c := range running {
		<-c.started
		if c.fault == nil {
			c.kill(protocol.Kill{Cause: protocol.CauseCanceled})
		}
		c.spool.drop()
	}
	// Their processes hold the pipes that the pumps read.
	for {
		s.sweep()
		s.mu.Lock()
		left := len(s.lingering)
		for _, t := range s.lingering {
			t.kill()
		}
		s.mu.Unlock()
		if left == 0 {
			break
		}
		time.Sleep(pollFirst) // the kernel tells nobody of the end of a tree
	}
	if conn != nil {
		conn.Abort(protocol.ErrClosed)
	}
	s.owned.Wait()
	_ = unix.Close(s.workspace)
	_ = unix.Close(s.null)
}

func (s *Server) hello() protocol.Hello {
	s.mu.Lock()
	defer s.mu.Unlock()
	return protocol.Hello{Protocol: protocol.Version, Build: s.cfg.Build, Generation: s.generation, SandboxID: s.bound}
}

func (s *Server) isBound() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bound != ""
}

// now is the host's time, as far as the binding told it.
func (s *Server) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.skew)
}

// answer ends a stream. A host that is gone hears nothing, and asks again.
func (s *Server) answer(st *protocol.Stream, result protocol.Message, f *protocol.Fault) {
	_ = st.SendEnd(protocol.Answer(result, f))
}

// malformed is the answer to a request that cannot be read.
var malformed = &protocol.Fault{Reason: protocol.ReasonInternal, Text: "malformed request"}

// request decodes a request and answers if it is malformed.
func (s *Server) request(st *protocol.Stream, body []byte, m protocol.Message) bool {
	if err := protocol.Decode(body, m); err != nil {
		s.answer(st, nil, malformed)
		return false
	}
	return true
}

// accept does what the host asks for on one stream.
func (s *Server) accept(st *protocol.Stream, request []byte) {
	op, body := protocol.Operation(request)
	switch op {
	case protocol.OpPing:
		s.answer(st, nil, nil)
	case protocol.OpBind:
		var m protocol.Bind
		if s.request(st, body, &m) {
			s.answer(st, nil, s.bind(&m))
		}
	case protocol.OpStart:
		var m protocol.Start
		if s.request(st, body, &m) {
			s.start(st, &m)
		}
	case protocol.OpOutput:
		var m protocol.Output
		if s.request(st, body, &m) {
			if c := s.command(m.ID); c != nil {
				c.sendOutput(st, m.After)
			} else {
				s.answer(st, nil, noProcess)
			}
		}
	case protocol.OpProcesses:
		s.processes(st)
	case protocol.OpKill:
		var m protocol.Kill
		if s.request(st, body, &m) {
			if c := s.command(m.ID); c != nil {
				c.kill(m)
				s.answer(st, nil, nil)
			} else {
				s.answer(st, nil, noProcess)
			}
		}
	case protocol.OpForget:
		var m protocol.Forget
		if s.request(st, body, &m) {
			s.forget(m.ID)
			s.answer(st, nil, nil)
		}
	case protocol.OpDial:
		var m protocol.Port
		if s.request(st, body, &m) {
			s.dial(st, m.Port)
		}
	default:
		s.acceptFile(st, op, body)
	}
}

// bind makes a pooled sandbox somebody's, once.
func (s *Server) bind(b *protocol.Bind) *protocol.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bound != "" {
		if s.bound == b.SandboxID {
			return nil
		}
		return &protocol.Fault{Reason: protocol.ReasonConflict, Text: "the sandbox is bound to another identity"}
	}
	if b.SandboxID == "" {
		return malformed
	}
	if err := s.forest.limit(b.MaxProcesses); err != nil {
		return &protocol.Fault{Reason: protocol.ReasonInternal, Text: "set the process limit: " + err.Error()}
	}
	if b.Hostname != "" && s.cfg.PID1 {
		// Where the runtime does not allow it, it has set the name itself.
		if err := unix.Sethostname([]byte(b.Hostname)); err == nil {
			s.hostname = b.Hostname
		}
	}
	if b.Now != 0 {
		s.skew = time.Until(b.Now.Std())
	}
	s.env = mergeEnv(s.env, b.Env)
	s.bound = b.SandboxID
	return nil
}

// mergeEnv returns base with the variables of more added or replaced.
func mergeEnv(base, more []string) []string {
	out := append(make([]string, 0, len(base)+len(more)), base...)
	at := make(map[string]int, len(out))
	for i, kv := range out {
		at[envName(kv)] = i
	}
	for _, kv := range more {
		name := envName(kv)
		if i, ok := at[name]; ok {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	return out
}

func envName(kv string) string {
	name, _, _ := strings.Cut(kv, "=")
	return name
}

// randomID returns a name that nobody can guess. It asks the kernel itself, for
// crypto/rand would be a tenth of the guest's size.
func randomID() string {
	var id [12]byte
	for n := 0; n < len(id); {
		got, err := unix.Getrandom(id[n:], 0)
		if err != nil && err != unix.EINTR {
			panic("guest: no random numbers: " + err.Error())
		}
		n += max(got, 0)
	}
	return toHex(id[:])
}

// toHex writes bytes in hex; encoding/hex would bring fmt with it.
func toHex(b []byte) string {
	const digits = "0123456789abcdef"
	out := make([]byte, 0, 2*len(b))
	for _, c := range b {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}
