//go:build linux

package guest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/guest/server"
	"crownest.dev/crownest/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a real guest and a session with it. The guest runs in this process, or in
// gVisor if the environment names a runsc and a root file system: then the very
// same tests show that the guest does inside what it does outside.
type rig struct {
	t testing.TB
	// serve connects the guest to a new connection.
	serve func(t testing.TB) net.Conn
	// workspace is the sandbox's /workspace as its own commands see it.
	workspace string
	inside    bool
	*guest.Client
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t}
	if runsc := os.Getenv("CROWNEST_GUEST_RUNSC"); runsc != "" {
		r.inside, r.workspace = true, "/workspace"
		r.serve = startSandbox(t, runsc, os.Getenv("CROWNEST_GUEST_ROOTFS"))
	} else {
		r.serve, r.workspace = startInProcess(t)
	}
	r.Client = r.connect()
	return r
}

// connect makes a new session, which supersedes earlier ones.
func (r *rig) connect() *guest.Client {
	r.t.Helper()
	c, err := guest.NewClient(r.ctx(), r.serve(r.t), guest.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

// startInProcess makes a guest that works as the sandbox user if this is root.
func startInProcess(t testing.TB) (func(testing.TB) net.Conn, string) {
	t.Helper()
	root, err := os.MkdirTemp("", "guest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	cfg := server.Config{Root: root, UID: os.Getuid(), GID: os.Getgid(), Home: "/tmp", Build: "test", Shells: 1, Runtime: root + "/run"}
	if os.Getuid() == 0 {
		cfg.UID, cfg.GID = 1000, 1000
		cfg.Cgroup = cgroupDir(t)
	}
	for _, d := range []string{root + "/workspace", root + "/run"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(root+"/workspace", cfg.UID, cfg.GID); err != nil {
		t.Fatal(err)
	}
	srv, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	return func(t testing.TB) net.Conn {
		host, inside := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = srv.Serve(inside) // tells why the connection ended
		}()
		t.Cleanup(func() {
			_ = host.Close()
			<-served
		})
		return host
	}, root + "/workspace"
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	r.t.Cleanup(cancel)
	return ctx
}

// cgroupDir makes a directory in a cgroup v2 hierarchy of this machine, or returns
// "" if there is none.
func cgroupDir(t testing.TB) string {
	for _, base := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(base + "/cgroup.procs"); err != nil {
			continue
		}
		dir, err := os.MkdirTemp(base, "crownest-guest-test-")
		if err != nil {
			continue
		}
		t.Cleanup(func() {
			// Not RemoveAll: the files in it cannot be removed, nor need to be.
			dirs := []string{}
			_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, p)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				if err := os.Remove(dirs[i]); err != nil {
					t.Errorf("cgroup left behind: %v", err)
				}
			}
		})
		return dir
	}
	return ""
}

type result struct {
	stdout, stderr string
	chunks         []sandbox.LogChunk
	exit           guest.Exit
}

// run runs a command and gathers its output.
func (r *rig) run(req guest.StartRequest) (result, error) {
	if req.ID == "" {
		req.ID = sandbox.NewID(sandbox.PrefixCommand)
	}
	if req.Cwd == "" {
		req.Cwd = "/workspace"
	}
	p, err := r.Start(r.ctx(), req)
	if err != nil {
		return result{}, err
	}
	return r.collect(p, 0)
}

func (r *rig) collect(p guest.Process, after int64) (result, error) {
	var res result
	var err error
	res.exit, err = p.Output(r.ctx(), after, func(chunks []sandbox.LogChunk) error {
		for _, c := range chunks {
			c.Data = bytes.Clone(c.Data)
			res.chunks = append(res.chunks, c)
			if c.Stream == sandbox.Stdout {
				res.stdout += string(c.Data)
			} else {
				res.stderr += string(c.Data)
			}
		}
		return nil
	})
	return res, err
}

func (r *rig) mustRun(command string) result {
	r.t.Helper()
	res, err := r.run(guest.StartRequest{Command: command})
	if err != nil {
		r.t.Fatalf("%s: %v", command, err)
	}
	return res
}

func TestRun(t *testing.T) {
	r := newRig(t)
	res := r.mustRun("echo out; echo err >&2; exit 3")
	if res.stdout != "out\n" || res.stderr != "err\n" || res.exit.Code != 3 || res.exit.Cause != guest.CauseExited {
		t.Errorf("got %+v", res)
	}
	if res := r.mustRun("kill -9 $$"); res.exit.Signal != 9 {
		t.Errorf("killed by itself: got %+v", res.exit)
	}
}

func TestFiles(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	data := strings.Repeat("0123456789abcdef", 64<<10)
	info, err := r.Write(ctx, guest.WriteRequest{OperationID: "1", Path: "a/b.txt", CreateParents: true, Size: int64(len(data)), Max: 1 << 30}, strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if info.Path != "/workspace/a/b.txt" || info.Size != int64(len(data)) || info.Name != "b.txt" {
		t.Errorf("written: %+v", info)
	}
	f, err := r.Open(ctx, "/workspace/a/b.txt", 16)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err != nil || string(got) != data[16:] {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.Stat(ctx, "/workspace/none"); !sandbox.CodeFileNotFound.Is(err) {
		t.Errorf("stat of nothing: %v", err)
	}
}

func TestKill(t *testing.T) {
	r := newRig(t)
	p, err := r.Start(r.ctx(), guest.StartRequest{ID: "k", Cwd: "/workspace", Command: "trap '' TERM; echo up; while :; do sleep 1; done"})
	if err != nil {
		t.Fatal(err)
	}
	up := make(chan struct{})
	done := make(chan struct{})
	var exit guest.Exit
	go func() {
		defer close(done)
		exit, err = p.Output(r.ctx(), 0, func([]sandbox.LogChunk) error {
			select {
			case <-up:
			default:
				close(up)
			}
			return nil
		})
	}()
	<-up
	if err := r.Kill(r.ctx(), "k", 50*time.Millisecond, guest.CauseCanceled); err != nil {
		t.Fatal(err)
	}
	<-done
	if err != nil || exit.Cause != guest.CauseCanceled || !exit.Killed || exit.Signal != 9 {
		t.Errorf("got %+v, %v", exit, err)
	}
	if _, err := r.Attach(r.ctx(), "none"); !errors.Is(err, guest.ErrNoProcess) {
		t.Errorf("attach to nothing: %v", err)
	}
}
