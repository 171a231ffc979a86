// Package runtimetest is the conformance suite of runtime drivers. It says in
// code what the comments on runtime.Driver say in words; every driver passes it.
package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/runtime/runtimetest/lineguest"
)

// Subject is the driver under test. Its instances run a guest that serves
// lineguest and answers ping with pong, generation with a text that stays the same
// as long as the guest lives, and exit by ending the instance.
type Subject struct {
	// Open starts a driver. Opening again with the same dir, after Close or after
	// the death of the process that had it open, takes over what is there.
	Open func(t *testing.T, dir string, ready runtime.ReadyFunc, capacity int) runtime.Driver
	// Spec describes an instance that can be had.
	Spec runtime.Spec
	// Leftovers lists what exists on the host on behalf of a dir: processes,
	// cgroups, files. It is empty when nothing leaks.
	Leftovers func(t *testing.T, dir string) []string
	// Cycles is how many times the leak test creates and releases.
	Cycles int
}

const patience = 30 * time.Second

// Run runs the suite.
func Run(t *testing.T, s Subject) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *bench)
	}{
		{"AcquireDialRelease", testLife},
		{"NewConnectionReachesTheSameGuest", testRedial},
		{"ReadyFails", testReadyFails},
		{"ReleaseIsIdempotent", testReleaseTwice},
		{"UnknownInstance", testUnknown},
		{"NoImage", testNoImage},
		{"PoolServesAndRefills", testPool},
		{"PoolFollowsPrepare", testPrepareLess},
		{"Capacity", testCapacity},
		{"AcquireHonoursContext", testAcquireContext},
		{"ExitIsTold", testExit},
		{"CloseKeepsClaimed", testAdopt},
		{"Closed", testClosed},
		{"ConcurrentUse", testConcurrent},
		{"CyclesLeaveNothing", testCycles},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &bench{Subject: s, dir: t.TempDir()}
			c.run(t, b)
			b.closeAll(t)
			if left := s.Leftovers(t, b.dir); len(left) > 0 {
				t.Errorf("left on the host: %v", left)
			}
		})
	}
}

// bench is what one test works with.
type bench struct {
	Subject
	dir string
	d   runtime.Driver

	mu    sync.Mutex
	conns map[string]net.Conn
}

// keep is a Ready hook that checks the guest and keeps the connection.
func (b *bench) keep(_ context.Context, in runtime.Instance, conn net.Conn) error {
	if err := ping(conn); err != nil {
		conn.Close()
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conns == nil {
		b.conns = map[string]net.Conn{}
	}
	b.conns[in.ID] = conn
	return nil
}

func (b *bench) conn(id string) net.Conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.conns[id]
}

func (b *bench) open(t *testing.T, capacity int) runtime.Driver {
	t.Helper()
	b.d = b.Open(t, b.dir, b.keep, capacity)
	return b.d
}

// closeAll releases all there is and closes the driver.
func (b *bench) closeAll(t *testing.T) {
	t.Helper()
	defer func() {
		for _, c := range b.conns { // nobody adds to them once the driver is closed
			c.Close()
		}
	}()
	if b.d == nil {
		return
	}
	list, err := b.d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range list {
		if err := b.d.Release(t.Context(), in.ID); err != nil && !errors.Is(err, runtime.ErrClosed) {
			t.Errorf("releasing: %v", err)
		}
	}
	if err := b.d.Close(t.Context()); err != nil {
		t.Errorf("closing: %v", err)
	}
	if _, open := <-b.d.Exits(); open {
		t.Error("exits: an instance ended by itself, or the channel is not closed")
	}
}

func (b *bench) acquire(t *testing.T) runtime.Instance {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	in, err := b.d.Acquire(ctx, b.Spec)
	if err != nil {
		t.Fatalf("acquire: %v", err)
	}
	return in
}

func ping(c net.Conn) error {
	answer, err := lineguest.Ask(c, "ping", 10*time.Second)
	if err == nil && answer != "pong" {
		err = fmt.Errorf("the guest answered %q", answer)
	}
	return err
}

// eventually waits for a state that is reached in the background.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not reached: %s", what)
		}
		time.Sleep(5 * time.Millisecond) // polls, as there is nothing to wait on
	}
}

