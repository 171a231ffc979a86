package fault

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crownest.dev/crownest/test/testserver"
)

// TestHostileGuests lets sandboxes do their worst, one after the other. Each time
// the sandbox says what happened and works afterwards, and neither a neighbour nor
// the server notices.
func TestHostileGuests(t *testing.T) {
	s, c := start(t, 2, "CROWNEST_MEMORY_BYTES=536870912", "CROWNEST_DISK_BYTES=268435456")
	ctx := within(t, 5*time.Minute)
	neighbour, err := c.CreateSandbox(ctx, "", template, nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := func(status ...string) func(testserver.Command) bool {
		return func(cmd testserver.Command) bool { return slices.Contains(status, cmd.Status) }
	}
	says := func(words string) func(testserver.Command) bool {
		return func(cmd testserver.Command) bool { return strings.Contains(cmd.Stdout+cmd.Stderr, words) }
	}
	for _, attack := range []struct {
		name, command string
		timeout       time.Duration
		want          func(testserver.Command) bool
		after         func(t *testing.T, id string)
		clean         string
		mayEnd        bool // the sandbox, as long as it says so
	}{
		{
			name: "fork bomb", command: ":(){ :|:& };:; wait", timeout: 5 * time.Second,
			want: ended("timed_out", "exited"),
		},
		{
			name: "10,000 sleepers", command: "for i in {1..10000}; do sleep 1000 & done; wait", timeout: 8 * time.Second,
			want: says("Resource temporarily unavailable"),
		},
		{
			name: "10,000 processes in a loop", command: "for i in {1..10000}; do /bin/true; done", timeout: 20 * time.Second,
			want: ended("timed_out", "exited"),
		},
		{
			name: "memory bomb", command: "bash -c 'x=0123456789; while :; do x=$x$x; done'; echo code $?", timeout: 40 * time.Second,
			want: says("code 137"),
		},
		{
			// All of this memory is touched by gVisor's kernel only, on behalf of read(2),
			// so the host's kernel may take that for the culprit and end the sandbox.
			name: "memory bomb by reading", command: "head -c 2G /dev/zero | tail -c 2G >/dev/null; echo codes ${PIPESTATUS[*]}", timeout: 40 * time.Second,
			want: func(cmd testserver.Command) bool {
				return strings.Contains(cmd.Stdout, "137") || cmd.Status == "killed" && cmd.KilledReason == "sandbox_destroyed"
			},
			mayEnd: true,
		},
		{
			name: "full disk", command: "dd if=/dev/zero of=big bs=1M", timeout: 60 * time.Second,
			want: says("No space left on device"),
			after: func(t *testing.T, id string) {
				_, err := c.WriteFile(ctx, "", id, "more", strings.Repeat("x", 200<<10))
				if testserver.Code(err) != "quota_exceeded" {
					t.Errorf("writing a file on a full disk: %v", err)
				}
			},
			clean: "rm big",
		},
		{
			name: "full /tmp", command: "dd if=/dev/zero of=/tmp/big bs=1M", timeout: 60 * time.Second,
			want:  says("No space left on device"),
			clean: "rm /tmp/big",
		},
		{
			name: "endless yes", command: "yes", timeout: 6 * time.Second,
			want: func(cmd testserver.Command) bool { return cmd.Status == "timed_out" && cmd.StdoutTruncated },
		},
		{
			name: "many open files", command: "exec 2>&1; for i in {1..100000}; do exec {fd}</dev/null || break; done; echo done", timeout: 20 * time.Second,
			want: ended("exited", "timed_out"),
		},
	} {
		t.Run(attack.name, func(t *testing.T) {
			sbx, err := c.CreateSandbox(ctx, "", template, nil)
			if err != nil {
				t.Fatal(err)
			}
			watch := watchNeighbour(ctx, c, neighbour.ID)
			cmd, err := c.Run(ctx, "", sbx.ID, attack.command, attack.timeout)
			watch.report(t)
			if err != nil {
				t.Fatal(err)
			}
			if !attack.want(cmd) {
				cmd.Stdout, cmd.Stderr = end(cmd.Stdout), end(cmd.Stderr)
				t.Errorf("it ended as %+v", cmd)
			}
			if attack.after != nil {
				attack.after(t, sbx.ID)
			}
			// The sandbox itself is as good as before.
			line := "echo alive"
			if attack.clean != "" {
				line = attack.clean + " && " + line
			}
			cmd, err = c.Run(ctx, "", sbx.ID, line, 0)
			switch {
			case attack.mayEnd && testserver.Code(err) == "sandbox_destroyed":
				got, err := c.GetSandbox(ctx, sbx.ID)
				for err == nil && got.Status == "expiring" {
					wait(ctx, 20*time.Millisecond) // its end is under way
					got, err = c.GetSandbox(ctx, sbx.ID)
				}
				if err != nil || got.Status != "destroyed" || got.DestroyedReason != "platform_cleanup" {
					t.Errorf("the sandbox is %s, %s, %v", got.Status, got.DestroyedReason, err)
				}
				t.Log("the sandbox ended")
			case err != nil || cmd.Stdout != "alive\n":
				t.Errorf("afterwards: %+v, %v", cmd, err)
			}
			if _, err := c.KillSandbox(ctx, "", sbx.ID); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := c.KillSandbox(ctx, "", neighbour.ID); err != nil {
		t.Error(err)
	}
	nothingLeft(t, s)
}

func end(s string) string { return s[max(0, len(s)-300):] }

// neighbourWatch measures what others notice of an attack.
type neighbourWatch struct {
	stop      context.CancelFunc
	wg        sync.WaitGroup
	runs      []time.Duration
	gets      []time.Duration
	runFailed error
	getFailed error
}

func watchNeighbour(ctx context.Context, c *testserver.Client, id string) *neighbourWatch {
	ctx, stop := context.WithCancel(ctx)
	w := &neighbourWatch{stop: stop}
	every := func(pause time.Duration, took *[]time.Duration, failed *error, fn func() error) {
		for ctx.Err() == nil {
			began := time.Now()
			if err := fn(); err != nil && ctx.Err() == nil {
				*failed = err
				return
			}
			*took = append(*took, time.Since(began))
			wait(ctx, pause)
		}
	}
	w.wg.Go(func() {
		every(100*time.Millisecond, &w.runs, &w.runFailed, func() error {
			_, err := c.Run(ctx, "", id, "true", 0)
			return err
		})
	})
	w.wg.Go(func() {
		every(20*time.Millisecond, &w.gets, &w.getFailed, func() error {
			return c.Do(ctx, http.MethodGet, "/v1/sandboxes/"+id, "", nil, nil)
		})
	})
	return w
}

// Limits of what a neighbour may notice: on a busy machine of two cores both have
// to share, so these are far above what a quiet one shows.
const (
	maxNeighbourRun = 2 * time.Second
	maxServerGet    = time.Second
)

func (w *neighbourWatch) report(t *testing.T) {
	t.Helper()
	w.stop()
	w.wg.Wait()
	if w.runFailed != nil || w.getFailed != nil {
		t.Errorf("a neighbour's command: %v; a read: %v", w.runFailed, w.getFailed)
	}
	if len(w.runs) == 0 || len(w.gets) == 0 {
		t.Error("the neighbour got nothing done")
		return
	}
	slices.Sort(w.runs)
	slices.Sort(w.gets)
	p95 := func(d []time.Duration) time.Duration { return d[len(d)*95/100] }
	t.Logf("neighbour: %d commands, median %v, p95 %v; server: %d reads, median %v, p95 %v",
		len(w.runs), w.runs[len(w.runs)/2].Round(time.Millisecond), p95(w.runs).Round(time.Millisecond),
		len(w.gets), w.gets[len(w.gets)/2].Round(time.Microsecond), p95(w.gets).Round(time.Microsecond))
	if p95(w.runs) > maxNeighbourRun || p95(w.gets) > maxServerGet {
		t.Errorf("the neighbour noticed: see above")
	}
}
