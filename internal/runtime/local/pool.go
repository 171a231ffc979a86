package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/runtime/local/cgroup"
	"crownest.dev/crownest/internal/sandbox"
)

// poolKey tells instances apart that cannot stand in for each other.
type poolKey struct {
	imageID   string
	resources sandbox.Resources
}

// pool holds the running instances of one kind that nobody claimed yet, and those
// who wait for one. Driver.mu guards it.
type pool struct {
	spec      runtime.Spec
	max       int // the most that may wait
	target    int // how many should wait at present
	idle      []*instance
	low       int // the fewest that waited since the last look
	launching int
	waiters   []*waiter
	failures  int
	notBefore time.Time // after failures, no refill until then
	claimedAt time.Time // the last claim of a waiting instance
	quieting  bool      // somebody waits for quiet, to refill
}

// waiter is an Acquire call that found no instance.
type waiter struct {
	got     chan acquired // buffered, gets one value
	retried bool          // a launch for it has failed
}

type acquired struct {
	in  *instance
	err error
}

const (
	// refillDelay keeps the refill out of the way of what a claim is made for: the
	// rest of the create and the first command. A pool that is half empty does not
	// wait for it.
	refillDelay  = 150 * time.Millisecond
	firstBackoff = 500 * time.Millisecond
	maxBackoff   = 30 * time.Second
)

