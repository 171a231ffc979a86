package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/template"
)

// host stands for the machine: its instances outlive the service, like real ones.
type host struct {
	mu        sync.Mutex
	next      int
	capacity  int
	slow      chan struct{} // if not nil, Acquire waits for it
	refuse    error         // if not nil, Acquire fails with it
	instances map[string]*machine
}

func newHost() *host { return &host{capacity: 100, instances: map[string]*machine{}} }

func (h *host) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.instances)
}

// machine is one instance with the state of its guest.
type machine struct {
	runtime.Instance
	mu       sync.Mutex
	bound    string
	dead     bool
	started  map[string]int // how often each id was really started
	commands map[string]*process
	files    map[string]string
	sessions []*session
}

// cut breaks all connections to the guest, as the end of a server would.
func (m *machine) cut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sessions {
		s.end()
	}
	m.sessions = nil
}

// driver is one process's view of the host.
type driver struct {
	h     *host
	ready runtime.ReadyFunc
	exits chan runtime.Exit
}

func newDriver(h *host, ready runtime.ReadyFunc) *driver {
	return &driver{h: h, ready: ready, exits: make(chan runtime.Exit, 16)}
}

// conn carries the machine to the connect function.
type conn struct {
	net.Conn
	m *machine
}

func (d *driver) Acquire(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	d.h.mu.Lock()
	slow, refuse := d.h.slow, d.h.refuse
	d.h.mu.Unlock()
	if refuse != nil {
		return runtime.Instance{}, refuse
	}
	if slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
			return runtime.Instance{}, ctx.Err()
		}
	}
	d.h.mu.Lock()
	d.h.next++
	m := &machine{
		Instance: runtime.Instance{ID: fmt.Sprintf("inst-%04d", d.h.next), ImageID: spec.ImageID, Resources: spec.Resources, Claimed: true},
		started:  map[string]int{}, commands: map[string]*process{}, files: map[string]string{},
	}
	d.h.instances[m.ID] = m
	d.h.mu.Unlock()
	if err := d.ready(ctx, m.Instance, conn{m: m}); err != nil {
		return runtime.Instance{}, err
	}
	return m.Instance, nil
}

func (d *driver) machine(id string) *machine {
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	return d.h.instances[id]
}

func (d *driver) Dial(_ context.Context, id string) (net.Conn, error) {
	if m := d.machine(id); m != nil {
		return conn{m: m}, nil
	}
	return nil, runtime.ErrNotFound
}

func (d *driver) Release(_ context.Context, id string) error {
	m := d.machine(id)
	if m == nil {
		return nil
	}
	m.mu.Lock()
	m.dead = true
	for _, p := range m.commands {
		p.vanish()
	}
	m.mu.Unlock()
	m.cut()
	d.h.mu.Lock()
	delete(d.h.instances, id)
	d.h.mu.Unlock()
	return nil
}

func (d *driver) List(context.Context) ([]runtime.Instance, error) {
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	var out []runtime.Instance
	for _, m := range d.h.instances {
		out = append(out, m.Instance)
	}
	return out, nil
}

func (d *driver) Stats(context.Context, string) (runtime.Stats, error) { return runtime.Stats{}, nil }
func (d *driver) Prepare([]runtime.PoolTarget)                         {}
func (d *driver) Exits() <-chan runtime.Exit                           { return d.exits }
func (d *driver) Capacity() int                                        { return d.h.capacity }
func (d *driver) Close(context.Context) error                          { close(d.exits); return nil }

func connect(_ context.Context, c net.Conn) (guest.Session, error) {
	m := c.(conn).m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, guest.ErrDisconnected
	}
	s := &session{m: m, done: make(chan struct{})}
	m.sessions = append(m.sessions, s)
	return s, nil
}

// session speaks to a machine whose shell knows four commands: true, exit N,
// print TEXT and hang.
type session struct {
	guest.Session // what the tests do not use panics
	m             *machine
	once          sync.Once
	done          chan struct{}
}

func (s *session) end()                  { s.once.Do(func() { close(s.done) }) }
func (s *session) Done() <-chan struct{} { return s.done }
func (s *session) Err() error            { return guest.ErrDisconnected }
func (s *session) Close() error          { s.end(); return nil }

func (s *session) broken() error {
	select {
	case <-s.done:
		return guest.ErrDisconnected
	default:
		return nil
	}
}

func (s *session) Bind(_ context.Context, b guest.Binding) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.m.bound != "" && s.m.bound != b.SandboxID {
		return errors.New("bound to another sandbox")
	}
	s.m.bound = b.SandboxID
	return s.broken()
}

type process struct {
	id     string
	mu     sync.Mutex
	chunks []sandbox.LogChunk
	exit   *guest.Exit
	gone   bool
	change chan struct{}
}

func (p *process) update(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn()
	close(p.change)
	p.change = make(chan struct{})
}

func (p *process) vanish() { p.update(func() { p.gone = true }) }

func (p *process) print(stream sandbox.Stream, text string) {
	p.update(func() {
		p.chunks = append(p.chunks, sandbox.LogChunk{Seq: int64(len(p.chunks)) + 1, Stream: stream, Data: []byte(text)})
	})
}

