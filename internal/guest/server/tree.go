//go:build linux

package server

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/guest/rawfile"
)

// A tree is every process that one command has started, however it tried to get
// away: daemons, sessions of their own, double forks.
type tree interface {
	// attr makes a child be born in the tree.
	attr(a *syscall.SysProcAttr)
	// born tells the tree the pid of its first process.
	born(pid int)
	// pids lists every process in the tree.
	pids() []int
	// kill ends every process in the tree. Those that are being forked right now
	// may survive one call.
	kill()
	// empty says that no process is left.
	empty() bool
	// remove frees what the tree holds; false if processes are left.
	remove() bool
}

// A forest makes trees.
type forest interface {
	plant() (tree, error)
	// limit sets how many tasks all trees together may have.
	limit(tasks int) error
}

// cgroups is the forest of a sandbox: one cgroup of the v2 hierarchy inside the
// sandbox for all user work, and one below it per command. User code cannot leave
// its cgroup, for it may not write to the hierarchy.
type cgroups struct {
	base string
	next atomic.Int64
}

// newCgroups prepares user work below the hierarchy (or a part of it) at root.
func newCgroups(root string) (*cgroups, error) {
	if !rawfile.Exists(root + "/cgroup.procs") {
		return nil, unix.ENOENT
	}
	// Without the pids controller commands can still be told apart and killed.
	_ = rawfile.Write(root+"/cgroup.subtree_control", "+pids", 0, 0)
	c := &cgroups{base: root + "/user"}
	if err := rawfile.MakeDir(c.base, 0o755); err != nil {
		return nil, os.NewSyscallError("mkdir", err)
	}
	return c, nil
}

func (c *cgroups) limit(tasks int) error {
	if tasks <= 0 {
		return nil
	}
	err := rawfile.Write(c.base+"/pids.max", strconv.Itoa(tasks), 0, 0)
	if err == unix.ENOENT {
		return nil // no pids controller: the host's limit is the only one
	}
	return err
}

func (c *cgroups) plant() (tree, error) {
	path := c.base + "/" + strconv.FormatInt(c.next.Add(1), 10)
	if err := unix.Mkdir(path, 0o755); err != nil {
		return nil, os.NewSyscallError("mkdir", err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = unix.Rmdir(path)
		return nil, os.NewSyscallError("open cgroup", err)
	}
	return &cgroup{path: path, fd: fd}, nil
}

type cgroup struct {
	path string
	mu   sync.Mutex
	fd   int // -1 once removed
}

func (g *cgroup) attr(a *syscall.SysProcAttr) { a.UseCgroupFD, a.CgroupFD = true, g.fd }

func (g *cgroup) born(int) {}

// pids lists the processes. Zombies that wait for their parent are not among
// them: they can neither be killed nor do anything.
func (g *cgroup) pids() []int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fd < 0 {
		return nil
	}
	fd, err := unix.Openat(g.fd, "cgroup.procs", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var pids []int
	buf := make([]byte, 4096)
	pid := 0
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			return pids
		}
		for _, b := range buf[:n] {
			switch {
			case b >= '0' && b <= '9':
				pid = pid*10 + int(b-'0')
			case pid > 0:
				pids = append(pids, pid)
				pid = 0
			default:
				pid = 0
			}
		}
	}
}

func (g *cgroup) empty() bool { return len(g.pids()) == 0 }

func (g *cgroup) kill() {
	g.mu.Lock()
	fd := g.fd
	if fd < 0 {
		g.mu.Unlock()
		return
	}
	err := writeFileAt(fd, "cgroup.kill", "1")
	g.mu.Unlock()
	if err != nil { // a kernel before 5.14
		for _, pid := range g.pids() {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
	}
}

func (g *cgroup) remove() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fd < 0 {
		return true
	}
	if err := unix.Rmdir(g.path); err != nil && err != unix.ENOENT {
		return false
	}
	_ = unix.Close(g.fd)
	g.fd = -1
	return true
}

// scans is the forest where there is no cgroup hierarchy to write to: tests, and
// runtimes that do not offer one inside. It finds a command's processes by descent
// and session, which a process can escape from by leaving its session and letting
// its parents die. Process limits are the runtime's there.
type scans struct{}

func (scans) plant() (tree, error) { return &scan{known: map[int]uint64{}}, nil }
func (scans) limit(int) error      { return nil }

type scan struct {
	mu    sync.Mutex
	root  int
	known map[int]uint64 // pid to start time of everything ever seen in the tree
}

func (t *scan) attr(*syscall.SysProcAttr) {}

func (t *scan) born(pid int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.root = pid
	if p, ok := readProcess(pid); ok {
		t.known[pid] = p.start
	}
}

// members looks at every process: it belongs to the tree if its session is the
// command's, its parent belongs, or it was seen to belong before.
func (t *scan) members() []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	dir, err := rawfile.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil
	}
	processes := map[int]process{}
	// What was read before an error is still true.
	_ = rawfile.Names(dir, func(names []string) bool {
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil {
				if p, ok := readProcess(pid); ok {
					processes[pid] = p
				}
			}
		}
		return true
	})
	_ = unix.Close(dir)
	for pid, start := range t.known {
		if p, ok := processes[pid]; !ok || p.start != start {
			delete(t.known, pid)
		}
	}
	for grown := true; grown; {
		grown = false
		for pid, p := range processes {
			if _, known := t.known[pid]; known {
				continue
			}
			_, parent := t.known[p.parent]
			if parent || (t.root != 0 && p.session == t.root) {
				t.known[pid] = p.start
				grown = true
			}
		}
	}
	var pids []int
	for pid := range t.known {
		if !processes[pid].zombie {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (t *scan) pids() []int { return t.members() }

func (t *scan) kill() {
	for _, pid := range t.members() {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
	}
}

func (t *scan) empty() bool  { return len(t.members()) == 0 }
func (t *scan) remove() bool { return t.empty() }

type process struct {
	parent, session int
	start           uint64
	zombie          bool
}

func readProcess(pid int) (process, bool) {
	b, err := rawfile.Read("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	s := string(b)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:]) // the name may hold anything
	if len(fields) < 20 {
		return process{}, false
	}
	var p process
	p.zombie = fields[0] == "Z" || fields[0] == "X"
	p.parent, _ = strconv.Atoi(fields[1])
	p.session, _ = strconv.Atoi(fields[3])
	p.start, _ = strconv.ParseUint(fields[19], 10, 64)
	return p, true
}

func writeFileAt(dir int, name, content string) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return rawfile.WriteAll(fd, []byte(content))
}
