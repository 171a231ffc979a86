package cgroup

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fakeV2 is a directory that looks like a cgroup v2 hierarchy. It shows which
// files are written with what; only a kernel shows that they work.
func fakeV2(t *testing.T) (*Group, func(file string) string) {
	t.Helper()
	root := t.TempDir()
	h := &Hierarchy{Version: 2, mounts: []mount{{dir: root, controllers: []string{"cpu", "memory", "pids"}}}}
	g := (&Parent{h: h, name: "parent"}).Group("one")
	dir := g.Dirs()[0]
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]string{
		"memory.max": "max\n", "memory.swap.max": "max\n", "cpu.max": "max 100000\n", "cpu.weight": "100\n", "pids.max": "max\n",
		"memory.current": "5000000\n", "memory.stat": "anon 1\nfile 9\ninactive_file 1000000\n",
		"memory.events": "low 0\noom 3\noom_kill 2\n", "cpu.stat": "usage_usec 1500\nuser_usec 1\n", "pids.current": "7\n",
		"cgroup.procs": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return g, func(file string) string {
		raw, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
}

func TestV2Files(t *testing.T) {
	g, read := fakeV2(t)
	if err := g.Limit(Limits{MemoryBytes: 64 << 20, CPUs: 1.5, Tasks: 99}); err != nil {
		t.Fatal(err)
	}
	if err := g.SetWeight(WeightLow); err != nil {
		t.Fatal(err)
	}
	// Kernel files take a value as a whole; a plain file keeps the tail of the old one.
	for file, want := range map[string]string{
		"memory.max": "67108864", "memory.swap.max": "0", "cpu.max": "150000 100000", "pids.max": "99", "cpu.weight": "10",
	} {
		if got := read(file); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	u, err := g.Usage()
	want := Usage{CPU: 1500 * time.Microsecond, MemoryBytes: 4000000, Tasks: 7, OOMKills: 2}
	if err != nil || u != want {
		t.Errorf("usage %+v, %v", u, err)
	}
	f, err := g.Open()
	if err != nil || f == nil {
		t.Fatalf("open: %v", err)
	}
	f.Close()
}

// TestGroup works on the kernel's cgroups of this host, whichever they are.
func TestGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	if missing := h.Missing(); len(missing) > 0 {
		t.Skipf("this host lacks %v", missing)
	}
	p, err := h.Parent("crownest-test-"+strconv.Itoa(os.Getpid()), Limits{MemoryBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	g := p.Group("one")
	if err := g.Create(Limits{MemoryBytes: 64 << 20, CPUs: 0.5, Tasks: 10}); err != nil {
		t.Fatal(err)
	}
	if names, err := p.Groups(); err != nil || !slices.Equal(names, []string{"one"}) {
		t.Errorf("groups %v, %v", names, err)
	}
	for _, w := range []int{WeightLow, WeightNormal} {
		if err := g.SetWeight(w); err != nil {
			t.Error(err)
		}
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	for _, dir := range g.Dirs() {
		if err := write(dir, "cgroup.procs", strconv.Itoa(cmd.Process.Pid)); err != nil {
			t.Fatal(err)
		}
	}
	if u, err := g.Usage(); err != nil || u.Tasks != 1 {
		t.Errorf("usage %+v, %v", u, err)
	}
	if pids, err := g.Pids(); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("pids %v, %v", pids, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if killed, err := g.Kill(ctx); err != nil || !slices.Equal(killed, []int{cmd.Process.Pid}) {
		t.Errorf("killed %v, %v", killed, err)
	}
	_ = <-waited
	for range 2 { // what is gone is no error
		if err := g.Remove(ctx); err != nil {
			t.Error(err)
		}
		if _, err := g.Kill(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := p.Remove(); err != nil {
		t.Error(err)
	}
	if names, err := p.Groups(); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}
