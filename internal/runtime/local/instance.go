package local

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/runtime/local/cgroup"
	"crownest.dev/crownest/internal/runtime/local/runsc"
)

type state int

const (
	stateLaunching state = iota
	stateIdle
	stateClaimed // also adopted ones, claimed or not
	stateEnded   // does not run; its remains are still there
	stateReleasing
)

// instance is one sandbox, or what is left of one. The fields above the line are
// fixed once it is launched, those below are guarded by Driver.mu.
type instance struct {
	meta
	dir, stateDir string
	group         *cgroup.Group
	sentry, gofer *watched // nil if not running
	mould         *watched // the stub that all others are copies of
	launcher      int      // the process group of the launcher, if this process launched it
	cancelLaunch  context.CancelFunc

	pool     *pool // nil if adopted
	urgent   bool  // somebody waits for this launch
	state    state
	claimed  bool
	outdated bool
	release  *release
}

// release is one attempt to remove an instance.
type release struct {
	done chan struct{}
	err  error
}

// idLength is fixed, as gVisor finds instances by a prefix of their id.
const idLength = 16

func newID() string { return strings.ToLower(rand.Text())[:idLength] }

func (d *Driver) newInstance(id string) *instance {
	return &instance{
		meta:     meta{ID: id},
		dir:      filepath.Join(d.dir, id),
		stateDir: filepath.Join(d.stateDir, id),
		group:    d.parent.Group(id),
	}
}

func (in *instance) public() runtime.Instance {
	return runtime.Instance{
		ID: in.ID, ImageID: in.ImageID, Resources: in.Resources, CreatedAt: in.CreatedAt,
		Claimed: in.claimed, Ended: in.state == stateEnded, Outdated: in.outdated,
	}
}

func (in *instance) closeHandles() {
	if in.sentry != nil {
		in.sentry.close()
	}
	if in.gofer != nil {
		in.gofer.close()
	}
	if in.mould != nil {
		in.mould.close()
	}
}

// launch makes an instance run that is registered and described, and returns when
// it has passed the Ready hook. After an error the caller destroys what there is.
func (d *Driver) launch(ctx context.Context, in *instance) error {
	if _, err := os.Stat(in.ImagePath); err != nil {
		return fmt.Errorf("%w: %w", runtime.ErrNoImage, err)
	}
	if err := os.MkdirAll(filepath.Join(in.dir, rootfsDir), 0o700); err != nil {
		return fmt.Errorf("making instance directory: %w", err)
	}
	if err := writeMeta(in.dir, in.meta); err != nil {
		return err
	}
	limits := cgroup.Limits{
		MemoryBytes: in.Resources.MemoryBytes + overheadBytes,
		CPUs:        in.Resources.VCPU,
		Tasks:       hostTasks,
	}
	if err := in.group.Create(limits); err != nil {
		return err
	}
	if err := d.yield(in); err != nil {
		return err
	}
	conn, err := d.start(ctx, in)
	if err != nil {
		return err
	}
	if d.opts.Ready == nil {
		conn.Close()
	} else if err := d.opts.Ready(ctx, in.public(), conn); err != nil {
		return fmt.Errorf("waiting for the guest: %w", err)
	}
	return in.group.SetWeight(cgroup.WeightNormal)
}

// yield lets a launch for which nobody waits give way to the sandboxes at work.
func (d *Driver) yield(in *instance) error {
	if d.isUrgent(in) {
		return nil
	}
	if err := in.group.SetWeight(cgroup.WeightLow); err != nil {
		return err
	}
	if d.isUrgent(in) { // since a moment ago
		return in.group.SetWeight(cgroup.WeightNormal)
	}
	return nil
}

func (d *Driver) isUrgent(in *instance) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return in.urgent
}

