package runsc

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/google/subcommands"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
)

const launcherName = "crownest-launch"

// Dispatch plays the part that argv[0] names, if it names one: gVisor's runsc or
// the launcher of one sandbox. Then it does not return, or returns true when the
// part is over. Every main function whose process uses this package must call it
// before anything else: gVisor executes the binary it runs in again and again.
func Dispatch() bool {
	switch name := os.Args[0]; {
	case filepath.Base(name) == launcherName:
		os.Exit(launcherMain())
	case strings.HasPrefix(filepath.Base(name), "runsc"), name == "/proc/self/exe":
		reportLimits()
		// The internal commands, and those an operator needs to look at a sandbox.
		// gVisor's own main package is not used: it carries a 47 MB blob.
		cli.Run(nil, map[util.SubCommand]string{
			new(sentrycmd.Boot):   "internal use only",
			new(sentrycmd.Umount): "internal use only",
			new(cmd.Gofer):        "internal use only",
			new(cmd.Create):       "",
			new(cmd.Delete):       "",
			new(cmd.Exec):         "",
			new(cmd.Kill):         "",
			new(cmd.List):         "",
			new(cmd.Run):          "",
			new(cmd.Start):        "",
			new(cmd.State):        "",
			new(cmd.Wait):         "",
		}, []subcommands.Command{})
		return true
	}
	return false
}

// reportLimits makes a sandbox see its own size instead of the host's. gVisor
// would read it from a cgroup that it manages itself, but the driver manages
// them; so the arguments of the boot command are completed from the spec.
func reportLimits() {
	total, boot, specFD := -1, -1, -1
	for i, a := range os.Args {
		if a == "boot" {
			boot = i
		}
		if a == "--total-memory" && i+1 < len(os.Args) {
			total = i + 1
		}
		if v, ok := strings.CutPrefix(a, "--spec-fd="); ok {
			if fd, err := strconv.Atoi(v); err == nil {
				specFD = fd
			}
		}
	}
	if boot < 0 || total < 0 || specFD < 0 {
		return // another command
	}
	// The file is open already, and not to be opened again: by now this process is
	// nobody. Its offset must stay where it is, for gVisor reads it later.
	raw := make([]byte, maxSpec)
	n, err := unix.Pread(specFD, raw, 0)
	if err != nil {
		return
	}
	var spec specs.Spec
	if json.Unmarshal(raw[:n], &spec) != nil || spec.Annotations[annotationMemory] == "" {
		return
	}
	os.Args[total] = spec.Annotations[annotationMemory]
	if cpus, err := strconv.Atoi(spec.Annotations[annotationCPUs]); err == nil && cpus > 0 {
		flag := "--cpu-num=" + strconv.Itoa(min(cpus, runtime.NumCPU()))
		os.Args = slices.Insert(os.Args, boot+1, flag)
	}
}

const maxSpec = 64 << 10