func (b *bench) list(t *testing.T) []runtime.Instance {
	t.Helper()
	list, err := b.d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// idle counts the instances that wait, without those that are still being made.
func (b *bench) idle(t *testing.T) int {
	t.Helper()
	n := 0
	for _, in := range b.list(t) {
		if !in.Claimed && b.conn(in.ID) != nil {
			n++
		}
	}
	return n
}

func testLife(t *testing.T, b *bench) {
	b.open(t, 10)
	in := b.acquire(t)
	if in.ID == "" || len(in.ID) > 40 || !in.Claimed || in.Ended || in.Outdated {
		t.Errorf("instance %+v", in)
	}
	if in.ImageID != b.Spec.ImageID || in.Resources != b.Spec.Resources {
		t.Errorf("instance %+v is not what was asked for: %+v", in, b.Spec)
	}
	if b.conn(in.ID) == nil {
		t.Fatal("the Ready hook was not called before Acquire returned")
	}
	if err := ping(b.conn(in.ID)); err != nil {
		t.Error(err)
	}
	if list := b.list(t); len(list) != 1 || list[0].ID != in.ID || !list[0].Claimed {
		t.Errorf("list: %+v", list)
	}
	st, err := b.d.Stats(t.Context(), in.ID)
	if err != nil || st.MemoryBytes <= 0 || st.CPU <= 0 || st.Processes <= 0 {
		t.Errorf("stats: %+v, %v", st, err)
	}
	if err := b.d.Release(t.Context(), in.ID); err != nil {
		t.Errorf("release: %v", err)
	}
	if err := ping(b.conn(in.ID)); err == nil {
		t.Error("the guest answers after the release")
	}
	if list := b.list(t); len(list) != 0 {
		t.Errorf("list after release: %+v", list)
	}
}

func testRedial(t *testing.T, b *bench) {
	b.open(t, 10)
	in := b.acquire(t)
	first, err := lineguest.Ask(b.conn(in.ID), "generation", patience)
	if err != nil {
		t.Fatal(err)
	}
	b.conn(in.ID).Close()
	for range 3 {
		c, err := b.d.Dial(t.Context(), in.ID)
		if err != nil {
			t.Fatalf("dial: %v", err)
		}
		again, err := lineguest.Ask(c, "generation", patience)
		if err != nil || again != first {
			t.Errorf("another guest answered: %q, %v", again, err)
		}
		c.Close()
	}
}

func testReadyFails(t *testing.T, b *bench) {
	refused := errors.New("refused by the test")
	b.d = b.Open(t, b.dir, func(_ context.Context, _ runtime.Instance, c net.Conn) error {
		c.Close()
		return refused
	}, 10)
	if in, err := b.d.Acquire(t.Context(), b.Spec); !errors.Is(err, refused) {
		t.Errorf("acquire: %+v, %v", in, err)
	}
	if list := b.list(t); len(list) != 0 {
		t.Errorf("a refused instance is listed: %+v", list)
	}
}

func testReleaseTwice(t *testing.T, b *bench) {
	b.open(t, 10)
	in := b.acquire(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := b.d.Release(t.Context(), in.ID); err != nil {
				t.Errorf("release: %v", err)
			}
		})
	}
	wg.Wait()
	if err := b.d.Release(t.Context(), in.ID); err != nil {
		t.Errorf("release of what is gone: %v", err)
	}
}

func testUnknown(t *testing.T, b *bench) {
	b.open(t, 10)
	const id = "nosuchinstance00"
	if err := b.d.Release(t.Context(), id); err != nil {
		t.Errorf("release: %v", err)
	}
	if _, err := b.d.Dial(t.Context(), id); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("dial: %v", err)
	}
	if _, err := b.d.Stats(t.Context(), id); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("stats: %v", err)
	}
}

func testNoImage(t *testing.T, b *bench) {
	b.open(t, 10)
	spec := b.Spec
	spec.ImagePath = ""
	if _, err := b.d.Acquire(t.Context(), spec); !errors.Is(err, runtime.ErrNoImage) {
		t.Errorf("acquire: %v", err)
	}
	if list := b.list(t); len(list) != 0 {
		t.Errorf("list: %+v", list)
	}
}

func testPool(t *testing.T, b *bench) {
	b.open(t, 10)
	b.d.Prepare([]runtime.PoolTarget{{Spec: b.Spec, Max: 2}})
	eventually(t, "a full pool", func() bool { return b.idle(t) == 2 })
	seen := map[string]bool{}
	for range 4 { // more than the pool holds
		in := b.acquire(t)
		if seen[in.ID] {
			t.Fatalf("instance %s was given away twice", in.ID)
		}
		seen[in.ID] = true
		if err := ping(b.conn(in.ID)); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "a full pool again", func() bool { return b.idle(t) == 2 })
}

func testPrepareLess(t *testing.T, b *bench) {
	b.open(t, 10)
	b.d.Prepare([]runtime.PoolTarget{{Spec: b.Spec, Max: 1}})
	eventually(t, "a full pool", func() bool { return b.idle(t) == 1 })
	b.d.Prepare(nil)
	if b.acquire(t); b.idle(t) > 1 {
		t.Error("a pool that nobody wants grows")
	}
}