// start runs the launcher and writes down what it started.
func (d *Driver) start(ctx context.Context, in *instance) (_ *pipeConn, err error) {
	conn, guestIn, guestOut, err := newPipes()
	if err != nil {
		return nil, err
	}
	defer func() {
		guestIn.Close()
		guestOut.Close()
		if err != nil {
			conn.Close()
		}
	}()
	req := runsc.LaunchRequest{
		ID: in.ID, Dir: in.dir, StateDir: in.stateDir, Image: in.ImagePath,
		GuestDir: in.GuestDir, GuestArgs: d.opts.GuestArgs, Resources: in.Resources,
	}
	files := runsc.LaunchFiles{NetNS: d.netns, GuestIn: guestIn, GuestOut: guestOut}
	if files.Cgroup, err = in.group.Open(); err != nil {
		return nil, err
	}
	if files.Cgroup != nil {
		defer files.Cgroup.Close()
	} else {
		req.JoinCgroups = in.group.Dirs()
	}
	res, err := runsc.Launch(ctx, req, files)
	in.launcher = res.LauncherPID
	if err != nil {
		return nil, err
	}
	sentry, err := watchPID(res.SentryPID)
	if err != nil {
		return nil, fmt.Errorf("sandbox ended at once: %w", err)
	}
	gofer, err := watchPID(res.GoferPID)
	if err != nil {
		sentry.close()
		return nil, fmt.Errorf("gofer ended at once: %w", err)
	}
	d.mu.Lock()
	in.sentry, in.gofer = sentry, gofer
	in.Sentry, in.Gofer, in.ControlSocket = sentry.process, gofer.process, res.ControlSocket
	d.mu.Unlock()
	if err := in.shieldGuest(); err != nil {
		return nil, err
	}
	in.Mould = in.mould.process
	if err := writeMeta(in.dir, in.meta); err != nil {
		return nil, err
	}
	return conn, nil
}

// guestOOMScore is between that of the sentry and that of other programs.
const guestOOMScore = 300

// shieldGuest makes the guest a less likely victim than the programs it will
// start, for when many small ones use up the memory together. On the host a
// program is a stub process of the sentry. The first stub is the mould of all
// others, which inherit its score; the second belongs to the first program: the
// guest.
func (in *instance) shieldGuest() error {
	stubs, err := in.stubs()
	if err == nil && len(stubs) < 2 {
		err = fmt.Errorf("found %d stubs", len(stubs))
	}
	if err == nil {
		path := fmt.Sprintf("/proc/%d/oom_score_adj", stubs[1])
		err = os.WriteFile(path, []byte(strconv.Itoa(guestOOMScore)), 0)
	}
	if err == nil {
		in.mould, err = watchPID(stubs[0])
	}
	if err != nil {
		return fmt.Errorf("shielding the guest: %w", err)
	}
	return nil
}

// stubs returns the stub processes of the sentry in the order of their making.
func (in *instance) stubs() ([]int, error) {
	pids, err := in.group.Pids()
	if err != nil {
		return nil, err
	}
	slices.Sort(pids)
	return slices.DeleteFunc(pids, func(pid int) bool {
		parent, err := parentOf(pid)
		return err != nil || parent != in.Sentry.PID
	}), nil
}

// destroy ends and removes all of an instance; the record goes last. It may be
// called again after a failure, and for instances that were never complete.
func (d *Driver) destroy(ctx context.Context, in *instance) error {
	// gVisor's stubs live in the pid namespace of their sentry and die with it.
	for _, p := range []*watched{in.gofer, in.sentry} {
		if p != nil {
			p.signal()
		}
	}
	for _, p := range []*watched{in.sentry, in.gofer} {
		if p != nil {
			if err := p.kill(ctx); err != nil && !errors.Is(err, os.ErrClosed) {
				return fmt.Errorf("ending process %d of instance %s: %w", p.PID, in.ID, err)
			}
		}
	}
	// Whatever else there is, of a half-made instance for instance, is in the cgroup.
	killed, err := in.group.Kill(ctx)
	for _, pid := range append(killed, in.Sentry.PID, in.Gofer.PID) {
		reap(pid)
	}
	reapGroup(in.launcher)
	if err != nil {
		return fmt.Errorf("ending instance %s: %w", in.ID, err)
	}
	if err := in.group.Remove(ctx); err != nil {
		return fmt.Errorf("ending instance %s: %w", in.ID, err)
	}
	for _, dir := range []string{in.stateDir, in.dir} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("removing instance %s: %w", in.ID, err)
		}
	}
	return nil
}