// Acquire implements runtime.Driver.
func (d *Driver) Acquire(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	if err := ctx.Err(); err != nil {
		return runtime.Instance{}, fmt.Errorf("acquiring an instance: %w", err)
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return runtime.Instance{}, fmt.Errorf("acquiring an instance: %w", runtime.ErrClosed)
	}
	if d.claimed+d.waiting >= d.capacity || d.waiting >= maxWaiting {
		d.mu.Unlock()
		return runtime.Instance{}, fmt.Errorf("acquiring an instance: %w", runtime.ErrCapacity)
	}
	p := d.pool(spec)
	if n := len(p.idle); n > 0 {
		in := p.idle[n-1]
		p.idle = p.idle[:n-1]
		d.claim(in)
		p.claimedAt = time.Now()
		p.demand()
		d.schedule()
		d.refillWhenQuiet(p)
		d.mu.Unlock()
		return d.claimed2disk(ctx, in)
	}
	p.demand()
	w := &waiter{got: make(chan acquired, 1)}
	p.waiters = append(p.waiters, w)
	d.waiting++
	d.schedule()
	hurried := d.hurry(p)
	d.mu.Unlock()
	for _, in := range hurried {
		// It may not have its cgroup yet; then the launch sees that it is urgent.
		_ = in.group.SetWeight(cgroup.WeightNormal)
	}

	select {
	case a := <-w.got:
		if a.err != nil {
			return runtime.Instance{}, fmt.Errorf("acquiring an instance: %w", a.err)
		}
		return d.claimed2disk(ctx, a.in)
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(p.waiters, w); i >= 0 {
		p.waiters = slices.Delete(p.waiters, i, i+1)
		d.waiting--
	} else if a := <-w.got; a.in != nil {
		// It came at the same moment: somebody else may have it.
		d.claimed--
		a.in.claimed = false
		d.offer(p, a.in)
	}
	d.schedule()
	return runtime.Instance{}, fmt.Errorf("acquiring an instance: %w", ctx.Err())
}

// hurry makes launches urgent that began in the background and for which somebody
// waits by now. The caller holds mu and gives the returned ones their weight.
func (d *Driver) hurry(p *pool) (hurried []*instance) {
	urgent := 0
	var rest []*instance
	for _, in := range d.instances {
		if in.state != stateLaunching || in.pool != p {
			continue
		}
		if in.urgent {
			urgent++
		} else {
			rest = append(rest, in)
		}
	}
	for _, in := range rest {
		if urgent >= len(p.waiters) {
			break
		}
		in.urgent = true
		urgent++
		hurried = append(hurried, in)
	}
	return hurried
}

// claim gives an instance away. The caller holds mu.
func (d *Driver) claim(in *instance) {
	in.state, in.claimed = stateClaimed, true
	d.claimed++
}

// claimed2disk writes down that an instance was given away.
func (d *Driver) claimed2disk(ctx context.Context, in *instance) (runtime.Instance, error) {
	f, err := os.OpenFile(filepath.Join(in.dir, claimedFile), os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		_ = d.Release(context.WithoutCancel(ctx), in.ID)
		return runtime.Instance{}, fmt.Errorf("acquiring an instance: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return in.public(), nil
}

// pool returns the pool for a kind of instance. The caller holds mu.
func (d *Driver) pool(spec runtime.Spec) *pool {
	key := poolKey{spec.ImageID, spec.Resources}
	p := d.pools[key]
	if p == nil {
		p = &pool{}
		d.pools[key] = p
	}
	p.spec = spec
	return p
}

// demand takes note of a claim: when most of a pool is gone, it has to be larger.
func (p *pool) demand() {
	p.low = min(p.low, len(p.idle))
	if len(p.idle) <= p.target/2 {
		p.target = min(p.max, 2*p.target+1)
	}
}

// refuse ends the wait of all who wait. The caller holds mu.
func (d *Driver) refuse(p *pool, err error) {
	for _, w := range p.waiters {
		w.got <- acquired{err: err}
	}
	d.waiting -= len(p.waiters)
	p.waiters = nil
}

// Prepare implements runtime.Driver.
func (d *Driver) Prepare(targets []runtime.PoolTarget) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	most := map[*pool]int{}
	for _, t := range targets {
		most[d.pool(t.Spec)] = t.Max
	}
	for _, p := range d.pools {
		if most[p] > p.max {
			// What the operator asked for, until the demand is known.
			p.target = most[p]
		}
		p.max = most[p]
	}
	for _, p := range d.pools {
		p.target = min(p.target, p.max)
		d.trim(p)
	}
	d.schedule()
}

// trim releases what waits in vain. The caller holds mu.
func (d *Driver) trim(p *pool) {
	for len(p.idle) > p.target {
		d.beginRelease(p.idle[0]) // takes it out of the pool
	}
}

// unpool takes an instance out of its pool. The caller holds mu.
func (d *Driver) unpool(in *instance) {
	if in.state == stateIdle {
		if i := slices.Index(in.pool.idle, in); i >= 0 {
			in.pool.idle = slices.Delete(in.pool.idle, i, i+1)
		}
	}
}

// shrinkPools lets pools that nobody drains become smaller, slowly.
func (d *Driver) shrinkPools() {
	tick := time.NewTicker(d.opts.ShrinkEvery)
	defer tick.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
		d.mu.Lock()
		if !d.closed {
			for key, p := range d.pools {
				floor := min(p.max, 1+p.max/4)
				if p.low > 0 {
					p.target = max(floor, p.target-max(1, p.low/4))
					d.trim(p)
				}
				p.low = len(p.idle)
				if p.max == 0 && len(p.idle)+len(p.waiters)+p.launching == 0 {
					delete(d.pools, key)
				}
			}
		}
		d.mu.Unlock()
	}
}

// schedule starts as many launches as may run now: first for those who wait, and
// only when nobody waits to fill pools. The caller holds mu.
func (d *Driver) schedule() {
	for !d.closed && d.launching < d.opts.Parallel {
		p, urgent := d.next()
		if p == nil {
			return
		}
		in := d.newInstance(newID())
		in.pool, in.urgent = p, urgent
		in.meta = meta{
			ID: in.ID, ImageID: p.spec.ImageID, ImagePath: p.spec.ImagePath, Resources: p.spec.Resources,
			CreatedAt: time.Now().UTC(), BootID: d.bootID, RuntimeVersion: d.version, GuestDir: d.guestDir,
		}
		ctx, cancel := context.WithTimeout(d.ctx, launchTimeout)
		in.cancelLaunch = cancel
		d.instances[in.ID] = in
		d.launching++
		p.launching++
		d.tasks.Go(func() {
			defer cancel()
			err := d.launch(ctx, in)
			d.launched(p, in, err)
		})
	}
}

// quiet reports whether a refill of the pool may compete with live work.
func (p *pool) quiet(now time.Time) bool {
	return 2*(len(p.idle)+p.launching) < p.target || now.Sub(p.claimedAt) >= refillDelay
}

// refillWhenQuiet fills the pool up once nobody has claimed from it for a while.
// The caller holds mu.
func (d *Driver) refillWhenQuiet(p *pool) {
	if p.quieting {
		return
	}
	p.quieting = true
	d.tasks.Go(func() {
		t := time.NewTimer(refillDelay)
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-d.ctx.Done():
				return
			}
			d.mu.Lock()
			left := refillDelay - time.Since(p.claimedAt)
			if left <= 0 {
				p.quieting = false
				d.schedule()
			}
			d.mu.Unlock()
			if left <= 0 {
				return
			}
			t.Reset(left)
		}
	})
}