func testCapacity(t *testing.T, b *bench) {
	b.open(t, 2)
	if got := b.d.Capacity(); got != 2 {
		t.Errorf("capacity %d", got)
	}
	first := b.acquire(t)
	b.acquire(t)
	if _, err := b.d.Acquire(t.Context(), b.Spec); !errors.Is(err, runtime.ErrCapacity) {
		t.Errorf("acquire beyond capacity: %v", err)
	}
	if err := b.d.Release(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	b.acquire(t)
}

func testAcquireContext(t *testing.T, b *bench) {
	b.open(t, 10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.d.Acquire(ctx, b.Spec); !errors.Is(err, context.Canceled) {
		t.Errorf("acquire: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if in, err := b.d.Acquire(ctx, b.Spec); err == nil {
		t.Logf("%s was faster than the context", in.ID)
	} else if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("acquire: %v", err)
	}
	b.acquire(t) // and nothing is stuck
}

func testExit(t *testing.T, b *bench) {
	b.open(t, 10)
	in, other := b.acquire(t), b.acquire(t)
	if _, err := lineguest.Ask(b.conn(in.ID), "exit", patience); err == nil {
		t.Error("the guest answered instead of ending")
	}
	select {
	case e := <-b.d.Exits():
		if e.ID != in.ID || e.Cause == "" || e.At.IsZero() {
			t.Errorf("exit: %+v", e)
		}
	case <-time.After(patience):
		t.Fatal("the end was not told")
	}
	if _, err := b.d.Dial(t.Context(), in.ID); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("dialling what has ended: %v", err)
	}
	for _, l := range b.list(t) {
		if l.Ended != (l.ID == in.ID) {
			t.Errorf("list: %+v", l)
		}
	}
	if err := b.d.Release(t.Context(), in.ID); err != nil {
		t.Errorf("release: %v", err)
	}
	if err := ping(b.conn(other.ID)); err != nil {
		t.Errorf("a neighbour suffered: %v", err)
	}
}

func testAdopt(t *testing.T, b *bench) {
	first := b.open(t, 10)
	in := b.acquire(t)
	generation, err := lineguest.Ask(b.conn(in.ID), "generation", patience)
	if err != nil {
		t.Fatal(err)
	}
	first.Prepare([]runtime.PoolTarget{{Spec: b.Spec, Max: 2}})
	eventually(t, "a full pool", func() bool { return b.idle(t) == 2 })
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	second := b.open(t, 10)
	list := b.list(t)
	if len(list) != 1 || list[0].ID != in.ID || !list[0].Claimed || list[0].Ended || list[0].Outdated {
		t.Fatalf("list of the next driver: %+v", list)
	}
	if list[0].Resources != in.Resources || !list[0].CreatedAt.Equal(in.CreatedAt) {
		t.Errorf("forgotten: %+v was %+v", list[0], in)
	}
	c, err := second.Dial(t.Context(), in.ID)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	defer c.Close()
	if again, err := lineguest.Ask(c, "generation", patience); err != nil || again != generation {
		t.Errorf("another guest answered: %q, %v", again, err)
	}
	if _, err := second.Stats(t.Context(), in.ID); err != nil {
		t.Errorf("stats: %v", err)
	}
	if _, err := lineguest.Ask(c, "exit", patience); err == nil {
		t.Error("the guest answered instead of ending")
	}
	select {
	case e := <-second.Exits():
		if e.ID != in.ID {
			t.Errorf("exit: %+v", e)
		}
	case <-time.After(patience):
		t.Fatal("the end of an adopted instance was not told")
	}
}

func testClosed(t *testing.T, b *bench) {
	b.open(t, 10)
	if err := b.d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.d.Acquire(t.Context(), b.Spec); !errors.Is(err, runtime.ErrClosed) {
		t.Errorf("acquire: %v", err)
	}
	if err := b.d.Close(t.Context()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
}

func testConcurrent(t *testing.T, b *bench) {
	b.open(t, 100)
	b.d.Prepare([]runtime.PoolTarget{{Spec: b.Spec, Max: 3}})
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for range 3 {
				in, err := b.d.Acquire(t.Context(), b.Spec)
				if err != nil {
					t.Errorf("acquire: %v", err)
					return
				}
				if err := ping(b.conn(in.ID)); err != nil {
					t.Errorf("ping: %v", err)
				}
				if err := b.d.Release(t.Context(), in.ID); err != nil {
					t.Errorf("release: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func testCycles(t *testing.T, b *bench) {
	b.open(t, 10)
	b.d.Prepare([]runtime.PoolTarget{{Spec: b.Spec, Max: 2}})
	for range b.Cycles {
		in := b.acquire(t)
		if err := b.d.Release(t.Context(), in.ID); err != nil {
			t.Fatalf("release: %v", err)
		}
		b.conn(in.ID).Close()
	}
}
