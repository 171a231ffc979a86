// Package fake is a runtime driver without isolation, for tests of the packages
// above the driver: its instances are goroutines, and its guest is a function of
// the test's. It must never run anybody's code.
package fake

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"crownest.dev/crownest/internal/runtime"
)

// ServeFunc is the guest: it serves one connection of one instance until the
// connection or the context ends. The context ends with the instance.
type ServeFunc func(ctx context.Context, id string, conn net.Conn)

// Host is what outlives a driver: tests restart the server by closing one driver
// and opening another one on the same host.
type Host struct {
	serve ServeFunc

	mu        sync.Mutex
	instances map[string]*instance
	exits     func(runtime.Exit) // of the driver that is open
}

type instance struct {
	runtime.Instance
	ctx    context.Context
	cancel context.CancelFunc
	served sync.WaitGroup
	conn   net.Conn // the guest's end of the newest connection
}

// NewHost returns a host without instances whose guests are served by serve.
func NewHost(serve ServeFunc) *Host {
	return &Host{serve: serve, instances: map[string]*instance{}}
}

// End makes an instance end by itself, as a crash would.
func (h *Host) End(id, cause string) {
	h.mu.Lock()
	in := h.instances[id]
	if in == nil || in.Ended {
		h.mu.Unlock()
		return
	}
	in.Ended = true
	tell := h.exits
	h.mu.Unlock()
	in.cancel()
	if tell != nil {
		tell(runtime.Exit{ID: id, Cause: cause, At: time.Now()})
	}
}

// Options configures a Driver.
type Options struct {
	Ready    runtime.ReadyFunc
	Capacity int // 0 = 1000
}

// Driver implements runtime.Driver.
type Driver struct {
	host   *Host
	opts   Options
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	exits  chan runtime.Exit

	filling sync.Mutex

	mu      sync.Mutex
	closed  bool
	claimed map[string]bool
	targets []runtime.PoolTarget
}

var _ runtime.Driver = (*Driver)(nil)