// next says what to launch next. The caller holds mu.
func (d *Driver) next() (_ *pool, urgent bool) {
	for _, p := range d.pools {
		if len(p.waiters) > p.launching {
			return p, true
		}
	}
	if d.waiting > 0 || len(d.instances) >= d.capacity {
		return nil, false
	}
	var best *pool
	now := time.Now()
	for _, p := range d.pools {
		if have := len(p.idle) + p.launching; have < p.target && !now.Before(p.notBefore) && p.quiet(now) {
			// The pool that lacks the largest part of its target comes first.
			if best == nil || have*best.target < (len(best.idle)+best.launching)*p.target {
				best = p
			}
		}
	}
	return best, false
}

// launched takes in the outcome of a launch.
func (d *Driver) launched(p *pool, in *instance, err error) {
	if err != nil {
		// Its remains go before anybody hears of the failure.
		d.mu.Lock()
		r := in.release
		if r == nil {
			r = &release{done: make(chan struct{})}
			in.release = r
		}
		in.state = stateReleasing
		d.mu.Unlock()
		d.finishRelease(in, r)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.launching--
	p.launching--
	switch {
	case err == nil && in.release != nil: // released while it was launched
		in.state = stateReleasing
		r := in.release
		d.tasks.Go(func() { d.finishRelease(in, r) })
	case err == nil && d.closed:
		in.state = stateIdle
		d.beginRelease(in)
	case err == nil:
		p.failures, p.notBefore = 0, time.Time{}
		d.watch(in)
		d.offer(p, in)
	case len(p.waiters) > 0 && !p.waiters[0].retried && !errors.Is(err, runtime.ErrNoImage):
		// On a host with far too much to do a launch may fail for want of time.
		p.waiters[0].retried = true
		d.log.Warn("cannot launch a sandbox, trying once more", "image", p.spec.ImageID, "err", err)
	case len(p.waiters) > 0:
		w := p.waiters[0]
		p.waiters = p.waiters[1:]
		d.waiting--
		w.got <- acquired{err: err}
	case !d.closed:
		p.failures++
		wait := min(maxBackoff, firstBackoff<<min(p.failures-1, 10))
		p.notBefore = time.Now().Add(wait)
		d.log.Error("cannot fill the pool", "image", p.spec.ImageID, "retryIn", wait, "err", err)
		d.tasks.Go(func() { d.scheduleAfter(wait) })
	}
	d.schedule()
}

func (d *Driver) scheduleAfter(wait time.Duration) {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		d.mu.Lock()
		d.schedule()
		d.mu.Unlock()
	case <-d.ctx.Done():
	}
}

// offer gives a running instance to whoever waits first, or lets it wait itself.
// The caller holds mu.
func (d *Driver) offer(p *pool, in *instance) {
	if len(p.waiters) > 0 {
		w := p.waiters[0]
		p.waiters = p.waiters[1:]
		d.waiting--
		d.claim(in)
		w.got <- acquired{in: in}
		return
	}
	in.state = stateIdle
	p.idle = append(p.idle, in)
	d.trim(p)
}

// PoolStatus tells how full a pool is.
type PoolStatus struct {
	ImageID            string
	Idle, Target, Max  int
	Launching, Waiting int
}

// Pools tells how full the pools are.
func (d *Driver) Pools() []PoolStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []PoolStatus
	for _, p := range d.pools {
		list = append(list, PoolStatus{
			ImageID: p.spec.ImageID, Idle: len(p.idle), Target: p.target, Max: p.max,
			Launching: p.launching, Waiting: len(p.waiters),
		})
	}
	return list
}
