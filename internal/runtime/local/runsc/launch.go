package runsc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"

	"crownest.dev/crownest/internal/sandbox"
)

// LaunchRequest says what sandbox to start. All paths are absolute.
type LaunchRequest struct {
	ID        string
	Dir       string // the instance's own directory: bundle, overlay, logs
	StateDir  string // gVisor's state files and control socket
	Image     string // EROFS image of the root file system
	GuestDir  string // directory with the file "guest"
	GuestArgs []string
	Resources sandbox.Resources
	// JoinCgroups lists cgroup directories that the launcher enters before it does
	// anything else, and with it all that it starts.
	JoinCgroups []string
}

// LaunchFiles are the open files that a launch needs.
type LaunchFiles struct {
	NetNS    *os.File // network namespace with nothing but loopback
	GuestIn  *os.File // becomes fd 3 of the guest
	GuestOut *os.File // becomes fd 4 of the guest
	Cgroup   *os.File // cgroup v2 directory to start the launcher in, or nil
}

// LaunchResult tells of a sandbox that runs.
type LaunchResult struct {
	// LauncherPID is set after a failure too. It was the leader of a process group,
	// of which orphans may be left.
	LauncherPID   int `json:"-"`
	SentryPID     int
	GoferPID      int
	ControlSocket string
}

type launchReply struct {
	LaunchResult
	Error string
}

// Descriptors of the launcher, in the order of exec.Cmd.ExtraFiles.
const (
	fdReply = 3 + iota
	fdNetNS
	fdGuestIn
	fdGuestOut
)

// PanicLog is the file in the instance's directory to which a dying sentry writes.
const PanicLog = "panic.log"

// Version names the gVisor that this binary carries.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, m := range info.Deps {
			if m.Path == "gvisor.dev/gvisor" {
				return m.Version
			}
		}
	}
	return "unknown"
}

// Launch starts a sandbox through a child process that is gone when Launch
// returns: gVisor moves the process that starts a sandbox into cgroups and
// changes its limits, which the service must not suffer. What the child started
// lives on, whatever becomes of the caller. After an error, parts of it may live:
// all of them are in the cgroups of the request.
func Launch(ctx context.Context, req LaunchRequest, files LaunchFiles) (LaunchResult, error) {
	raw, err := json.Marshal(req)
	if err != nil {
		return LaunchResult{}, fmt.Errorf("encoding launch request: %w", err)
	}
	replyR, replyW, err := os.Pipe()
	if err != nil {
		return LaunchResult{}, fmt.Errorf("launch: %w", err)
	}
	defer replyR.Close()
	defer replyW.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{launcherName}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin = bytes.NewReader(raw)
	cmd.ExtraFiles = []*os.File{replyW, files.NetNS, files.GuestIn, files.GuestOut}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if files.Cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD = true
		cmd.SysProcAttr.CgroupFD = int(files.Cgroup.Fd())
	}
	if err := cmd.Start(); err != nil {
		return LaunchResult{}, fmt.Errorf("starting launcher: %w", err)
	}
	replyW.Close()
	// The launcher keeps this end to itself, so its death ends the read.
	out, readErr := io.ReadAll(io.LimitReader(replyR, 64<<10))
	waitErr := cmd.Wait()
	failed := LaunchResult{LauncherPID: cmd.Process.Pid}
	if err := ctx.Err(); err != nil {
		return failed, fmt.Errorf("launching sandbox: %w", err)
	}
	var reply launchReply
	if readErr != nil || json.Unmarshal(out, &reply) != nil {
		return failed, fmt.Errorf("launcher died: %w", errors.Join(waitErr, readErr))
	}
	if reply.Error != "" {
		return failed, fmt.Errorf("launching sandbox: %s", reply.Error)
	}
	reply.LauncherPID = cmd.Process.Pid
	return reply.LaunchResult, nil
}

