package fault

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"crownest.dev/crownest/test/testserver"
)

// TestCreateKillCycles makes and ends sandboxes two hundred times: the server
// holds no more than before, and once it has stopped the host holds nothing.
func TestCreateKillCycles(t *testing.T) {
	const cycles, pool = 200, 3
	s, c := start(t, pool)
	ctx := within(t, 4*time.Minute)
	namespaces, err := testserver.NetNamespaces()
	if err != nil {
		t.Fatal(err)
	}
	cycle := func(i int) error {
		sbx, err := c.CreateSandbox(ctx, "", template, nil)
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
		switch i % 4 {
		case 0: // with something inside that does not want to end
			if _, err := c.Start(ctx, "", sbx.ID, "trap '' TERM; (setsid sleep 1000 &) ; yes"); err != nil {
				return fmt.Errorf("start: %w", err)
			}
		case 1:
			if cmd, err := c.Run(ctx, "", sbx.ID, "echo hi > file; cat file", 0); err != nil || cmd.Stdout != "hi\n" {
				return fmt.Errorf("run: %+v, %w", cmd, err)
			}
		}
		if sbx, err = c.KillSandbox(ctx, "", sbx.ID); err != nil || sbx.Status != "destroyed" {
			return fmt.Errorf("kill: %s, %w", sbx.Status, err)
		}
		return nil
	}
	for i := range 8 { // what is made once is there from now on
		if err := cycle(i); err != nil {
			t.Fatal(err)
		}
	}
	files := serverFiles(t, s)
	var wg sync.WaitGroup
	for worker := range 2 {
		wg.Go(func() {
			for i := worker; i < cycles && !t.Failed(); i += 2 {
				if err := cycle(i); err != nil {
					t.Errorf("cycle %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()

	// Those that wait in the pool are all that may be there, and what is on the way.
	settle(t, s, pool)
	if now := serverFiles(t, s); now > files+20 {
		t.Errorf("the server has %d files open, before the cycles %d", now, files)
	}
	if now, err := testserver.NetNamespaces(); err != nil || now > namespaces+pool {
		t.Errorf("%d network namespaces, before the cycles %d, %v", now, namespaces, err)
	}
	nothingLeft(t, s)
}

// settle waits until no more sandboxes are there than belong into the pool.
func settle(t *testing.T, s *testserver.Server, pool int) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	for {
		dirs, err := filepath.Glob(filepath.Join(s.Data, "instances", "*"))
		if err != nil {
			t.Fatal(err)
		}
		groups, err := s.Groups("memory")
		if err != nil {
			t.Fatal(err)
		}
		if len(dirs) <= pool && len(groups) <= pool {
			return
		}
		if ctx.Err() != nil {
			t.Errorf("%d instances and %d cgroups are there, the pool holds %d", len(dirs), len(groups), pool)
			return
		}
		wait(ctx, 100*time.Millisecond)
	}
}

// serverFiles counts the open files of the server.
func serverFiles(t *testing.T, s *testserver.Server) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
