// Package host finds out what this machine can do for CrowNest and how to mend
// what it cannot. It only looks: it changes nothing that it does not undo at once.
// `crownest doctor` prints what it finds and `serve` refuses to start on a failure,
// rather than run without isolation.
package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/runtime/local/cgroup"
)

// Check is one finding.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`   // false: sandboxes cannot run, or not safely
	Warn   bool   `json:"warn"` // OK, but something will be missing or slow
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// Options says what the server will need.
type Options struct {
	DataDir string // where the server keeps its data; need not exist yet
	Listen  string // HOST:PORT, or empty: the port is not checked
}

// MinKernel is the oldest kernel that sandboxes are known to need: pidfds that do
// not block, and the system calls of gVisor's platform.
var MinKernel = [2]int{5, 10}

// ThreadsPerSandbox is how many host threads a sandbox needs that does little.
const ThreadsPerSandbox = 35

const (
	minDisk   = 2 << 30
	wantDisk  = 10 << 30
	minMemory = 1 << 30
)

// Run looks at everything. The order is that in which people mend it.
func Run(ctx context.Context, opts Options) []Check {
	checks := []Check{
		platform(), kernel(), privilege(), userNamespaces(ctx), namespaces(ctx), cgroups(),
		memory(), disk(opts.DataDir),
		tool("mkfs.erofs", "erofs-utils", "to build template images"),
		tool("mmdebstrap", "mmdebstrap", "to build template images"),
		processes(),
	}
	if opts.Listen != "" {
		checks = append(checks, port(ctx, opts.Listen))
	}
	return checks
}

// Failed returns those checks that must be mended before sandboxes can run.
func Failed(checks []Check) []Check {
	var failed []Check
	for _, c := range checks {
		if !c.OK {
			failed = append(failed, c)
		}
	}
	return failed
}

func good(name, format string, args ...any) Check {
	return Check{Name: name, OK: true, Detail: fmt.Sprintf(format, args...)}
}

