package local_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/runtime/local"
	"crownest.dev/crownest/internal/runtime/runtimetest/lineguest"
	"crownest.dev/crownest/internal/sandbox"
)

const patience = 60 * time.Second

// one acquires a sandbox of the given size and returns a connection to its guest.
func one(t *testing.T, d *local.Driver, r sandbox.Resources) (runtime.Instance, func(format string, args ...any) string) {
	t.Helper()
	s := spec
	s.Resources = r
	in, err := d.Acquire(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Dial(t.Context(), in.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return in, func(format string, args ...any) string {
		t.Helper()
		answer, err := lineguest.Ask(c, fmt.Sprintf(format, args...), patience)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
}

func shut(t *testing.T, d *local.Driver) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	list, err := d.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range list {
		if err := d.Release(ctx, in.ID); err != nil {
			t.Error(err)
		}
	}
	if err := d.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	const mem, disk = 256 << 20, 96 << 20
	dir := t.TempDir()
	d := open(t, local.Options{DataDir: dir})
	defer func() {
		shut(t, d)
		if left := leftovers(t, dir); len(left) > 0 {
			t.Errorf("left on the host: %v", left)
		}
	}()
	in, ask := one(t, d, sandbox.Resources{VCPU: 1, MemoryBytes: mem, DiskBytes: disk, MaxProcesses: 64})

	t.Run("the sandbox sees its own size", func(t *testing.T) {
		want := fmt.Sprintf("MemTotal: %d kB;", mem>>10)
		if got := strings.Join(strings.Fields(ask("read /proc/meminfo")), " "); !strings.HasPrefix(got, want) {
			t.Errorf("meminfo %.60s, want %s", got, want)
		}
		if got := ask("read /sys/fs/cgroup/cgroup.controllers"); !strings.Contains(got, "pids") {
			t.Errorf("cgroup controllers inside: %q", got)
		}
	})
	t.Run("memory that was promised can be had", func(t *testing.T) {
		if got := ask("hog %d", int64(mem)*9/10); got != "<nil>" {
			t.Errorf("a process with 9/10 of the memory: %s", got)
		}
	})
	t.Run("a memory bomb kills itself only", func(t *testing.T) {
		for range 5 {
			if got := ask("hog %d", int64(mem)*8); got != "signal: killed" {
				t.Errorf("the bomb ended with %q", got)
			}
			if got := ask("ping"); got != "pong" {
				t.Fatalf("ping: %q", got)
			}
		}
		if st, err := d.Stats(t.Context(), in.ID); err != nil || st.OOMKills == 0 {
			t.Errorf("stats: %+v, %v", st, err)
		}
	})
	t.Run("the disk quota is exact", func(t *testing.T) {
		used, errText, _ := strings.Cut(ask("fill /workspace/x %d", disk*4), " ")
		n, err := strconv.ParseInt(used, 10, 64)
		if err != nil || !strings.Contains(errText, "no space left") {
			t.Errorf("fill: %s %s", used, errText)
		}
		// Directories made by mounts take a few blocks.
		if n > disk || n < disk-1<<20 {
			t.Errorf("%d bytes fit, quota is %d", n, disk)
		}
		if st, err := d.Stats(t.Context(), in.ID); err != nil || st.DiskBytes < disk-1<<20 || st.DiskBytes > disk+1<<20 {
			t.Errorf("stats: %+v, %v", st, err)
		}
	})
	t.Run("full file systems in memory leave half of it", func(t *testing.T) {
		for _, dir := range []string{"/tmp", "/dev/shm"} {
			if got := ask("fill %s %d", filepath.Join(dir, "x"), mem*4); !strings.Contains(got, "no space left") {
				t.Errorf("fill %s: %s", dir, got)
			}
		}
		if got := ask("hog %d", mem*4/10); got != "<nil>" {
			t.Errorf("a process with 4/10 of the memory: %s", got)
		}
		if got := ask("hog %d", mem*8); got != "signal: killed" {
			t.Errorf("the bomb ended with %q", got)
		}
		if got := ask("ping"); got != "pong" {
			t.Fatalf("ping: %q", got)
		}
	})
}

// TestSwarm uses up the memory with many processes at once. The kernel may then
// kill more than it needs to. The sandbox must either work on or end, and say why.
func TestSwarm(t *testing.T) {
	const mem = 256 << 20
	d := open(t, local.Options{DataDir: t.TempDir()})
	defer shut(t, d)
	s := spec
	s.Resources = sandbox.Resources{VCPU: 1, MemoryBytes: mem, DiskBytes: 16 << 20}
	for _, n := range []int{5, 20, 40} {
		in, err := d.Acquire(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		c, err := d.Dial(t.Context(), in.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		answer, err := lineguest.Ask(c, fmt.Sprintf("swarm %d %d", n, 2*mem/n), patience)
		works := ""
		if err == nil {
			works, err = lineguest.Ask(c, "hog 1", patience)
		}
		t.Logf("%d processes: %s; afterwards %q, %v", n, answer, works, err)
		if err == nil && works == "<nil>" {
			continue
		}
		select {
		case e := <-d.Exits():
			if e.ID != in.ID || e.Cause != "out of memory" {
				t.Errorf("exit: %+v", e)
			}
		case <-time.After(patience):
			t.Errorf("the sandbox neither works nor ends: %q, %v", works, err)
		}
	}
}

// TestFast holds the promises about time with room for a busy machine, and prints
// the figures.
func TestFast(t *testing.T) {
	d := open(t, local.Options{DataDir: t.TempDir()})
	defer shut(t, d)
	const n = 8
	fill(t, d, n)
	var acquire, dial, release []time.Duration
	for range n {
		t0 := time.Now()
		in, err := d.Acquire(t.Context(), spec)
		acquire = append(acquire, time.Since(t0))
		if err != nil {
			t.Fatal(err)
		}
		t0 = time.Now()
		c, err := d.Dial(t.Context(), in.ID)
		dial = append(dial, time.Since(t0))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		t0 = time.Now()
		if err := d.Release(t.Context(), in.ID); err != nil {
			t.Fatal(err)
		}
		release = append(release, time.Since(t0))
	}
	t.Logf("acquire %v\ndial %v\nrelease %v", acquire, dial, release)
}
