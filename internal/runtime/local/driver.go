package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/runtime/local/cgroup"
	"crownest.dev/crownest/internal/runtime/local/runsc"
)

const (
	// IdleBytes is what one waiting sandbox costs: sentry, gofer and guest.
	IdleBytes = 18 << 20
	// overheadBytes is added to a sandbox's memory limit, so that its programs get
	// what was promised although sentry and gofer are charged to the same cgroup.
	overheadBytes = 64 << 20
	// hostTasks bounds the host's threads of one sandbox. It is a backstop only:
	// reaching it ends the whole sandbox. The limit that programs feel is the
	// guest's, inside.
	hostTasks = 4096

	// threadsPerSandbox is how many threads the host has for a sandbox that does
	// little; 25 were measured.
	threadsPerSandbox = 35

	launchTimeout  = 30 * time.Second
	releaseTimeout = 20 * time.Second
	lockPatience   = 2 * time.Second
	// maxWaiting bounds the Acquire calls that wait for a launch.
	maxWaiting = 512
)

// Options configures a Driver.
type Options struct {
	// DataDir is the server's data directory. One driver at a time may use it.
	DataDir string
	// Guest is the guest binary, a static executable.
	Guest []byte
	// GuestArgs are its arguments as PID 1 and AttachArgs those of the helper that
	// brings it a new connection; "init" and "attach" by default.
	GuestArgs, AttachArgs []string
	// Ready is called with the first connection of every fresh instance.
	Ready runtime.ReadyFunc
	// MaxSandboxes bounds the claimed instances; 0 derives it from the host's memory.
	MaxSandboxes int
	// Parallel is how many instances start at the same time; 0 means 2.
	Parallel int
	// MemoryReserve is what all sandboxes together must leave to the host.
	MemoryReserve int64
	// ShrinkEvery is how often a pool that is larger than its demand gives up a
	// part of its instances; 0 means two minutes.
	ShrinkEvery time.Duration
	Logger      *slog.Logger
}

// Driver makes gVisor sandboxes on this host. It implements runtime.Driver.
type Driver struct {
	opts     Options
	log      *slog.Logger
	parent   *cgroup.Parent
	netns    *os.File
	lock     *os.File // the instances directory, locked against a second driver
	dir      string   // one directory per instance
	stateDir string   // gVisor's, one directory per instance
	guestDir string
	bootID   string
	version  string
	capacity int

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	exits  chan runtime.Exit

	mu        sync.Mutex
	closed    bool
	instances map[string]*instance
	claimed   int
	pools     map[poolKey]*pool
	launching int
	waiting   int
}

var _ runtime.Driver = (*Driver)(nil)

// New starts a driver and takes over what an earlier one left in the data
// directory. The process must have called runsc.Dispatch first thing in main.
func New(ctx context.Context, opts Options) (_ *Driver, err error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Parallel <= 0 {
		opts.Parallel = 2
	}
	if opts.ShrinkEvery <= 0 {
		opts.ShrinkEvery = 2 * time.Minute
	}
	if opts.GuestArgs == nil {
		opts.GuestArgs = []string{"init"}
	}
	if opts.AttachArgs == nil {
		opts.AttachArgs = []string{"attach"}
	}
	total, err := memTotal()
	if err != nil {
		return nil, err
	}
	if opts.MemoryReserve <= 0 {
		opts.MemoryReserve = min(1<<30, total/8)
	}
	data, err := filepath.Abs(opts.DataDir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	d := &Driver{
		opts: opts, log: opts.Logger, version: runsc.Version(),
		dir:       filepath.Join(data, "instances"),
		stateDir:  stateDir(data),
		capacity:  opts.MaxSandboxes,
		exits:     make(chan runtime.Exit, 16),
		instances: map[string]*instance{},
		pools:     map[poolKey]*pool{},
	}
	if d.capacity <= 0 {
		d.capacity = defaultCapacity(total)
	}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			d.cancel()
			d.closeFiles()
		}
	}()
	if d.bootID, err = bootID(); err != nil {
		return nil, err
	}
	for _, dir := range []string{d.dir, d.stateDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("data directory: %w", err)
		}
	}
	if d.lock, err = lockDir(ctx, d.dir); err != nil {
		return nil, err
	}
	if d.guestDir, err = installGuest(filepath.Join(data, "guest"), opts.Guest); err != nil {
		return nil, err
	}
	h, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	if d.parent, err = h.Parent("crownest-"+hash8(data), cgroup.Limits{MemoryBytes: total - opts.MemoryReserve}); err != nil {
		return nil, err
	}
	if d.netns, err = newLoopbackNetNS(); err != nil {
		return nil, err
	}
	// Sandboxes are orphans from the start, as their launcher ends at once. As a
	// sub-reaper this process inherits and can collect them, whatever process 1 does.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("becoming a sub-reaper: %w", err)
	}
	if err := d.takeOver(ctx); err != nil {
		return nil, err
	}
	d.tasks.Go(d.shrinkPools)
	return d, nil
}

