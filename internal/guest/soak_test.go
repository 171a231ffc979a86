//go:build linux

package guest_test

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"crownest.dev/crownest/internal/guest"
)

// TestNothingStays runs commands one after another and looks at what is left of
// them. CROWNEST_GUEST_SOAK says how many, 10000 for a real look.
func TestNothingStays(t *testing.T) {
	n := 300
	if s := os.Getenv("CROWNEST_GUEST_SOAK"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	r := newRig(t)
	look := func() (state string, rss int) {
		if r.inside {
			// The watching command and the shells that wait have cgroups and processes
			// of their own, more or less of them.
			res := r.mustRun("ls -d /sys/fs/cgroup/user/*/ | wc -l; ls -d /proc/[0-9]* | wc -l; grep VmRSS /proc/1/status | tr -dc 0-9")
			f := strings.Fields(res.stdout)
			cgroups, _ := strconv.Atoi(f[0])
			tasks, _ := strconv.Atoi(f[1])
			rss, _ = strconv.Atoi(f[2])
			return fmt.Sprintf("more than 4 cgroups: %v, more than 8 processes: %v", cgroups > 4, tasks > 8), rss
		}
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return fmt.Sprintf("more than 40 descriptors: %v, more than 30 goroutines: %v", len(fds) > 40, runtime.NumGoroutine() > 30), int(m.HeapAlloc >> 10)
	}
	for range 50 {
		r.mustRun("true")
	}
	before, rssBefore := look()
	for i := range n {
		id := fmt.Sprintf("cmd%d", i)
		// Some leave a process behind that ends later, some are forgotten by the host.
		command := "echo " + id
		if i%7 == 0 {
			command += "; (setsid sleep 0.2 >/dev/null 2>&1 &)"
		}
		res, err := r.run(guest.StartRequest{ID: id, Command: command})
		if err != nil || res.stdout != id+"\n" {
			t.Fatalf("%s: %+v, %v", id, res, err)
		}
		if i%2 == 0 {
			if err := r.Forget(r.ctx(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.mustRun("sleep 0.5")
	after, rssAfter := look()
	t.Logf("%d commands: %d KiB, then %d KiB", n, rssBefore, rssAfter)
	if before != after {
		t.Errorf("before: %s\nafter: %s", before, after)
	}
	// Outside of a sandbox the test's own memory is counted too.
	if r.inside && rssAfter > rssBefore+8<<10 {
		t.Errorf("memory grew from %d to %d KiB", rssBefore, rssAfter)
	}
	if all, err := r.Processes(r.ctx()); err != nil || len(all) > 1100 {
		t.Errorf("%d commands are kept, %v", len(all), err)
	}
}
