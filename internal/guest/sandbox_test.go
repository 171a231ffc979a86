//go:build linux

package guest_test

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/sandbox"
)

// pipes is a net.Conn over two pipes.
type pipes struct{ r, w *os.File }

func (p pipes) Read(b []byte) (int, error)  { return p.r.Read(b) }
func (p pipes) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p pipes) Close() error                { return errors.Join(p.r.Close(), p.w.Close()) }

func (pipes) LocalAddr() net.Addr              { return nil }
func (pipes) RemoteAddr() net.Addr             { return nil }
func (pipes) SetDeadline(time.Time) error      { return nil }
func (pipes) SetReadDeadline(time.Time) error  { return nil }
func (pipes) SetWriteDeadline(time.Time) error { return nil }

// guestBinary builds the guest.
func guestBinary(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "crownest-guest")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "crownest.dev/crownest/cmd/crownest-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, out)
	}
	return path
}

// startSandbox starts a gVisor sandbox with the guest as PID 1. The first
// connection is the pipes it was started with, later ones are attached.
func startSandbox(t testing.TB, runsc, rootfs string) func(testing.TB) net.Conn {
	t.Helper()
	dir := t.TempDir()
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETPCAP", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}
	type object map[string]any
	mount := func(dst, kind, src string, options ...string) object {
		return object{"destination": dst, "type": kind, "source": src, "options": options}
	}
	spec := object{
		"ociVersion": "1.0.0", "hostname": "sandbox",
		"process": object{
			"user": object{"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": true,
			"args":         []string{"/.crownest/guest", "init"},
			"env":          []string{"PATH=/usr/bin:/bin"},
			"capabilities": object{"bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps},
		},
		"root": object{"path": rootfs},
		"mounts": []object{
			mount("/proc", "proc", "proc"), mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755", "size=1m"),
			mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
			mount("/tmp", "tmpfs", "tmpfs", "nosuid", "nodev", "mode=1777", "size=512m"),
			mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev"),
			mount("/.crownest/guest", "bind", guestBinary(t), "ro", "bind"),
		},
		"linux": object{"namespaces": []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}}},
	}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/config.json", b, 0o600); err != nil {
		t.Fatal(err)
	}
	global := []string{"--root=" + dir + "/state", "--network=none", "--ignore-cgroups", "--in-sandbox-cgroup=v2", "--overlay2=root:memory"}
	toGuest := pipePair(t)
	fromGuest := pipePair(t)
	id := sandbox.NewSuffix()
	console, err := os.Create(dir + "/console")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(runsc, append(global, "run", "-bundle", dir, "-pass-fd", "3:3", "-pass-fd", "4:4", id)...)
	cmd.ExtraFiles = []*os.File{toGuest[0], fromGuest[1]}
	cmd.Stdout, cmd.Stderr = console, console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = toGuest[0].Close()
	_ = fromGuest[1].Close()
	t.Cleanup(func() {
		if out, err := exec.Command(runsc, append(global, "delete", "-force", id)...).CombinedOutput(); err != nil {
			t.Errorf("delete the sandbox: %v\n%s", err, out)
		}
		_ = cmd.Wait()                               // it was killed
		_ = unix.Unmount(dir+"/state/null-netns", 0) // runsc keeps it for the next sandbox
		if t.Failed() {
			out, _ := os.ReadFile(dir + "/console")
			t.Logf("console:\n%s", out)
		}
		_ = console.Close()
	})
	first := true
	return func(t testing.TB) net.Conn {
		if first {
			first = false
			return pipes{r: fromGuest[0], w: toGuest[1]}
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		theirs := os.NewFile(uintptr(fds[1]), "guest")
		attach := exec.Command(runsc, append(global, "exec", "-pass-fd", "3:3", id, "/.crownest/guest", "attach")...)
		attach.ExtraFiles = []*os.File{theirs}
		out, err := attach.CombinedOutput()
		_ = theirs.Close()
		if err != nil {
			t.Fatalf("attach: %v\n%s", err, out)
		}
		ours := os.NewFile(uintptr(fds[0]), "host")
		conn, err := net.FileConn(ours)
		_ = ours.Close()
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
}

func pipePair(t testing.TB) [2]*os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.Close()
		_ = w.Close()
	})
	return [2]*os.File{r, w}
}
