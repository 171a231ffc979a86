package fault

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"crownest.dev/crownest/test/testserver"
)

// TestRestart stops the server properly while a command runs and is followed, and
// starts it again: nobody but the clients' connections notices.
func TestRestart(t *testing.T) {
	s, c := start(t, 1)
	ctx := within(t, 2*time.Minute)
	sbx, err := c.CreateSandbox(ctx, "", template, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteFile(ctx, "", sbx.ID, "kept", "as it was"); err != nil {
		t.Fatal(err)
	}
	const lines = 300
	cmd, err := c.Start(ctx, "", sbx.ID, fmt.Sprintf("for i in {1..%d}; do echo line $i; sleep 0.03; done", lines))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	last, streams := int64(0), 0
	var end *testserver.Command
	flowing, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for end == nil && ctx.Err() == nil {
			streams++
			// An error is the cut connection, or the server that is away.
			_ = c.Stream(ctx, cmd.ID, last, func(e testserver.Event) error {
				switch e.Type {
				case "log":
					if e.Seq != last+1 {
						t.Errorf("seq %d follows %d", e.Seq, last)
					}
					if last = e.Seq; last == 1 {
						close(flowing)
					}
					got.WriteString(e.Data)
				case "terminal":
					end = e.Command
				}
				return nil
			})
			wait(ctx, 20*time.Millisecond)
		}
	}()
	select {
	case <-flowing:
	case <-ctx.Done():
		t.Fatal("no output arrives")
	}

	began := time.Now()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the drain took %v", took)
	}
	if pids, err := s.Processes(); err != nil || len(pids) == 0 {
		t.Fatalf("no process of the sandbox is left: %v", err)
	}
	if err := s.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	<-done
	if end == nil || end.Status != "exited" {
		t.Fatalf("the command ended as %+v", end)
	}
	var want strings.Builder
	for i := 1; i <= lines; i++ {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if got.String() != want.String() || end.Stdout != want.String() {
		t.Errorf("streamed %d bytes, recorded %d, want %d", got.Len(), len(end.Stdout), want.Len())
	}
	if streams < 2 {
		t.Error("the stream was never cut: the restart came too late to test anything")
	}
	if content, err := c.ReadFile(ctx, sbx.ID, "kept"); err != nil || content != "as it was" {
		t.Errorf("file: %q, %v", content, err)
	}
	if cmd, err := c.Run(ctx, "", sbx.ID, "echo again", 0); err != nil || cmd.Stdout != "again\n" {
		t.Errorf("run: %+v, %v", cmd, err)
	}
	if _, err := c.KillSandbox(ctx, "", sbx.ID); err != nil {
		t.Error(err)
	}
	nothingLeft(t, s)
}
