package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/sandbox"
)

// live is the in-memory side of a sandbox that is not over yet.
type live struct {
	id        string
	runtimeID string // set before ready is closed

	ready chan struct{} // closed once usable, or once it is clear that it never will be
	gone  chan struct{} // closed when the sandbox takes no more work
	ended chan struct{} // closed when its end is recorded

	extend    sync.Mutex    // serialises extensions
	transfers chan struct{} // one place for each transfer under way

	mu       sync.Mutex
	err      error // why it never became ready
	session  guest.Session
	dialing  chan struct{} // closed when a dial under way is over
	deadline *time.Timer
	active   int // commands and code runs under way
	lastUse  time.Time
	reason   sandbox.DestroyedReason // first cause of the end
	cancelP  context.CancelFunc      // ends provisioning
}

func newLive(id string) *live {
	return &live{
		id: id, ready: make(chan struct{}), gone: make(chan struct{}), ended: make(chan struct{}),
		transfers: make(chan struct{}, maxTransfers), lastUse: time.Now(),
	}
}

// maxTransfers bounds the files that move in or out of one sandbox at a time, so
// that readers who do not read leave room for everything else.
const maxTransfers = 64

// transfer takes a place for a transfer; done gives it back.
func (l *live) transfer() (done func(), err error) {
	select {
	case l.transfers <- struct{}{}:
		return sync.OnceFunc(func() { <-l.transfers }), nil
	default:
		return nil, sandbox.NewError(sandbox.CodeQuotaExceeded, "%d transfers are under way in sandbox %s; wait for one to end.", maxTransfers, l.id).
			With("quota", "sandbox_transfers").With("limit", maxTransfers).With("current", maxTransfers)
	}
}

// stop lets go of the sandbox without ending it.
func (l *live) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.deadline != nil {
		l.deadline.Stop()
	}
	if l.session != nil {
		_ = l.session.Close()
	}
}

// begin counts a piece of work that makes the sandbox running; the returned
// function ends it.
func (l *live) begin() (end func()) {
	l.mu.Lock()
	l.active++
	l.lastUse = time.Now()
	l.mu.Unlock()
	return func() {
		l.mu.Lock()
		l.active--
		l.lastUse = time.Now()
		l.mu.Unlock()
	}
}

func (l *live) touch() {
	l.mu.Lock()
	l.lastUse = time.Now()
	l.mu.Unlock()
}

func (l *live) isGone() bool {
	select {
	case <-l.gone:
		return true
	default:
		return false
	}
}

// status refines the stored status by what only this process knows.
func (l *live) status(stored sandbox.Status, idleAfter bool) sandbox.Status {
	if stored != sandbox.StatusReady {
		return stored
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.active > 0:
		return sandbox.StatusRunning
	case idleAfter && time.Since(l.lastUse) > time.Minute:
		return sandbox.StatusIdle
	}
	return stored
}

// instanceReady is the driver's ready hook: it connects to the guest of a fresh
// instance and runs a command in it, so that a ready instance is one that works.
func (s *Service) instanceReady(ctx context.Context, in runtime.Instance, conn net.Conn) error {
	sess, err := s.connect(ctx, conn)
	if err != nil {
		return fmt.Errorf("connecting to the guest of a new instance: %w", err)
	}
	if err := probe(ctx, sess, in.ID); err != nil {
		_ = sess.Close()
		return fmt.Errorf("running the first command of a new instance: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		_ = sess.Close()
		return runtime.ErrClosed
	}
	s.stash[in.ID] = sess
	return nil
}

func probe(ctx context.Context, sess guest.Session, id string) error {
	id = "probe-" + id
	p, err := sess.Start(ctx, guest.StartRequest{ID: id, Command: "true", Cwd: workspace})
	if err != nil {
		return err
	}
	exit, err := p.Output(ctx, 0, func([]sandbox.LogChunk) error { return nil })
	if err != nil {
		return err
	}
	if exit.Code != 0 || exit.Signal != 0 {
		return fmt.Errorf("true ended with code %d, signal %d", exit.Code, exit.Signal)
	}
	return sess.Forget(ctx, id)
}

// takeStash returns the session made when the instance became ready.
func (s *Service) takeStash(instanceID string) guest.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	sess := s.stash[instanceID]
	delete(s.stash, instanceID)
	return sess
}

// sessionOf returns a working session to the guest, dialing anew where the last
// one broke. Only one dial per sandbox is under way at a time, since a new
// connection supersedes the one before.
func (s *Service) sessionOf(ctx context.Context, l *live) (guest.Session, error) {
	for {
		l.mu.Lock()
		if l.session != nil {
			select {
			case <-l.session.Done():
				l.session = nil
			default:
				sess := l.session
				l.mu.Unlock()
				return sess, nil
			}
		}
		if wait := l.dialing; wait != nil {
			l.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-l.gone:
				return nil, errDestroyed(l.id)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if l.isGone() {
			l.mu.Unlock()
			return nil, errDestroyed(l.id)
		}
		done := make(chan struct{})
		l.dialing = done
		l.mu.Unlock()

		sess, err := s.dial(ctx, l.runtimeID)
		l.mu.Lock()
		l.dialing = nil
		if err == nil {
			l.session = sess
		}
		l.mu.Unlock()
		close(done)
		if err != nil {
			if l.isGone() || errors.Is(err, runtime.ErrNotFound) {
				return nil, errDestroyed(l.id)
			}
			return nil, fmt.Errorf("connecting to the guest of %s: %w", l.id, err)
		}
		return sess, nil
	}
}

// dialTimeout bounds one connection to a guest: a healthy one takes milliseconds.
const dialTimeout = 10 * time.Second

func (s *Service) dial(ctx context.Context, runtimeID string) (guest.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := s.driver.Dial(ctx, runtimeID)
	if err != nil {
		return nil, err
	}
	return s.connect(ctx, conn)
}

func (s *Service) lookupLive(id string) *live {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id]
}

func errDestroyed(id string) *sandbox.Error {
	return sandbox.NewError(sandbox.CodeSandboxDestroyed, "Sandbox %s has ended.", id)
}

func errNotFound(what, id string) *sandbox.Error {
	return sandbox.NewError(sandbox.CodeNotFound, "No such %s: %s.", what, id)
}
