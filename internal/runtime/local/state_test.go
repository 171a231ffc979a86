package local_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/runtime/local"
)

// record reads the written record of an instance.
func record(t *testing.T, dir, id string) map[string]any {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "instances", id, "meta.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func sentryPID(t *testing.T, dir, id string) int {
	t.Helper()
	return int(record(t, dir, id)["sentry"].(map[string]any)["pid"].(float64))
}

// TestRemains opens a driver on what crashes, upgrades and reboots leave, and
// wants all of it listed for what it is and releasable.
func TestRemains(t *testing.T) {
	for _, c := range []struct {
		name            string
		spoil           func(t *testing.T, dir, id string)
		ended, outdated bool
	}{
		{"untouched", func(*testing.T, string, string) {}, false, false},
		{"no record", func(t *testing.T, dir, id string) {
			if err := os.Remove(filepath.Join(dir, "instances", id, "meta.json")); err != nil {
				t.Fatal(err)
			}
		}, true, false},
		{"torn record", func(t *testing.T, dir, id string) {
			if err := os.Truncate(filepath.Join(dir, "instances", id, "meta.json"), 40); err != nil {
				t.Fatal(err)
			}
		}, true, false},
		{"no directory", func(t *testing.T, dir, id string) {
			if err := os.RemoveAll(filepath.Join(dir, "instances", id)); err != nil {
				t.Fatal(err)
			}
		}, true, false},
		{"another boot", edit("bootId", "00000000-0000-0000-0000-000000000000"), true, false},
		{"another gVisor", edit("runtimeVersion", "v0.0.0-older"), false, true},
		{"a reused pid", edit("sentry", map[string]any{"pid": 1, "start": 1}), true, false},
		{"sentry dead", func(t *testing.T, dir, id string) {
			if err := syscall.Kill(sentryPID(t, dir, id), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}, true, false},
		{"sentry stopped", func(t *testing.T, dir, id string) {
			if err := syscall.Kill(sentryPID(t, dir, id), syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			first := open(t, local.Options{DataDir: dir})
			in, err := first.Acquire(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			if err := first.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.spoil(t, dir, in.ID)

			d := open(t, local.Options{DataDir: dir})
			if c.name == "sentry dead" {
				// It dies a moment after the signal, perhaps after the takeover.
				select {
				case <-d.Exits():
				case <-time.After(time.Second):
				}
			}
			list, err := d.List(t.Context())
			if err != nil || len(list) != 1 {
				t.Fatalf("list: %+v, %v", list, err)
			}
			if got := list[0]; got.ID != in.ID || got.Ended != c.ended || got.Outdated != c.outdated {
				t.Errorf("listed as %+v", got)
			}
			if c.ended {
				if _, err := d.Dial(t.Context(), in.ID); !errors.Is(err, runtime.ErrNotFound) {
					t.Errorf("dial: %v", err)
				}
			}
			if c.name == "sentry stopped" {
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				if _, err := d.Dial(ctx, in.ID); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("dialling a sandbox that hangs: %v", err)
				}
			}
			shut(t, d)
			if left := leftovers(t, dir); len(left) > 0 {
				t.Errorf("left on the host: %v", left)
			}
		})
	}
}

func edit(key string, value any) func(*testing.T, string, string) {
	return func(t *testing.T, dir, id string) {
		t.Helper()
		m := record(t, dir, id)
		m[key] = value
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "instances", id, "meta.json"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOneDriver wants a second driver on the same data to be refused.
func TestOneDriver(t *testing.T) {
	dir := t.TempDir()
	d := open(t, local.Options{DataDir: dir})
	defer shut(t, d)
	if _, err := local.New(t.Context(), local.Options{DataDir: dir, Guest: guest}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("second driver: %v", err)
	}
}

// TestCloseFullPool wants waiting instances gone after Close.
func TestCloseFullPool(t *testing.T) {
	dir := t.TempDir()
	d := open(t, local.Options{DataDir: dir})
	fill(t, d, 3)
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left on the host: %v", left)
	}
}

// TestPoolShrinks wants a pool without demand to give instances up, but not all.
func TestPoolShrinks(t *testing.T) {
	dir := t.TempDir()
	d := open(t, local.Options{DataDir: dir, ShrinkEvery: 20 * time.Millisecond})
	defer shut(t, d)
	d.Prepare([]runtime.PoolTarget{{Spec: spec, Max: 4}})
	waitFor(t, "a smaller target", func() bool { p := d.Pools()[0]; return p.Target == 2 && p.Idle == 2 })
	in, err := d.Acquire(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Pools()[0].Target; got != 4 {
		t.Errorf("after a demand the target is %d", got)
	}
	if err := d.Release(t.Context(), in.ID); err != nil {
		t.Error(err)
	}
}

// TestWaitingInstanceDies wants the pool to replace what dies in it, and tell nobody.
func TestWaitingInstanceDies(t *testing.T) {
	dir := t.TempDir()
	d := open(t, local.Options{DataDir: dir})
	defer shut(t, d)
	fill(t, d, 1)
	list, err := d.List(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("list: %+v, %v", list, err)
	}
	if err := syscall.Kill(sentryPID(t, dir, list[0].ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "another instance", func() bool {
		now, err := d.List(t.Context())
		return err == nil && len(now) == 1 && now[0].ID != list[0].ID && d.Pools()[0].Idle == 1
	})
	select {
	case e := <-d.Exits():
		t.Errorf("told of the end of an instance that was nobody's: %+v", e)
	default:
	}
}

func fill(t testing.TB, d *local.Driver, n int) {
	t.Helper()
	d.Prepare([]runtime.PoolTarget{{Spec: spec, Max: n}})
	waitFor(t, "a full pool", func() bool { return d.Pools()[0].Idle == n })
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not reached: %s", what)
		}
	}
}

// BenchmarkIdle measures what an instance costs that waits.
func BenchmarkIdle(b *testing.B) {
	const n = 40
	for range b.N {
		d := open(b, local.Options{DataDir: b.TempDir()})
		fill(b, d, 5) // what is paid once
		before := available(b)
		started := time.Now()
		fill(b, d, 5+n)
		b.ReportMetric(float64(n)/time.Since(started).Seconds(), "starts/s")
		b.ReportMetric(float64(before-available(b))/n/(1<<20), "MiB/instance")
		list, err := d.List(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		var charged, tasks int64
		for _, in := range list {
			st, err := d.Stats(b.Context(), in.ID)
			if err != nil {
				b.Fatal(err)
			}
			charged += st.MemoryBytes
			tasks += int64(st.Processes)
		}
		b.ReportMetric(float64(charged)/float64(len(list))/(1<<20), "chargedMiB/instance")
		b.ReportMetric(float64(tasks)/float64(len(list)), "threads/instance")
		if err := d.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// available returns the memory that the host could still give.
func available(b *testing.B) int64 {
	b.Helper()
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			var kib int64
			for _, r := range strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")) {
				kib = kib*10 + int64(r-'0')
			}
			return kib << 10
		}
	}
	b.Fatal("no MemAvailable")
	return 0
}
