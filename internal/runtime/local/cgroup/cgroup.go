// Package cgroup limits and measures groups of host processes, on hosts with
// cgroup v1 and v2. A Parent holds one Group per sandbox. The package knows
// nothing of what runs in a group.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bounds a group. Zero values mean no limit.
type Limits struct {
	MemoryBytes int64
	CPUs        float64
	Tasks       int64 // host threads
}

// Usage is what a group used.
type Usage struct {
	CPU         time.Duration
	MemoryBytes int64 // without the page cache that could be dropped at once
	Tasks       int
	OOMKills    int64
}

// cpuPeriod is the window, in microseconds, over which a CPU quota holds.
const cpuPeriod = 100_000

// The relative weights of a group's CPU time against its neighbours.
const (
	WeightNormal = 100
	WeightLow    = 10
)

// Hierarchy is where this host keeps its cgroups.
type Hierarchy struct {
	// Version is 1 or 2.
	Version int
	// mounts are the roots: one for v2; for v1 one per controller in use, in the
	// order in which they are joined.
	mounts []mount
}

type mount struct {
	dir         string
	controllers []string
}

func (m mount) has(controller string) bool { return slices.Contains(m.controllers, controller) }

// wanted are the controllers in use. On v1, memory comes last: what is in the
// memory cgroup is in all of the others.
var wanted = []string{"cpu", "cpuacct", "pids", "memory"}