// stateDir is where gVisor keeps control sockets. Their addresses are limited to
// 107 bytes, so a data directory with a long name has them elsewhere.
func stateDir(data string) string {
	dir := filepath.Join(data, "run")
	if len(filepath.Join(dir, "/runsc-.sock"))+2*idLength > 104 {
		return filepath.Join("/run", "crownest-"+hash8(data))
	}
	return dir
}

// lockDir keeps a second driver away.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	// A server that has just been killed may have been starting a process, which
	// holds the lock until it runs its own program.
	deadline := time.Now().Add(lockPatience)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || ctx.Err() != nil || time.Now().After(deadline) {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("data directory %s is in use by another server", filepath.Dir(dir))
			}
			return nil, fmt.Errorf("locking data directory %s: %w", filepath.Dir(dir), err)
		}
		time.Sleep(5 * time.Millisecond) // the lock has no event to wait for
	}
}

// installGuest puts the guest binary where sandboxes can mount it, named by its
// content: sandboxes of an older server keep theirs.
func installGuest(dir string, binary []byte) (string, error) {
	if len(binary) == 0 {
		return "", errors.New("installing guest: no guest binary given")
	}
	sum := sha256.Sum256(binary)
	dir = filepath.Join(dir, hex.EncodeToString(sum[:]))
	path := filepath.Join(dir, "guest")
	if have, err := os.ReadFile(path); err == nil && sha256.Sum256(have) == sum {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("installing guest: %w", err)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, binary, 0o755); err != nil {
		return "", fmt.Errorf("installing guest: %w", err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("installing guest: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", fmt.Errorf("installing guest: %w", err)
	}
	return dir, nil
}

// takeOver registers what an earlier driver left: instances that still run, and
// remains that wait for their Release.
func (d *Driver) takeOver(ctx context.Context) error {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return fmt.Errorf("reading instances: %w", err)
	}
	for _, e := range entries {
		d.adopt(e.Name())
	}
	groups, err := d.parent.Groups()
	if err != nil {
		return err
	}
	for _, name := range groups {
		if _, known := d.instances[name]; !known {
			d.adopt(name)
		}
	}
	stale, err := os.ReadDir(d.stateDir)
	if err != nil {
		return fmt.Errorf("reading gVisor's state: %w", err)
	}
	for _, e := range stale {
		if _, known := d.instances[e.Name()]; !known {
			if err := os.RemoveAll(filepath.Join(d.stateDir, e.Name())); err != nil {
				return fmt.Errorf("removing stale state: %w", err)
			}
		}
	}
	return d.removeOldGuests()
}

// adopt registers one instance of an earlier driver.
func (d *Driver) adopt(id string) {
	in := d.newInstance(id)
	d.instances[id] = in
	m, err := readMeta(in.dir)
	if err != nil || m.ID != id || m.BootID != d.bootID {
		in.ID, in.CreatedAt = id, m.CreatedAt
		in.state = stateEnded
		d.log.Info("found the remains of a sandbox", "instance", id, "err", err)
		return
	}
	in.meta = m
	if _, err := os.Stat(filepath.Join(in.dir, claimedFile)); err == nil {
		in.claimed = true
		d.claimed++
	}
	sentry, err := watch(m.Sentry)
	if err != nil {
		in.state = stateEnded
		return
	}
	in.sentry, in.state = sentry, stateClaimed
	if in.gofer, err = watch(m.Gofer); err != nil {
		d.log.Warn("cannot watch the gofer of a sandbox", "instance", id, "err", err)
		in.gofer = nil
	}
	in.outdated = m.RuntimeVersion != d.version
	if in.mould, err = watch(m.Mould); err != nil {
		d.log.Warn("cannot watch the first stub of a sandbox", "instance", id, "err", err)
		in.mould = nil
	}
	d.watch(in)
}

// watch waits for the end of an instance in the background.
func (d *Driver) watch(in *instance) {
	d.tasks.Go(func() { d.watchExit(in) })
	if in.mould != nil {
		d.tasks.Go(func() { d.watchMould(in) })
	}
}

// removeOldGuests removes guest binaries that no instance uses any more.
func (d *Driver) removeOldGuests() error {
	base := filepath.Dir(d.guestDir)
	entries, err := os.ReadDir(base)
	if err != nil {
		return fmt.Errorf("reading guests: %w", err)
	}
	used := map[string]bool{d.guestDir: true}
	for _, in := range d.instances {
		used[in.GuestDir] = true
	}
	for _, e := range entries {
		if dir := filepath.Join(base, e.Name()); !used[dir] {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("removing an old guest: %w", err)
			}
		}
	}
	return nil
}