// launcherMain is the child process of Launch.
func launcherMain() int {
	log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}})
	replyTo := os.NewFile(fdReply, "reply")
	unix.CloseOnExec(fdReply)
	var reply launchReply
	res, err := launch()
	if err != nil {
		reply.Error = err.Error()
		endChildren()
	} else {
		reply.LaunchResult = *res
	}
	if err := json.NewEncoder(replyTo).Encode(reply); err != nil || reply.Error != "" {
		return 1
	}
	return 0
}

// endChildren ends and collects what a failed launch has started. Dead children
// would otherwise fall to the service, who cannot know them.
func endChildren() {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return
	}
	for _, list := range lists {
		raw, err := os.ReadFile(list)
		if err != nil {
			continue
		}
		for _, child := range strings.Fields(string(raw)) {
			if pid, err := strconv.Atoi(child); err == nil {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func launch() (*LaunchResult, error) {
	var req LaunchRequest
	if err := json.NewDecoder(os.Stdin).Decode(&req); err != nil {
		return nil, fmt.Errorf("reading launch request: %w", err)
	}
	for _, dir := range req.JoinCgroups {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return nil, fmt.Errorf("joining cgroup: %w", err)
		}
	}
	// When the sandbox runs out of memory, the kernel picks the process that has most
	// of it. The sentry has all of it mapped and would be picked before the program
	// that is to blame. So all is born as the preferred victim, and gVisor resets
	// sentry and gofer to what the spec says when they run: what is left at 1000 are
	// the stubs, which stand for the programs inside.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return nil, fmt.Errorf("setting out-of-memory score: %w", err)
	}
	// gVisor hands the caller's standard input and output to the guest.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	for fd := range 3 {
		if err := unix.Dup2(int(null.Fd()), fd); err != nil {
			return nil, fmt.Errorf("detaching standard files: %w", err)
		}
	}
	netns := fmt.Sprintf("/proc/self/fd/%d", fdNetNS)
	conf, err := req.config(netns)
	if err != nil {
		return nil, err
	}
	spec := req.spec(netns)
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(req.Dir, "config.json"), raw, 0o600); err != nil {
		return nil, err
	}
	if err := specutils.FixConfig(conf, spec); err != nil {
		return nil, fmt.Errorf("gVisor configuration: %w", err)
	}
	c, err := container.New(conf, container.Args{
		ID: req.ID, Spec: spec, BundleDir: req.Dir,
		PassFiles: map[int]*os.File{
			3: os.NewFile(fdGuestIn, "guest in"),
			4: os.NewFile(fdGuestOut, "guest out"),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("creating sandbox: %w", err)
	}
	if err := c.Start(conf); err != nil {
		return nil, fmt.Errorf("starting sandbox: %w", err)
	}
	return &LaunchResult{
		SentryPID:     c.SandboxPid(),
		GoferPID:      c.GoferPid.Load(),
		ControlSocket: c.Sandbox.GetControlSocketPath(),
	}, nil
}

func (r *LaunchRequest) config(netns string) (*config.Config, error) {
	flags := flag.NewFlagSet("runsc", flag.ContinueOnError)
	config.RegisterFlags(flags)
	args := []string{
		"--root=" + r.StateDir,
		"--platform=systrap",
		"--network=sandbox",
		"--in-sandbox-cgroup=v2",
		// Limits are set by the driver in cgroups of its own, see Launch.
		"--ignore-cgroups",
		// Nothing of the root file system passes the gofer, so direct access would
		// gain nothing, and without it the sentry runs as nobody in its own user
		// namespace.
		"--directfs=false",
		// The gofer would otherwise pin a namespace by a bind mount.
		"--gofer-network-namespace=" + netns,
		"--log=" + os.DevNull,
		"--panic-log=" + filepath.Join(r.Dir, PanicLog),
	}
	if err := flags.Parse(args); err != nil {
		return nil, fmt.Errorf("gVisor flags %s: %w", strings.Join(args, " "), err)
	}
	conf, err := config.NewFromFlags(flags)
	if err != nil {
		return nil, fmt.Errorf("gVisor configuration: %w", err)
	}
	return conf, nil
}
