package testserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// group is the name of the cgroup that holds the sandboxes of a data directory.
func (s *Server) group() string {
	sum := sha256.Sum256([]byte(s.Data))
	return "crownest-" + hex.EncodeToString(sum[:4])
}

// cgroups lists the directories of that cgroup and all below it, deepest first.
func (s *Server) cgroups() ([]string, error) {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/" + s.group(), "/sys/fs/cgroup/*/" + s.group()} {
		roots, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, root := range roots {
			if fi, err := os.Lstat(filepath.Dir(root)); err == nil && fi.Mode()&os.ModeSymlink != 0 {
				continue // cpu -> cpu,cpuacct
			}
			err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return err
			})
			if err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(dirs, func(a, b string) int { return len(b) - len(a) })
	return dirs, nil
}

// Processes lists the processes of the server's sandboxes: those in its cgroups,
// and those that name its data directory on their command line.
func (s *Server) Processes() ([]int, error) {
	var pids []int
	add := func(pid int) {
		if pid != os.Getpid() && (s.cmd == nil || pid != s.PID()) && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	dirs, err := s.cgroups()
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue // the group went away
		}
		for _, line := range strings.Fields(string(raw)) {
			if pid, err := strconv.Atoi(line); err == nil {
				add(pid)
			}
		}
	}
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, path := range cmdlines {
		raw, err := os.ReadFile(path)
		if err != nil || !names(raw, s.Data) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			add(pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// names reports whether a command line holds the data directory or a path in it,
// and not just another one that begins alike.
func names(cmdline []byte, data string) bool {
	for word := range bytes.SplitSeq(cmdline, []byte{0}) {
		i := bytes.Index(word, []byte(data))
		if i < 0 {
			continue
		}
		if rest := word[i+len(data):]; len(rest) == 0 || rest[0] == '/' {
			return true
		}
	}
	return false
}

// Leaks describes everything on this host that belongs to the server's sandboxes:
// processes, cgroups, mounts, network namespaces, files. While sandboxes live or
// wait in the pool there is much; after a clean stop of an empty server, nothing.
func (s *Server) Leaks() ([]string, error) {
	var left []string
	pids, err := s.Processes()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil {
			left = append(left, fmt.Sprintf("process %d: %.200q", pid, raw))
		}
	}
	dirs, err := s.cgroups()
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		left = append(left, "cgroup "+dir)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.Data+"/") || strings.Contains(line, s.group()) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	for _, pattern := range []string{
		filepath.Join(s.Data, "instances", "*"), filepath.Join(s.Data, "run", "*"),
		filepath.Join("/run", s.group(), "*"), filepath.Join("/run/netns", "*"+s.group()+"*"),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			left = append(left, "file "+path)
		}
	}
	zombies, err := s.zombies()
	return append(left, zombies...), err
}

// zombies lists children of the running server that it has not collected.
func (s *Server) zombies() ([]string, error) {
	select {
	case <-s.exited:
		return nil, nil
	default:
	}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.PID()))
	if err != nil {
		return nil, err
	}
	var found []string
	for _, list := range lists {
		raw, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, pid := range strings.Fields(string(raw)) {
			if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && bytes.Contains(stat, []byte(") Z ")) {
				found = append(found, "zombie "+string(bytes.TrimSpace(stat)))
			}
		}
	}
	return found, nil
}

// NetNamespaces counts the network namespaces that any process of this host is
// in or that are mounted somewhere.
func NetNamespaces() (int, error) {
	seen := map[string]bool{}
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return 0, err
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil {
			seen[target] = true
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 3 && strings.HasPrefix(f[3], "net:") {
			seen[f[3]] = true
		}
	}
	return len(seen), nil
}

// Destroy kills the server and everything that belongs to its sandboxes, by pid,
// and removes what they held. Tests need it only for what went wrong, or to end
// without waiting.
func (s *Server) Destroy() error {
	s.Kill()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		pids, err := s.Processes()
		if err != nil {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already, or gone soon
		}
		dirs, err := s.cgroups()
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			_ = os.Remove(dir) // busy until its processes are gone
		}
		if len(pids)+len(dirs) == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d processes and %d cgroups cannot be removed: %v %v", len(pids), len(dirs), pids, dirs)
		}
	}
	var errs []error
	for _, path := range []string{
		filepath.Join(s.Data, "instances"), filepath.Join(s.Data, "run"),
		filepath.Join("/run", s.group()), s.Data + ".templates",
	} {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

// Groups lists the cgroup directories of the single sandboxes, those of one
// controller on cgroup v1.
func (s *Server) Groups(controller string) ([]string, error) {
	dirs, err := s.cgroups()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(dirs, func(dir string) bool {
		parent := filepath.Dir(dir)
		if filepath.Base(parent) != s.group() {
			return true
		}
		mount := filepath.Dir(parent)
		return mount != "/sys/fs/cgroup" && !slices.Contains(strings.Split(filepath.Base(mount), ","), controller)
	}), nil
}

// SandboxCPU is the processor time of all sandboxes together, those that have
// ended included.
func (s *Server) SandboxCPU() (time.Duration, error) {
	if raw, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/cpuacct", s.group(), "cpuacct.usage")); err == nil {
		n, err := strconv.ParseInt(string(bytes.TrimSpace(raw)), 10, 64)
		return time.Duration(n), err
	}
	raw, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", s.group(), "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("reading the sandboxes' processor time: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, errors.New("the cgroup does not tell the sandboxes' processor time")
}