// Dial implements runtime.Driver.
func (d *Driver) Dial(ctx context.Context, id string) (net.Conn, error) {
	d.mu.Lock()
	in := d.instances[id]
	if in == nil || in.state == stateEnded || in.state == stateReleasing {
		d.mu.Unlock()
		return nil, fmt.Errorf("dialling instance %s: %w", id, runtime.ErrNotFound)
	}
	socket := in.ControlSocket
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	conn, err := runsc.Attach(ctx, socket, id, d.opts.AttachArgs)
	if err != nil {
		return nil, fmt.Errorf("dialling instance %s: %w", id, err)
	}
	return conn, nil
}

// Stats implements runtime.Driver.
func (d *Driver) Stats(_ context.Context, id string) (runtime.Stats, error) {
	d.mu.Lock()
	in := d.instances[id]
	d.mu.Unlock()
	if in == nil {
		return runtime.Stats{}, fmt.Errorf("measuring instance %s: %w", id, runtime.ErrNotFound)
	}
	u, err := in.group.Usage()
	if errors.Is(err, fs.ErrNotExist) {
		err = runtime.ErrNotFound
	}
	if err != nil {
		return runtime.Stats{}, fmt.Errorf("measuring instance %s: %w", id, err)
	}
	return runtime.Stats{
		CPU: u.CPU, MemoryBytes: u.MemoryBytes, Processes: u.Tasks, OOMKills: u.OOMKills,
		DiskBytes: diskBytes(filepath.Join(in.dir, rootfsDir)),
	}, nil
}

// diskBytes adds up what the files of a directory occupy.
func diskBytes(dir string) int64 {
	var total int64
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(dir, e.Name()), &st) == nil {
			total += st.Blocks * 512
		}
	}
	return total
}

// List implements runtime.Driver.
func (d *Driver) List(context.Context) ([]runtime.Instance, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]runtime.Instance, 0, len(d.instances))
	for _, in := range d.instances {
		if in.state != stateReleasing {
			list = append(list, in.public())
		}
	}
	slices.SortFunc(list, func(a, b runtime.Instance) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// Exits implements runtime.Driver.
func (d *Driver) Exits() <-chan runtime.Exit { return d.exits }

// Capacity implements runtime.Driver.
func (d *Driver) Capacity() int { return d.capacity }

// Close implements runtime.Driver.
func (d *Driver) Close(ctx context.Context) error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	for _, p := range d.pools {
		d.refuse(p, runtime.ErrClosed)
		for _, in := range slices.Clone(p.idle) { // beginRelease takes it out of the list
			d.beginRelease(in)
		}
		p.idle = nil
	}
	d.mu.Unlock()
	d.cancel() // ends launches, whose instances are then released

	done := make(chan struct{})
	go func() {
		defer close(done)
		d.mu.Lock()
		for _, in := range d.instances {
			// Claimed ones live on, unwatched.
			if in.state != stateReleasing && in.state != stateLaunching {
				in.closeHandles()
			}
		}
		d.mu.Unlock()
		d.tasks.Wait()
		d.mu.Lock()
		empty := len(d.instances) == 0
		d.mu.Unlock()
		if empty {
			_ = d.parent.Remove()
			_ = os.Remove(d.stateDir)
		}
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
		d.closeFiles()
		close(d.exits)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("closing driver: %w", ctx.Err())
	}
}

func (d *Driver) closeFiles() {
	if d.netns != nil {
		d.netns.Close()
	}
	if d.lock != nil {
		d.lock.Close()
	}
}

func hash8(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:4])
}

// defaultCapacity is how many idle sandboxes the host can bear.
func defaultCapacity(memory int64) int {
	n := memory * 7 / 10 / IdleBytes
	for _, path := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		// Hosts with a small limit run out of process ids before memory.
		if raw, err := os.ReadFile(path); err == nil {
			if limit, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil {
				n = min(n, limit/threadsPerSandbox)
			}
		}
	}
	return max(1, int(n))
}

// memTotal returns the memory of the host.
func memTotal() (int64, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0, fmt.Errorf("reading the host's memory: %w", err)
	}
	return int64(si.Totalram) * int64(si.Unit), nil //nolint:gosec // far below the limit
}
