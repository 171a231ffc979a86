package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"crownest.dev/crownest/test/testserver"
)

// The peers. All run programs out of the same image.
const (
	peerBare  = "fork+exec (chroot, no isolation)"
	peerBwrap = "bwrap"
	peerRunc  = "runc"
	peerRunsc = "runsc"
	peerRPC   = "runsc, control RPC"
)

var programs = []struct {
	what string
	argv []string
	full int
}{
	{whatTrue, []string{"/bin/bash", "-c", "true"}, 60},
	{whatEcho, []string{"/bin/bash", "-c", "echo hi"}, 60},
	{whatPython, []string{"/usr/bin/python3", "-c", "print(1)"}, 30},
}

// peers measures what the others take for the same work.
func (b *bench) peers(ctx context.Context) error {
	image, err := testserver.Image(template)
	if err != nil {
		return err
	}
	root := filepath.Join(b.dir, "rootfs")
	if out, err := exec.CommandContext(ctx, "fsck.erofs", "--extract="+root, image).CombinedOutput(); err != nil {
		return fmt.Errorf("extracting the image: %w: %s", err, out)
	}
	var errs []error
	for _, peer := range []struct {
		name string
		run  func(context.Context, string, string) error
	}{
		{peerBare, b.bare}, {peerBwrap, b.bwrap}, {peerRunc, b.runc}, {peerRunsc, b.runsc},
	} {
		if err := peer.run(ctx, root, image); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", peer.name, err))
		}
	}
	return errors.Join(errs...)
}

// programsBy measures the programs with a peer that makes a command of an argv.
func (b *bench) programsBy(who string, command func(argv []string) *exec.Cmd) error {
	for _, p := range programs {
		values, err := repeat(b.n(p.full, 3), func() error {
			out, err := command(p.argv).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", p.what, err, out)
			}
			return nil
		})
		if err != nil {
			return err
		}
		b.add(p.what, who, "ms", values)
	}
	return nil
}

// streamBy measures a big output through a peer's pipe.
func (b *bench) streamBy(who string, command func(argv []string) *exec.Cmd) error {
	var values []float64
	for range b.n(3, 1) {
		cmd := command([]string{"/usr/bin/python3", "-c", streamProgram})
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		began := time.Now()
		if err := cmd.Start(); err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, out)
		if err := errors.Join(err, cmd.Wait()); err != nil {
			return err
		}
		if n != streamBytes {
			return fmt.Errorf("%d of %d bytes arrived", n, streamBytes)
		}
		values = append(values, mbps(streamBytes, time.Since(began)))
	}
	b.add(whatStream, who, "MB/s", values)
	return nil
}

func (b *bench) bare(ctx context.Context, root, _ string) error {
	command := func(argv []string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		return cmd
	}
	if err := b.programsBy(peerBare, command); err != nil {
		return err
	}
	return b.streamBy(peerBare, command)
}

func (b *bench) bwrap(ctx context.Context, root, _ string) error {
	command := func(argv []string) *exec.Cmd {
		args := []string{
			"--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
			"--unshare-all", "--die-with-parent", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin",
		}
		return exec.CommandContext(ctx, "bwrap", append(args, argv...)...)
	}
	if err := b.programsBy(peerBwrap, command); err != nil {
		return err
	}
	return b.streamBy(peerBwrap, command)
}

func (b *bench) runc(ctx context.Context, root, _ string) error {
	spec := ociSpec()
	spec["root"] = map[string]any{"path": root, "readonly": true}
	return b.oci(ctx, peerRunc, "runc", []string{"--root", filepath.Join(b.dir, "runc")}, spec)
}

// runsc measures the command line of the gVisor that our own binary carries, with
// our image as it is.
func (b *bench) runsc(ctx context.Context, _, image string) error {
	bin, err := testserver.Binary()
	if err != nil {
		return err
	}
	link := filepath.Join(b.dir, "runsc-bin")
	if err := os.MkdirAll(link, 0o755); err != nil {
		return err
	}
	link = filepath.Join(link, "runsc") // the binary goes by the name it is called
	if err := os.Symlink(bin, link); err != nil {
		return err
	}
	empty := filepath.Join(b.dir, "empty")
	if err := os.MkdirAll(empty, 0o755); err != nil {
		return err
	}
	spec := ociSpec()
	spec["root"] = map[string]any{"path": empty}
	spec["annotations"] = map[string]string{
		"dev.gvisor.spec.rootfs.source": image, "dev.gvisor.spec.rootfs.type": "erofs",
		"dev.gvisor.spec.rootfs.overlay": "memory", "dev.gvisor.spec.rootfs.options": "size=1g",
	}
	state := filepath.Join(b.dir, "rs")
	flags := []string{"--root", state, "--platform=systrap", "--network=none", "--ignore-cgroups"}
	return b.oci(ctx, peerRunsc, link, flags, spec)
}