// Release implements runtime.Driver.
func (d *Driver) Release(ctx context.Context, id string) error {
	d.mu.Lock()
	in := d.instances[id]
	if in == nil {
		d.mu.Unlock()
		return nil
	}
	if d.closed && in.release == nil {
		d.mu.Unlock()
		return fmt.Errorf("releasing instance %s: %w", id, runtime.ErrClosed)
	}
	r := d.beginRelease(in)
	d.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		// It goes on; a later call waits for the same end.
		return fmt.Errorf("releasing instance %s: %w", id, ctx.Err())
	}
}

// beginRelease starts to remove an instance, or returns the attempt under way.
// The caller holds mu.
func (d *Driver) beginRelease(in *instance) *release {
	if in.release != nil {
		return in.release
	}
	r := &release{done: make(chan struct{})}
	in.release = r
	if in.state == stateLaunching {
		// The launch sees to it.
		in.cancelLaunch()
		return r
	}
	d.unpool(in)
	in.state = stateReleasing
	d.tasks.Go(func() { d.finishRelease(in, r) })
	return r
}

// finishRelease removes an instance and tells those who wait for it.
func (d *Driver) finishRelease(in *instance, r *release) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), releaseTimeout)
	defer cancel()
	r.err = d.destroy(ctx, in)
	d.mu.Lock()
	if r.err == nil {
		in.closeHandles()
		delete(d.instances, in.ID)
		if in.claimed {
			d.claimed--
		}
		d.schedule()
	} else {
		d.log.Error("cannot release a sandbox", "instance", in.ID, "err", r.err)
		in.state, in.release = stateEnded, nil
	}
	d.mu.Unlock()
	close(r.done)
}

// watchMould ends a sandbox that has lost its mould, which happens when memory
// runs out so fast that the kernel kills all it can: no program could be started
// any more, and an end is clearer than that.
func (d *Driver) watchMould(in *instance) {
	if err := in.mould.wait(); err != nil {
		return // no longer watched
	}
	ctx, cancel := context.WithTimeout(d.ctx, releaseTimeout)
	defer cancel()
	// While the driver closes, the release of the instance ends the sentry as well.
	if err := in.sentry.kill(ctx); err != nil && !errors.Is(err, os.ErrClosed) && d.ctx.Err() == nil {
		d.log.Warn("cannot end a broken sandbox", "instance", in.ID, "err", err)
	}
}

// watchExit waits for the end of an instance that nobody asked for.
func (d *Driver) watchExit(in *instance) {
	if err := in.sentry.wait(); err != nil {
		return // no longer watched
	}
	d.mu.Lock()
	if in.state == stateReleasing || d.closed {
		d.mu.Unlock()
		return
	}
	if in.state == stateIdle {
		d.log.Warn("a waiting sandbox ended by itself", "instance", in.ID, "cause", in.cause())
		d.beginRelease(in)
		d.mu.Unlock()
		return
	}
	in.state = stateEnded
	d.mu.Unlock()
	exit := runtime.Exit{ID: in.ID, Cause: in.cause(), At: time.Now()}
	select {
	case d.exits <- exit:
	case <-d.ctx.Done():
	}
}

// cause says why the instance ended.
func (in *instance) cause() string {
	if line := firstLine(filepath.Join(in.dir, runsc.PanicLog)); line != "" {
		return "gVisor crashed: " + line
	}
	if u, err := in.group.Usage(); err == nil && u.OOMKills > 0 {
		return "out of memory"
	}
	return "ended by itself or killed from outside"
}

func firstLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 512))
	if err != nil {
		return ""
	}
	line, _, _ := bytes.Cut(bytes.TrimSpace(raw), []byte("\n"))
	return string(line)
}