// New opens a driver on the host. One at a time may be open.
func New(h *Host, opts Options) *Driver {
	if opts.Capacity == 0 {
		opts.Capacity = 1000
	}
	d := &Driver{host: h, opts: opts, exits: make(chan runtime.Exit, 64), claimed: map[string]bool{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.exits = d.tell
	for id, in := range h.instances {
		if in.Claimed {
			d.claimed[id] = true
		}
	}
	return d
}

func (d *Driver) tell(e runtime.Exit) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || !d.claimed[e.ID] {
		return
	}
	d.tasks.Go(func() {
		select {
		case d.exits <- e:
		case <-d.ctx.Done():
		}
	})
}

// Acquire implements runtime.Driver.
func (d *Driver) Acquire(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	fail := func(err error) (runtime.Instance, error) {
		return runtime.Instance{}, fmt.Errorf("acquiring an instance: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if spec.ImagePath == "" {
		return fail(runtime.ErrNoImage)
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return fail(runtime.ErrClosed)
	}
	if len(d.claimed) >= d.opts.Capacity {
		d.mu.Unlock()
		return fail(runtime.ErrCapacity)
	}
	placeholder := rand.Text()
	d.claimed[placeholder] = true
	d.tasks.Add(1)
	defer d.tasks.Done()
	d.mu.Unlock()

	in := d.takeIdle(spec)
	var err error
	if in == nil {
		in, err = d.launch(ctx, spec, true)
	}
	d.mu.Lock()
	delete(d.claimed, placeholder)
	if err == nil {
		d.claimed[in.ID] = true
	}
	d.mu.Unlock()
	if err != nil {
		return fail(err)
	}
	d.refill()
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	return in.Instance, nil
}

func (d *Driver) takeIdle(spec runtime.Spec) *instance {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	for _, in := range d.host.instances {
		if !in.Claimed && !in.Ended && in.ImageID == spec.ImageID && in.Resources == spec.Resources {
			in.Claimed = true
			return in
		}
	}
	return nil
}

func (d *Driver) launch(ctx context.Context, spec runtime.Spec, claimed bool) (*instance, error) {
	in := &instance{Instance: runtime.Instance{
		ID: strings.ToLower(rand.Text()), ImageID: spec.ImageID, Resources: spec.Resources,
		CreatedAt: time.Now().UTC(), Claimed: claimed,
	}}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	conn := d.host.connect(in)
	if d.opts.Ready == nil {
		conn.Close()
	} else if err := d.opts.Ready(ctx, in.Instance, conn); err != nil {
		in.end()
		return nil, fmt.Errorf("waiting for the guest: %w", err)
	}
	d.host.mu.Lock()
	d.host.instances[in.ID] = in
	d.host.mu.Unlock()
	return in, nil
}

// connect makes a connection that supersedes the earlier one.
func (h *Host) connect(in *instance) net.Conn {
	host, guest := net.Pipe()
	h.mu.Lock()
	defer h.mu.Unlock()
	if in.conn != nil {
		in.conn.Close()
	}
	in.conn = guest
	in.served.Go(func() {
		stop := context.AfterFunc(in.ctx, func() { guest.Close() })
		defer stop()
		defer guest.Close()
		h.serve(in.ctx, in.ID, guest)
	})
	return host
}

func (in *instance) end() {
	in.cancel()
	in.served.Wait()
}

// Dial implements runtime.Driver.
func (d *Driver) Dial(ctx context.Context, id string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dialling instance %s: %w", id, err)
	}
	d.host.mu.Lock()
	in := d.host.instances[id]
	gone := in == nil || in.Ended
	d.host.mu.Unlock()
	if gone {
		return nil, fmt.Errorf("dialling instance %s: %w", id, runtime.ErrNotFound)
	}
	return d.host.connect(in), nil
}

// Release implements runtime.Driver.
func (d *Driver) Release(_ context.Context, id string) error {
	d.host.mu.Lock()
	in := d.host.instances[id]
	delete(d.host.instances, id)
	d.host.mu.Unlock()
	d.mu.Lock()
	delete(d.claimed, id)
	d.mu.Unlock()
	if in != nil {
		in.end()
	}
	return nil
}

// Stats implements runtime.Driver. A fake instance uses nothing.
func (d *Driver) Stats(_ context.Context, id string) (runtime.Stats, error) {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if d.host.instances[id] == nil {
		return runtime.Stats{}, fmt.Errorf("measuring instance %s: %w", id, runtime.ErrNotFound)
	}
	return runtime.Stats{CPU: time.Millisecond, MemoryBytes: 1, Processes: 1}, nil
}

// List implements runtime.Driver.
func (d *Driver) List(context.Context) ([]runtime.Instance, error) {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	list := make([]runtime.Instance, 0, len(d.host.instances))
	for _, in := range d.host.instances {
		list = append(list, in.Instance)
	}
	slices.SortFunc(list, func(a, b runtime.Instance) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// Prepare implements runtime.Driver. It keeps exactly the most that it may.
func (d *Driver) Prepare(targets []runtime.PoolTarget) {
	d.mu.Lock()
	d.targets = slices.Clone(targets)
	d.mu.Unlock()
	d.refill()
}

func (d *Driver) refill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	for _, t := range d.targets {
		d.tasks.Go(func() { d.fill(t) })
	}
}

func (d *Driver) fill(t runtime.PoolTarget) {
	// One at a time, or several would each add what is missing.
	d.filling.Lock()
	defer d.filling.Unlock()
	for d.ctx.Err() == nil {
		idle := 0
		d.host.mu.Lock()
		for _, in := range d.host.instances {
			if !in.Claimed && in.ImageID == t.Spec.ImageID {
				idle++
			}
		}
		d.host.mu.Unlock()
		if idle >= t.Max {
			return
		}
		if _, err := d.launch(d.ctx, t.Spec, false); err != nil {
			return
		}
	}
}

// Exits implements runtime.Driver.
func (d *Driver) Exits() <-chan runtime.Exit { return d.exits }

// Capacity implements runtime.Driver.
func (d *Driver) Capacity() int { return d.opts.Capacity }

// Close implements runtime.Driver.
func (d *Driver) Close(ctx context.Context) error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	d.mu.Unlock()
	d.cancel()
	d.tasks.Wait()
	d.host.mu.Lock()
	d.host.exits = nil
	d.host.mu.Unlock()
	list, err := d.List(ctx)
	for _, in := range list {
		if !in.Claimed {
			err = errors.Join(err, d.Release(ctx, in.ID))
		}
	}
	close(d.exits)
	return err
}