// oci measures a runtime that takes OCI bundles: cold starts, and programs in a
// container that runs.
func (b *bench) oci(ctx context.Context, who, binary string, flags []string, spec map[string]any) (err error) {
	command := func(args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, binary, append(append([]string(nil), flags...), args...)...)
	}
	cold, err := b.bundle(who+"-cold", spec, "/bin/bash", "-c", "echo hi")
	if err != nil {
		return err
	}
	i := 0
	values, err := repeat(b.n(15, 2), func() error {
		i++
		out, err := command("run", "--bundle", cold, fmt.Sprintf("bench-cold-%s-%d", who, i)).CombinedOutput()
		if err != nil || string(out) != "hi\n" {
			return fmt.Errorf("run: %w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.add(whatCold, who, "ms", values)

	id := "bench-warm-" + who
	warm, err := b.bundle(id, spec, "/usr/bin/sleep", "1000000")
	if err != nil {
		return err
	}
	up := command("run", "--bundle", warm, "--detach", id) // keeps the null device as its stdio
	if err := up.Run(); err != nil {
		return fmt.Errorf("run --detach: %w", err)
	}
	defer func() {
		// Not bound to ctx: what was started is ended even when the time is up.
		down := exec.Command(binary, append(append([]string(nil), flags...), "delete", "--force", id)...)
		if out, derr := down.CombinedOutput(); derr != nil {
			err = errors.Join(err, fmt.Errorf("delete: %w: %s", derr, out))
		}
	}()
	in := func(argv []string) *exec.Cmd { return command(append([]string{"exec", id}, argv...)...) }
	if err := b.programsBy(who, in); err != nil {
		return err
	}
	if err := b.streamBy(who, in); err != nil {
		return err
	}
	if who != peerRunsc {
		return nil
	}
	socket := filepath.Join(b.dir, "rs", "runsc-"+id+".sock")
	for _, p := range programs {
		values, err := repeat(b.n(p.full, 3), func() error { return controlRPC(ctx, socket, id, p.argv) })
		if err != nil {
			return fmt.Errorf("control RPC: %w", err)
		}
		b.add(p.what, peerRPC, "ms", values)
	}
	return nil
}

func (b *bench) bundle(name string, spec map[string]any, argv ...string) (string, error) {
	dir := filepath.Join(b.dir, "bundle-"+name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	process, _ := spec["process"].(map[string]any)
	process["args"] = argv
	raw, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o644)
}

// ociSpec is a plain container: own namespaces, nothing shared, no limits.
func ociSpec() map[string]any {
	mount := func(destination, kind string, options ...string) map[string]any {
		return map[string]any{"destination": destination, "type": kind, "source": kind, "options": options}
	}
	return map[string]any{
		"ociVersion": "1.0.0",
		"process": map[string]any{
			"user": map[string]any{"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": true,
			"env": []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8"},
		},
		"hostname": "bench",
		"mounts": []any{
			mount("/proc", "proc"),
			mount("/dev", "tmpfs", "nosuid", "mode=755", "size=65536k"),
			mount("/tmp", "tmpfs", "nosuid", "mode=1777", "size=64m"),
		},
		"linux": map[string]any{"namespaces": []any{
			map[string]any{"type": "pid"}, map[string]any{"type": "mount"}, map[string]any{"type": "ipc"},
			map[string]any{"type": "uts"}, map[string]any{"type": "network"},
		}},
	}
}

// controlRPC runs a program by gVisor's own protocol: JSON over a unix socket,
// the standard files as descriptors beside it. It is the least that any exec into
// a gVisor sandbox can cost without something that waits inside.
func controlRPC(ctx context.Context, socket, id string, argv []string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return errors.New("no unix socket")
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	var pid int
	fd := int(null.Fd())
	err = rpc(conn, "containerManager.ExecuteAsync", map[string]any{
		"argv": argv, "envv": []string{"PATH=/usr/bin:/bin"}, "wd": "/", "ContainerID": id,
		"Capabilities": map[string]any{}, "NoNewPrivileges": true,
		"GuestFDs": []int{0, 1, 2},
	}, syscall.UnixRights(fd, fd, fd), &pid)
	if err != nil {
		return err
	}
	var status int
	if err := rpc(conn, "containerManager.WaitPID", map[string]any{"PID": pid, "CID": id}, nil, &status); err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("wait status %#x", status)
	}
	return nil
}

func rpc(conn *net.UnixConn, method string, arg any, rights []byte, result any) error {
	raw, err := json.Marshal(map[string]any{"method": method, "arg": arg})
	if err != nil {
		return err
	}
	if _, _, err := conn.WriteMsgUnix(raw, rights, nil); err != nil {
		return err
	}
	answer := struct {
		Success bool   `json:"success"`
		Err     string `json:"err"`
		Result  any    `json:"result"`
	}{Result: result}
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return err
	}
	if !answer.Success {
		return fmt.Errorf("%s: %s", method, answer.Err)
	}
	return nil
}