// Detect finds the hierarchy of this host.
func Detect() (*Hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("finding cgroups: %w", err)
	}
	defer f.Close()
	var v1 []mount
	var v2 string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		before, after, ok := strings.Cut(sc.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 {
			continue
		}
		switch tail[0] {
		case "cgroup2":
			if v2 == "" {
				v2 = fields[4]
			}
		case "cgroup":
			m := mount{dir: fields[4]}
			for _, opt := range strings.Split(tail[2], ",") {
				if slices.Contains(wanted, opt) {
					m.controllers = append(m.controllers, opt)
				}
			}
			known := slices.ContainsFunc(v1, func(o mount) bool { return slices.Equal(o.controllers, m.controllers) })
			if len(m.controllers) > 0 && !known {
				v1 = append(v1, m)
			}
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("finding cgroups: %w", err)
	}
	for _, m := range v1 {
		if m.has("memory") {
			slices.SortStableFunc(v1, func(a, b mount) int { return rank(a) - rank(b) })
			return &Hierarchy{Version: 1, mounts: v1}, nil
		}
	}
	if v2 != "" {
		have, err := os.ReadFile(filepath.Join(v2, "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("finding cgroups: %w", err)
		}
		got := strings.Fields(string(have))
		if slices.Contains(got, "memory") {
			return &Hierarchy{Version: 2, mounts: []mount{{dir: v2, controllers: got}}}, nil
		}
	}
	return nil, errors.New("finding cgroups: no memory controller is mounted")
}

func rank(m mount) int {
	r := 0
	for _, c := range m.controllers {
		r = max(r, slices.Index(wanted, c))
	}
	return r
}

// Missing names the wanted controllers that the host does not offer.
func (h *Hierarchy) Missing() []string {
	var missing []string
	for _, c := range wanted {
		if h.Version == 2 && c == "cpuacct" {
			continue // part of the core there
		}
		if !slices.ContainsFunc(h.mounts, func(m mount) bool { return m.has(c) }) {
			missing = append(missing, c)
		}
	}
	return missing
}

// Probe makes a group and removes it again, to see whether that is allowed.
func (h *Hierarchy) Probe() error {
	p := &Parent{h: h, name: "crownest-probe-" + strconv.Itoa(os.Getpid())}
	g := &Group{p: p}
	for _, dir := range g.Dirs() {
		if err := mkdir(dir); err != nil {
			return errors.Join(err, g.rmdir())
		}
	}
	return g.rmdir()
}

// Parent is the group that holds the groups of all sandboxes of one server.
type Parent struct {
	h    *Hierarchy
	name string
}

// Parent makes the parent group of that name, or takes it over, and limits it.
func (h *Hierarchy) Parent(name string, l Limits) (*Parent, error) {
	p := &Parent{h: h, name: name}
	if h.Version == 2 {
		if err := enable(h.mounts[0]); err != nil {
			return nil, err
		}
	}
	g := &Group{p: p}
	if err := g.create(l); err != nil {
		return nil, err
	}
	if h.Version == 2 {
		if err := delegate(g.Dirs()[0], h.mounts[0]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// enable lets children of the root of a v2 hierarchy have the wanted controllers.
// In a container the root is a group like any other, which may not have processes
// of its own beside such children: then they move to a group beside ours.
func enable(m mount) error {
	err := delegate(m.dir, m)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	leaf := filepath.Join(m.dir, "crownest-server")
	if err := mkdir(leaf); err != nil {
		return err
	}
	pids, err := readPids(m.dir)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		err := write(leaf, "cgroup.procs", strconv.Itoa(pid))
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return delegate(m.dir, m)
}

func delegate(dir string, m mount) error {
	for _, c := range wanted {
		if !m.has(c) {
			continue
		}
		if err := write(dir, "cgroup.subtree_control", "+"+c); err != nil {
			return fmt.Errorf("enabling cgroup controller %s: %w", c, err)
		}
	}
	return nil
}

// Remove removes the parent if it has no groups left.
func (p *Parent) Remove() error {
	return (&Group{p: p}).rmdir()
}

// Groups lists the names of the groups that exist, each once.
func (p *Parent) Groups() ([]string, error) {
	var names []string
	for _, m := range p.h.mounts {
		entries, err := os.ReadDir(filepath.Join(m.dir, p.name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("listing cgroups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}

// Group returns the handle of a group, which need not exist.
func (p *Parent) Group(name string) *Group { return &Group{p: p, name: name} }

// Group is one group of processes; on v1 it is one directory per controller.
type Group struct {
	p    *Parent
	name string // empty for the parent itself
}

// Dirs lists the directories of the group.
func (g *Group) Dirs() []string {
	dirs := make([]string, len(g.p.h.mounts))
	for i, m := range g.p.h.mounts {
		dirs[i] = filepath.Join(m.dir, g.p.name, g.name)
	}
	return dirs
}

// Version is 1 or 2.
func (g *Group) Version() int { return g.p.h.Version }

// Create makes the group and sets its limits.
func (g *Group) Create(l Limits) error { return g.create(l) }

func (g *Group) create(l Limits) error {
	for _, dir := range g.Dirs() {
		if err := mkdir(dir); err != nil {
			return err
		}
	}
	return g.Limit(l)
}

// dir returns the directory in which a controller is ruled, or "".
func (g *Group) dir(controller string) string {
	for i, m := range g.p.h.mounts {
		if m.has(controller) || g.p.h.Version == 2 && controller == "cpuacct" {
			return g.Dirs()[i]
		}
	}
	return ""
}

// Limit sets the limits of the group.
func (g *Group) Limit(l Limits) error {
	v1 := g.p.h.Version == 1
	type setting struct{ controller, file, value string }
	var set []setting
	if l.MemoryBytes > 0 {
		n := strconv.FormatInt(l.MemoryBytes, 10)
		if v1 {
			set = append(set, setting{"memory", "memory.limit_in_bytes", n})
		} else {
			set = append(set, setting{"memory", "memory.max", n}, setting{"memory", "memory.swap.max", "0"})
		}
	}
	if l.CPUs > 0 {
		quota := strconv.Itoa(max(1000, int(l.CPUs*cpuPeriod)))
		if v1 {
			set = append(set, setting{"cpu", "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)}, setting{"cpu", "cpu.cfs_quota_us", quota})
		} else {
			set = append(set, setting{"cpu", "cpu.max", quota + " " + strconv.Itoa(cpuPeriod)})
		}
	}
	if l.Tasks > 0 {
		set = append(set, setting{"pids", "pids.max", strconv.FormatInt(l.Tasks, 10)})
	}
	for _, s := range set {
		dir := g.dir(s.controller)
		if dir == "" {
			return fmt.Errorf("limiting cgroup: the host has no %s controller", s.controller)
		}
		err := write(dir, s.file, s.value)
		if errors.Is(err, fs.ErrNotExist) && s.file == "memory.swap.max" {
			continue // kernel without swap accounting
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// SetWeight sets the share of CPU time against the neighbours.
func (g *Group) SetWeight(w int) error {
	dir := g.dir("cpu")
	if dir == "" {
		return nil
	}
	if g.p.h.Version == 1 {
		return write(dir, "cpu.shares", strconv.Itoa(w*1024/WeightNormal))
	}
	return write(dir, "cpu.weight", strconv.Itoa(w))
}

// Open opens the group's directory for starting processes in it; nil on v1.
func (g *Group) Open() (*os.File, error) {
	if g.p.h.Version == 1 {
		return nil, nil
	}
	f, err := os.Open(g.Dirs()[0])
	if err != nil {
		return nil, fmt.Errorf("opening cgroup: %w", err)
	}
	return f, nil
}

// Usage measures the group.
func (g *Group) Usage() (Usage, error) {
	var u Usage
	var err error
	if g.p.h.Version == 1 {
		u, err = g.usage1()
	} else {
		u, err = g.usage2()
	}
	if err != nil {
		return Usage{}, fmt.Errorf("reading cgroup: %w", err)
	}
	if dir := g.dir("pids"); dir != "" {
		if n, err := readInt(dir, "pids.current"); err == nil {
			u.Tasks = int(n)
		}
	}
	return u, nil
}

func (g *Group) usage1() (Usage, error) {
	mem := g.dir("memory")
	used, err := readInt(mem, "memory.usage_in_bytes")
	if err != nil {
		return Usage{}, err
	}
	stat, err := readMap(mem, "memory.stat")
	if err != nil {
		return Usage{}, err
	}
	oom, err := readMap(mem, "memory.oom_control")
	if err != nil {
		return Usage{}, err
	}
	var cpu int64
	if dir := g.dir("cpuacct"); dir != "" {
		if cpu, err = readInt(dir, "cpuacct.usage"); err != nil {
			return Usage{}, err
		}
	}
	return Usage{CPU: time.Duration(cpu), MemoryBytes: max(0, used-stat["total_inactive_file"]), OOMKills: oom["oom_kill"]}, nil
}

func (g *Group) usage2() (Usage, error) {
	dir := g.Dirs()[0]
	used, err := readInt(dir, "memory.current")
	if err != nil {
		return Usage{}, err
	}
	stat, err := readMap(dir, "memory.stat")
	if err != nil {
		return Usage{}, err
	}
	events, err := readMap(dir, "memory.events")
	if err != nil {
		return Usage{}, err
	}
	cpu, err := readMap(dir, "cpu.stat")
	if err != nil {
		return Usage{}, err
	}
	return Usage{
		CPU:         time.Duration(cpu["usage_usec"]) * time.Microsecond,
		MemoryBytes: max(0, used-stat["inactive_file"]),
		OOMKills:    events["oom_kill"],
	}, nil
}

// Pids lists the live processes of the group.
func (g *Group) Pids() ([]int, error) {
	var all []int
	for _, dir := range g.Dirs() {
		pids, err := readPids(dir)
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			if !slices.Contains(all, pid) {
				all = append(all, pid)
			}
		}
	}
	return all, nil
}

// Kill ends every process of the group and returns when none is left, naming
// those that it found: dead, they may be children of the caller. A group that
// does not exist has none.
func (g *Group) Kill(ctx context.Context) (killed []int, err error) {
	for {
		pids, err := g.Pids()
		if err != nil || len(pids) == 0 {
			return killed, err
		}
		for _, pid := range pids {
			if err := killWait(ctx, pid); err != nil {
				return killed, fmt.Errorf("ending process %d: %w", pid, err)
			}
		}
		killed = append(killed, pids...)
	}
}

// killWait kills a process and waits until it has ended, though perhaps not reaped.
func killWait(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		// Short waits keep the context honoured.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// Remove removes the group, which must have no processes left. The kernel frees
// dead processes a moment after their end is visible, so a busy group is tried
// again until ctx ends.
func (g *Group) Remove(ctx context.Context) error {
	wait := time.Millisecond
	for {
		err := g.rmdir()
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("removing cgroup: %w", errors.Join(err, ctx.Err()))
		case <-time.After(wait):
			wait = min(2*wait, 50*time.Millisecond)
		}
	}
}

func (g *Group) rmdir() error {
	var errs []error
	for _, dir := range g.Dirs() {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return errors.Join(errs...)
}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making cgroup: %w", err)
	}
	return nil
}

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("setting cgroup: %w", err)
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("setting cgroup to %q: %w", value, err)
	}
	return nil
}

func readPids(dir string) ([]int, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading cgroup: %w", err)
	}
	var pids []int
	for _, f := range strings.Fields(string(raw)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("reading cgroup: %w", err)
		}
		// 0 stands for a process of another pid namespace, which cannot be ours.
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func readInt(dir, file string) (int64, error) {
	raw, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
}

func readMap(dir, file string) (map[string]int64, error) {
	raw, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	m := map[string]int64{}
	for line := range strings.Lines(string(raw)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			if n, err := strconv.ParseInt(v, 10, 64); err == nil {
				m[k] = n
			}
		}
	}
	return m, nil
}
