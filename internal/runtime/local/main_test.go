package local

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"log/slog"
	"net"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/runtime/local/runsc"
	"crownest.dev/crownest/internal/runtime/runtimetest/lineguest"
	"crownest.dev/crownest/internal/sandbox"
)

func TestMain(m *testing.M) {
	if runsc.Dispatch() {
		return
	}
	os.Exit(m.Run())
}

func testImage(t testing.TB) (guest []byte, image string) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "guest")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", bin, "../runtimetest/testguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building guest: %v\n%s", err, out)
	}
	guest, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	for _, d := range []string{"proc", "sys", "dev", "tmp", "workspace", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image = filepath.Join(dir, "root.erofs")
	if out, err := exec.Command("mkfs.erofs", "-d0", "-Enoinline_data", image, root).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	return guest, image
}

func TestSmoke(t *testing.T) {
	guest, image := testImage(t)
	var first net.Conn
	d, err := New(t.Context(), Options{DataDir: t.TempDir(), Guest: guest, Logger: slog.Default(),
		Ready: func(ctx context.Context, in runtime.Instance, conn net.Conn) error {
			_, err := lineguest.Ask(conn, "ping", 5*time.Second)
			first = conn
			return err
		}})
	if err != nil {
		t.Fatal(err)
	}
	spec := runtime.Spec{ImageID: "tplv_x", ImagePath: image, Resources: sandbox.DefaultResources}
	for range 10 {
		t0 := time.Now()
		in, err := d.Acquire(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("acquire %v", time.Since(t0))
		t0 = time.Now()
		c, err := d.Dial(t.Context(), in.ID)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("dial %v", time.Since(t0))
		for _, q := range []string{"ping", "read /proc/meminfo", "read /sys/fs/cgroup/cgroup.controllers", "read /proc/mounts"} {
			a, err := lineguest.Ask(c, q, 5*time.Second)
			t.Log(a, err)
		}
		t.Log(d.Stats(t.Context(), in.ID))
		c.Close()
		first.Close()
		t0 = time.Now()
		if err := d.Release(t.Context(), in.ID); err != nil {
			t.Fatal(err)
		}
		t.Logf("release %v", time.Since(t0))
	}
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
