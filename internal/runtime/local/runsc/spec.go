package runsc

import (
	"fmt"
	"math"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crownest.dev/crownest/internal/sandbox"
)

const (
	// GuestMount is where the directory with the guest binary appears inside.
	GuestMount = "/.crownest"
	// GuestPath is the guest binary inside.
	GuestPath = GuestMount + "/guest"

	annotationMemory = "dev.crownest.memory"
	annotationCPUs   = "dev.crownest.cpus"
)

// guestCapabilities are what root inside may do to the sandboxed kernel. None of
// them is a capability on the host. SYS_ADMIN and SYS_RESOURCE let the guest run
// the in-sandbox cgroups and raise limits for the commands it starts; SYS_PTRACE
// lets it look at them.
var guestCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_SETFCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_SYS_ADMIN", "CAP_SYS_RESOURCE", "CAP_SYS_PTRACE",
}

// spec describes the sandbox in OCI's words.
func (r *LaunchRequest) spec(netns string) *specs.Spec {
	tmp, shm := tmpfsSizes(r.Resources)
	sentryOOMScore := 0
	return &specs.Spec{
		Version:  "1.0.0",
		Hostname: "sandbox",
		Root:     &specs.Root{Path: filepath.Join(r.Dir, "rootfs")},
		Process: &specs.Process{
			Args:            append([]string{GuestPath}, r.GuestArgs...),
			Env:             []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cwd:             "/",
			NoNewPrivileges: true,
			OOMScoreAdj:     &sentryOOMScore,
			Capabilities: &specs.LinuxCapabilities{
				Bounding: guestCapabilities, Effective: guestCapabilities, Permitted: guestCapabilities,
			},
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Soft: 65536, Hard: 65536},
				{Type: "RLIMIT_CORE"},
			},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=1m"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", size(shm)}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", size(tmp)}},
			// The one bind mount. Besides carrying the guest it makes gVisor start a
			// gofer, without which the overlay could live in memory only.
			{Destination: GuestMount, Type: "bind", Source: r.GuestDir, Options: []string{"bind", "ro", "nosuid", "nodev"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: netns},
			},
			Resources: &specs.LinuxResources{},
		},
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source":  r.Image,
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.overlay": "self",
			"dev.gvisor.spec.rootfs.options": size(r.Resources.DiskBytes),
			annotationMemory:                 strconv.FormatInt(r.Resources.MemoryBytes, 10),
			// Programs turn locks off when they see one processor only, and some then
			// fail in strange ways; gVisor itself keeps to two for that reason.
			annotationCPUs: strconv.Itoa(max(2, int(math.Ceil(r.Resources.VCPU)))),
		},
	}
}

// tmpfsSizes shares half of the memory among the file systems that live in it, so
// that filling them all ends in ENOSPC and not in an out-of-memory kill.
func tmpfsSizes(r sandbox.Resources) (tmp, shm int64) {
	half := r.MemoryBytes/2 - 1<<20 // less /dev
	shm = half / 4
	return half - shm, shm
}

func size(n int64) string { return fmt.Sprintf("size=%d", n) }
