package local_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/runtime/local"
	"crownest.dev/crownest/internal/runtime/local/runsc"
	"crownest.dev/crownest/internal/runtime/runtimetest"
	"crownest.dev/crownest/internal/runtime/runtimetest/lineguest"
	"crownest.dev/crownest/internal/sandbox"
)

// What the tests share: the test guest and a root image with nothing but empty
// directories in it. Both are made in seconds.
var (
	guest []byte
	spec  runtime.Spec
)

// madeEnv names a directory in which guest and image are made already: for running
// the compiled tests on a machine without Go, such as one with another kernel.
const madeEnv = "CROWNEST_TEST_MADE"

func TestMain(m *testing.M) {
	if runsc.Dispatch() {
		return
	}
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "crownest-local")
		if err == nil {
			defer os.RemoveAll(dir)
			err = prepare(dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "preparing:", err)
			return 1
		}
		code := m.Run()
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}())
}

func prepare(dir string) error {
	if cgo {
		return fmt.Errorf("build these tests with CGO_ENABLED=0: gVisor runs the test binary where no libraries are")
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("these tests need root")
	}
	spec = runtime.Spec{ImageID: "tplv_test", Resources: sandbox.DefaultResources}
	if made := os.Getenv(madeEnv); made != "" {
		var err error
		spec.ImagePath = filepath.Join(made, "root.erofs")
		guest, err = os.ReadFile(filepath.Join(made, "guest"))
		return err
	}
	bin := filepath.Join(dir, "guest")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", bin, "../runtimetest/testguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the guest: %w\n%s", err, out)
	}
	var err error
	if guest, err = os.ReadFile(bin); err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	for _, d := range []string{"proc", "sys", "dev", "tmp", "workspace"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	image := filepath.Join(dir, "root.erofs")
	if out, err := exec.Command("mkfs.erofs", "-d0", "-Enoinline_data", image, root).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w\n%s", err, out)
	}
	spec.ImagePath = image
	return nil
}

func TestConformance(t *testing.T) {
	runtimetest.Run(t, runtimetest.Subject{
		Open: func(t *testing.T, dir string, ready runtime.ReadyFunc, capacity int) runtime.Driver {
			return open(t, local.Options{DataDir: dir, Ready: ready, MaxSandboxes: capacity})
		},
		Spec:      spec,
		Leftovers: leftovers,
		Cycles:    50,
	})
}

// pingOnce is a Ready hook that waits until the guest answers.
func pingOnce(_ context.Context, _ runtime.Instance, c net.Conn) error {
	defer c.Close()
	_, err := lineguest.Ask(c, "ping", patience)
	return err
}

func open(t testing.TB, opts local.Options) *local.Driver {
	t.Helper()
	opts.Guest = guest
	if opts.Ready == nil {
		opts.Ready = pingOnce
	}
	d, err := local.New(t.Context(), opts)
	if err != nil {
		t.Fatalf("opening driver: %v", err)
	}
	// A test that fails half way leaves nothing running either; after one that
	// closed the driver itself this does nothing.
	t.Cleanup(func() {
		ctx := context.Background()
		if list, err := d.List(ctx); err == nil && t.Failed() {
			for _, in := range list {
				_ = d.Release(ctx, in.ID)
			}
		}
		_ = d.Close(ctx)
	})
	return d
}