func warn(name, remedy, format string, args ...any) Check {
	return Check{Name: name, OK: true, Warn: true, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
}

func bad(name, remedy, format string, args ...any) Check {
	return Check{Name: name, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
}

func platform() Check {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return bad("platform", "use a Linux machine with an x86-64 or ARM64 processor", "%s/%s", runtime.GOOS, runtime.GOARCH)
	}
	return good("platform", "%s/%s, %d processors", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
}

func kernel() Check {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return bad("kernel", "", "cannot be read: %v", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	version, ok := parseRelease(release)
	if !ok {
		return warn("kernel", fmt.Sprintf("make sure that it is at least %d.%d", MinKernel[0], MinKernel[1]), "release %q is in an unknown form", release)
	}
	if version[0] < MinKernel[0] || version[0] == MinKernel[0] && version[1] < MinKernel[1] {
		return bad("kernel", fmt.Sprintf("update to Linux %d.%d or later", MinKernel[0], MinKernel[1]), "Linux %s", release)
	}
	return good("kernel", "Linux %s", release)
}

// parseRelease reads the first two numbers of a kernel release.
func parseRelease(s string) (v [2]int, ok bool) {
	major, rest, ok := strings.Cut(s, ".")
	if !ok {
		return v, false
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	var err1, err2 error
	v[0], err1 = strconv.Atoi(major)
	v[1], err2 = strconv.Atoi(rest[:end])
	return v, err1 == nil && err2 == nil && v[0] >= 0
}

// capabilities that starting a sandbox uses.
var needed = []struct {
	bit  uint
	name string
}{
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_SETUID, "CAP_SETUID"}, {unix.CAP_SETGID, "CAP_SETGID"},
	{unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT"}, {unix.CAP_SETPCAP, "CAP_SETPCAP"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE"}, {unix.CAP_KILL, "CAP_KILL"}, {unix.CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"},
}

func privilege() Check {
	const remedy = "run as root: with sudo, as a systemd system service, or in a container with --privileged"
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return bad("privilege", remedy, "cannot be read: %v", err)
	}
	missing, err := missingCapabilities(string(status))
	if err != nil {
		return bad("privilege", remedy, "cannot be read: %v", err)
	}
	uid := os.Geteuid()
	if uid != 0 || len(missing) > 0 {
		return bad("privilege", remedy, "user %d, missing: %s", uid, orNone(missing))
	}
	return good("privilege", "root with all capabilities that are needed")
}

// missingCapabilities names the needed capabilities that a /proc status lacks.
func missingCapabilities(status string) ([]string, error) {
	for line := range strings.Lines(status) {
		hex, ok := strings.CutPrefix(line, "CapEff:")
		if !ok {
			continue
		}
		have, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		if err != nil {
			return nil, err
		}
		var missing []string
		for _, c := range needed {
			if have&(1<<c.bit) == 0 {
				missing = append(missing, c.name)
			}
		}
		return missing, nil
	}
	return nil, errors.New("no effective capabilities listed")
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// tryNamespaces starts a process in new namespaces, as a sandbox does.
func tryNamespaces(ctx context.Context, flags uintptr) error {
	cmd := exec.CommandContext(ctx, "true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	return cmd.Run()
}

func userNamespaces(ctx context.Context) Check {
	const name = "user namespaces"
	if err := tryNamespaces(ctx, unix.CLONE_NEWUSER); err != nil {
		return bad(name, "sysctl -w user.max_user_namespaces=15000; on a hardened kernel also kernel.unprivileged_userns_clone=1; in a container allow the clone system call (--privileged)",
			"cannot be made: %v", err)
	}
	if max, err := readInt("/proc/sys/user/max_user_namespaces"); err == nil && max < 1000 {
		return warn(name, "sysctl -w user.max_user_namespaces=15000", "at most %d, each sandbox needs one", max)
	}
	return good(name, "can be made")
}

func namespaces(ctx context.Context) Check {
	const name = "namespaces"
	if err := tryNamespaces(ctx, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS); err != nil {
		return bad(name, "run as root, in a container with --privileged; the kernel needs CONFIG_NET_NS and CONFIG_PID_NS", "cannot be made: %v", err)
	}
	return good(name, "network, mount, pid, ipc and uts can be made")
}

func cgroups() Check {
	const name = "cgroups"
	const mount = "mount cgroup v2: add systemd.unified_cgroup_hierarchy=1 to the kernel command line, or in a container use --privileged --cgroupns=host"
	h, err := cgroup.Detect()
	if err != nil {
		return bad(name, mount, "%v", err)
	}
	if missing := h.Missing(); len(missing) > 0 {
		return bad(name, "enable the controllers; as a systemd service set Delegate=yes", "v%d without %s", h.Version, strings.Join(missing, ", "))
	}
	if err := h.Probe(); err != nil {
		return bad(name, "make the cgroup file system writable: run as root, in a container with --privileged", "v%d: %v", h.Version, err)
	}
	if h.Version == 1 {
		return warn(name, "cgroup v2 starts sandboxes faster: add systemd.unified_cgroup_hierarchy=1 to the kernel command line", "v1, writable")
	}
	return good(name, "v2, writable")
}

func memory() Check {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return bad("memory", "", "cannot be read: %v", err)
	}
	total := uint64(si.Totalram) * uint64(si.Unit)
	if total < minMemory {
		return bad("memory", "use a machine with at least 1 GiB", "%s", size(total))
	}
	return good("memory", "%s", size(total))
}

// disk looks at the file system of the data directory, or of its nearest parent
// that exists.
func disk(dir string) Check {
	const name = "disk"
	if dir == "" {
		dir = "/"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return bad(name, "give an absolute path as data directory", "%v", err)
	}
	at := dir
	var st unix.Statfs_t
	for {
		err = unix.Statfs(at, &st)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || at == "/" {
			break
		}
		at = filepath.Dir(at)
	}
	if err != nil {
		return bad(name, "choose another data directory", "%s: %v", at, err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return bad(name, "choose a data directory on a writable file system", "%s is read-only", at)
	}
	if unix.Access(at, unix.W_OK) != nil {
		return bad(name, "run as root or choose another data directory", "%s is not writable", at)
	}
	if st.Type == unix.TMPFS_MAGIC {
		return warn(name, "choose a data directory on a disk: it is lost at the next boot and its content takes memory", "%s is in memory", at)
	}
	free := st.Bavail * uint64(st.Bsize) //nolint:gosec // never negative
	switch {
	case free < minDisk:
		return bad(name, "free some space or choose another data directory", "%s free at %s", size(free), at)
	case free < wantDisk:
		return warn(name, "template images and sandboxes want 10 GiB", "%s free at %s", size(free), at)
	}
	return good(name, "%s free at %s", size(free), at)
}

func tool(name, pkg, use string) Check {
	remedy := "apt-get install " + pkg
	path, err := exec.LookPath(name)
	if err != nil {
		return warn(name, remedy, "not found, needed %s", use)
	}
	return good(name, "%s", path)
}

// processes looks at the limits that many sandboxes run into first.
func processes() Check {
	const name = "process limits"
	pidMax, err := readInt("/proc/sys/kernel/pid_max")
	if err != nil {
		return warn(name, "", "cannot be read: %v", err)
	}
	threads, err := readInt("/proc/sys/kernel/threads-max")
	if err != nil {
		return warn(name, "", "cannot be read: %v", err)
	}
	if n := min(pidMax, threads); n < 65536 {
		return warn(name, "sysctl -w kernel.pid_max=4194304 kernel.threads-max=1000000", "room for about %d sandboxes", n/ThreadsPerSandbox)
	}
	return good(name, "pid_max %d, threads-max %d", pidMax, threads)
}

// portPatience is how long a port may stay taken by what is about to let go of it.
const portPatience = 2 * time.Second

func port(ctx context.Context, addr string) Check {
	const name = "port"
	var l net.Listener
	var err error
	// A server that was killed a moment ago may have been starting a process, which
	// holds a copy of its socket until it has become the other program.
	for deadline := time.Now().Add(portPatience); ; time.Sleep(portPatience / 50) {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if !errors.Is(err, syscall.EADDRINUSE) || ctx.Err() != nil || time.Now().After(deadline) {
			break
		}
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && answers(ctx, addr):
		return warn(name, "", "a CrowNest server answers at %s already", addr)
	case errors.Is(err, syscall.EADDRINUSE):
		return bad(name, "stop what listens there, or choose another address with --listen", "%v", err)
	case err != nil:
		return bad(name, "give an address of this host as HOST:PORT with --listen", "%v", err)
	}
	if err := l.Close(); err != nil {
		return bad(name, "", "%v", err)
	}
	return good(name, "%s is free", addr)
}

// answers reports whether a CrowNest server listens at addr.
func answers(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return false
	}
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.0\r\nHost: "+addr+"\r\n\r\n"); err != nil {
		return false
	}
	head := make([]byte, 4096)
	n, _ := io.ReadFull(conn, head) // what came before the end is enough
	return strings.Contains(strings.ToLower(string(head[:n])), "x-request-id: req_")
}

func readInt(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(line), 10, 64)
}

func size(n uint64) string {
	return strconv.FormatFloat(float64(n)/(1<<30), 'f', 1, 64) + " GiB"
}