func (p *process) finish(e guest.Exit) {
	p.update(func() {
		if p.exit == nil {
			e.Start = time.Now().Add(-time.Millisecond)
			e.End = time.Now()
			p.exit = &e
		}
	})
}

func (s *session) Start(_ context.Context, r guest.StartRequest) (guest.Process, error) {
	if err := s.broken(); err != nil {
		return nil, err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	p := s.m.commands[r.ID]
	if p == nil {
		p = &process{id: r.ID, change: make(chan struct{})}
		s.m.commands[r.ID] = p
		s.m.started[r.ID]++
		verb, arg, _ := strings.Cut(r.Command, " ")
		switch verb {
		case "true":
			p.finish(guest.Exit{Cause: guest.CauseExited})
		case "exit":
			var code int
			_, _ = fmt.Sscan(arg, &code)
			p.finish(guest.Exit{Cause: guest.CauseExited, Code: code})
		case "print":
			p.print(sandbox.Stdout, arg)
			p.finish(guest.Exit{Cause: guest.CauseExited})
		case "segv":
			p.finish(guest.Exit{Cause: guest.CauseExited, Signal: 11})
		case "hang":
			if r.Timeout > 0 {
				time.AfterFunc(r.Timeout, func() { p.finish(guest.Exit{Cause: guest.CauseTimeout}) })
			}
		}
	}
	return attached{p, s}, nil
}

func (s *session) Attach(_ context.Context, id string) (guest.Process, error) {
	if err := s.broken(); err != nil {
		return nil, err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if p := s.m.commands[id]; p != nil {
		return attached{p, s}, nil
	}
	return nil, guest.ErrNoProcess
}

func (s *session) Kill(_ context.Context, id string, grace time.Duration, cause guest.Cause) error {
	s.m.mu.Lock()
	p := s.m.commands[id]
	s.m.mu.Unlock()
	if p == nil {
		return guest.ErrNoProcess
	}
	p.finish(guest.Exit{Cause: cause, Killed: grace == 0})
	return nil
}

func (s *session) Forget(_ context.Context, id string) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	delete(s.m.commands, id)
	return nil
}

type attached struct {
	p *process
	s *session
}

func (a attached) ID() string { return a.p.id }

func (a attached) Output(ctx context.Context, after int64, sink func([]sandbox.LogChunk) error) (guest.Exit, error) {
	for {
		a.p.mu.Lock()
		fresh := slices.Clone(a.p.chunks[min(after, int64(len(a.p.chunks))):])
		exit, gone, change := a.p.exit, a.p.gone, a.p.change
		a.p.mu.Unlock()
		if len(fresh) > 0 {
			if err := sink(fresh); err != nil {
				return guest.Exit{}, err
			}
			after += int64(len(fresh))
			continue
		}
		if gone {
			return guest.Exit{}, guest.ErrDisconnected
		}
		if exit != nil {
			return *exit, nil
		}
		select {
		case <-change:
		case <-a.s.done:
			return guest.Exit{}, guest.ErrDisconnected
		case <-ctx.Done():
			return guest.Exit{}, ctx.Err()
		}
	}
}

func (s *session) ResolveDir(_ context.Context, p string) (string, error) {
	if p == "/workspace/no" {
		return "", sandbox.NewError(sandbox.CodeFileNotFound, "no such directory")
	}
	return p, nil
}

type file struct {
	io.Reader
	info sandbox.FileInfo
}

func (f file) Close() error           { return nil }
func (f file) Info() sandbox.FileInfo { return f.info }

func (s *session) Open(_ context.Context, p string, offset int64) (guest.File, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	text, ok := s.m.files[p]
	if !ok {
		return nil, sandbox.NewError(sandbox.CodeFileNotFound, "no such file")
	}
	return file{strings.NewReader(text[offset:]), sandbox.FileInfo{Name: path.Base(p), Path: p, Size: int64(len(text))}}, nil
}

func (s *session) Write(_ context.Context, w guest.WriteRequest, r io.Reader) (sandbox.FileInfo, error) {
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil {
		return sandbox.FileInfo{}, err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.files[w.Path] = b.String()
	return sandbox.FileInfo{Name: path.Base(w.Path), Path: w.Path, Size: int64(b.Len())}, nil
}

func (s *session) CheckWrite(context.Context, guest.WriteRequest) error { return nil }

// catalogue has one template that is built and one that is not.
type catalogue struct{}

var built = template.Version{ID: "tplv_00000000000000000000000001", TemplateID: "tpl_00000000000000000000000001", Slug: "base", Version: "1", ComputeMultiplier: 1}

func (catalogue) Catalogue() []template.Entry {
	return []template.Entry{{ID: built.TemplateID, Slug: "base"}, {ID: "tpl_2", Slug: "python"}}
}

func (catalogue) Current(slug string) (template.Version, error) {
	if slug == "base" {
		return built, nil
	}
	return template.Version{}, template.ErrNotBuilt
}

func (catalogue) Versions(slug string) ([]template.Version, error) {
	if slug == "base" {
		return []template.Version{built}, nil
	}
	return nil, nil
}

func (catalogue) ByVersion(id string) (template.Version, error) {
	if id == built.ID {
		return built, nil
	}
	return template.Version{}, template.ErrUnknown
}

type netConn = net.Conn

func exitCode(code int) guest.Exit { return guest.Exit{Cause: guest.CauseExited, Code: code} }
