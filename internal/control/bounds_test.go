package control_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
)

func TestExtensionWhileStartingHolds(t *testing.T) {
	w := newWorld(t)
	w.host.slow = make(chan struct{})
	call, ttl := w.call(), int64(50)
	id := sandbox.ID(sandbox.PrefixSandbox, call.OperationID)
	created := make(chan error, 1)
	go func() {
		_, err := w.svc.CreateSandbox(context.Background(), call, control.CreateSandboxInput{TTLMs: &ttl})
		created <- err
	}()
	eventually(t, "the sandbox is recorded", func() bool {
		_, err := w.svc.Sandbox(context.Background(), w.call(), id)
		return err == nil
	})
	extended, err := w.svc.ExtendSandbox(context.Background(), w.call(), id, 60_000)
	if err != nil {
		t.Fatal(err)
	}
	close(w.host.slow)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Duration(ttl) * time.Millisecond) // the first deadline passes
	if sb := w.sandbox(id); sb.Status != sandbox.StatusReady || !sb.ExpiresAt.Equal(extended.ExpiresAt) {
		t.Errorf("an acknowledged extension was lost: %s until %s", sb.Status, sb.ExpiresAt)
	}
}

// TestExtensionsAtExpiry extends at the moment of expiry: whoever is told yes has
// a sandbox that lives on.
func TestExtensionsAtExpiry(t *testing.T) {
	w := newWorld(t)
	ttl := int64(30)
	for range 20 {
		sb, err := w.svc.CreateSandbox(context.Background(), w.call(), control.CreateSandboxInput{TTLMs: &ttl})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(sb.ExpiresAt))
		_, err = w.svc.ExtendSandbox(context.Background(), w.call(), sb.ID, 60_000)
		if err != nil {
			wantCode(t, err, sandbox.CodeSandboxDestroyed)
			continue
		}
		if end, err := w.svc.Sandbox(context.Background(), w.call(), sb.ID); err != nil || end.Status != sandbox.StatusReady {
			t.Fatalf("extended, and yet %s, %v", end.Status, err)
		}
		if _, err := w.svc.KillSandbox(context.Background(), w.call(), sb.ID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTransfersAreBounded(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	w.driver.machine(sb.RuntimeID).files["/workspace/f"] = "text"
	open := func() (io.Closer, error) {
		t.Helper()
		content, err := w.svc.FileContent(context.Background(), w.call(), sb.ID, "/workspace/f")
		if err != nil {
			t.Fatal(err)
		}
		return content.OpenRange(context.Background(), 0, -1)
	}
	var last io.Closer
	for range 64 {
		c, err := open()
		if err != nil {
			t.Fatal(err)
		}
		last = c
	}
	_, err := open()
	wantCode(t, err, sandbox.CodeQuotaExceeded)
	if cmd := w.run(sb.ID, "true"); cmd.Status != sandbox.CommandExited {
		t.Errorf("commands suffer from transfers: %+v", cmd)
	}
	_ = last.Close()
	_ = last.Close() // gives back one place, not two
	if _, err := open(); err != nil {
		t.Errorf("a place that was given back is lost: %v", err)
	}
	_, err = open()
	wantCode(t, err, sandbox.CodeQuotaExceeded)
}

func TestLogPagesAreBoundedAsSent(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	cmd := w.startCmd(sb.ID, control.CommandInput{Command: "hang"})
	p := w.driver.machine(sb.RuntimeID).commands[cmd.ID]
	for range 30 {
		p.print(sandbox.Stdout, strings.Repeat("\xff", 64<<10))
	}
	p.finish(exitCode(0))
	if _, err := w.svc.WaitCommand(context.Background(), w.call(), cmd.ID); err != nil {
		t.Fatal(err)
	}
	after, seen := int64(0), 0
	for more := true; more; {
		page, err := w.svc.CommandLogs(context.Background(), w.call(), cmd.ID, &after, 500)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(page.Chunks); n == 0 || n > 11 {
			t.Fatalf("a page of %d chunks; each takes 384 KiB as JSON", n)
		}
		after, more, seen = page.NextSeq, page.HasMore, seen+len(page.Chunks)
	}
	if seen != 30 {
		t.Errorf("the pages hold %d of 30 chunks", seen)
	}
}
