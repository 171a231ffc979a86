package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crownest.dev/crownest/test/testserver"
)

// TestKilledServer kills the server at random moments while clients create and
// kill sandboxes, run and start commands and write files. Clients do as ours do:
// they repeat a call that got no answer, with the same key. In the end all that
// was asked for must have happened, once, and nothing else.
func TestKilledServer(t *testing.T) {
	rnd := random(t)
	s, c := start(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := &world{t: t, client: c, sandboxes: map[string]*box{}}

	until := time.Now().Add(*faultFor)
	var clients sync.WaitGroup
	for i := range 3 {
		own := rand.New(rand.NewPCG(rnd.Uint64(), 0))
		clients.Go(func() { w.live(ctx, i, own, until) })
	}
	kills := 0
	for time.Now().Before(until) {
		wait(ctx, time.Duration(rnd.Int64N(int64(2500*time.Millisecond))))
		s.Kill()
		kills++
		if err := s.Restart(ctx); err != nil {
			cancel() // or the clients would wait for it for ever
			t.Errorf("start after kill %d: %v", kills, err)
			break
		}
	}
	clients.Wait()
	if t.Failed() {
		return
	}
	failed := 0
	for _, b := range w.sandboxes {
		for _, cmd := range b.commands {
			if cmd.failed {
				failed++
			}
		}
	}
	t.Logf("%d kills; %d sandboxes created, %d killed; %d commands, %d of them failed, %d files, %d repeated calls",
		kills, w.count.created, w.count.killed, w.count.commands, failed, w.count.files, w.count.repeated)
	if failed > kills {
		t.Errorf("more commands failed than one for each kill")
	}

	w.check(within(t, 2*time.Minute))
	nothingLeft(t, s)
	if err := filepath.WalkDir(filepath.Join(s.Data, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Error("left behind: blob", path)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// world is what the clients were told.
type world struct {
	t      *testing.T
	client *testserver.Client

	mu        sync.Mutex
	sandboxes map[string]*box
	count     struct{ created, killed, commands, files, repeated int }
}

// box is a sandbox and all that was acknowledged in it.
type box struct {
	id, tag string
	killed  bool
	files   map[string]string
	// commands by the token that each one writes into the journal.
	commands  map[string]*command
	followers sync.WaitGroup
}

type command struct {
	id, want string
	long     bool
	// failed: the server died between taking the command and handing it over. It
	// says so, and the command never ran.
	failed bool
}

// call repeats fn until it is answered. The server is away again and again, so
// only answers that a retry cannot change end it.
func (w *world) call(ctx context.Context, fn func() error) error {
	for first := true; ; first = false {
		err := fn()
		var e *testserver.Error
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case errors.As(err, &e) && e.Status < 500 && e.Status != http.StatusTooManyRequests && e.Code != "idempotency_request_in_progress":
			return err
		case errors.As(err, &e) && e.Status == http.StatusInternalServerError:
			return err // never right
		}
		if first {
			w.mu.Lock()
			w.count.repeated++
			w.mu.Unlock()
		}
		wait(ctx, 50*time.Millisecond)
	}
}

// live is one client: it does random things until its time is up, then waits for
// what it started.
func (w *world) live(ctx context.Context, client int, rnd *rand.Rand, until time.Time) {
	var mine []*box
	for n := 0; time.Now().Before(until) && ctx.Err() == nil; n++ {
		key := fmt.Sprintf("c%d-%d-%016x", client, n, rnd.Uint64())
		if len(mine) == 0 || (len(mine) < 2 && rnd.IntN(4) == 0) {
			if b := w.create(ctx, key); b != nil {
				mine = append(mine, b)
			}
			continue
		}
		i := rnd.IntN(len(mine))
		b := mine[i]
		switch rnd.IntN(10) {
		case 0:
			w.kill(ctx, key, b)
			mine = slices.Delete(mine, i, i+1)
		case 1, 2:
			w.start(ctx, key, b)
		case 3, 4, 5:
			w.write(ctx, key, b, n)
		default:
			w.run(ctx, key, b)
		}
	}
	for _, b := range mine {
		b.followers.Wait()
	}
}

func (w *world) failed(ctx context.Context, what string, err error) bool {
	if err != nil && ctx.Err() == nil {
		w.t.Errorf("%s: %v", what, err)
	}
	return err != nil
}

// twice makes a call that has been answered once more, with the same key: the
// answer must be about the same thing.
func (w *world) twice(ctx context.Context, what, id string, fn func() (string, error)) {
	var again string
	err := w.call(ctx, func() (err error) {
		again, err = fn()
		return err
	})
	if !w.failed(ctx, what+", repeated", err) && again != id {
		w.t.Errorf("%s: the repeated call made %s, the first one %s", what, again, id)
	}
}

func (w *world) create(ctx context.Context, key string) *box {
	var sbx testserver.Sandbox
	create := func() (string, error) {
		var err error
		sbx, err = w.client.CreateSandbox(ctx, key, template, map[string]string{"op": key})
		return sbx.ID, err
	}
	err := w.call(ctx, func() error { _, err := create(); return err })
	if w.failed(ctx, "create", err) {
		return nil
	}
	b := &box{id: sbx.ID, tag: key, files: map[string]string{}, commands: map[string]*command{}}
	w.mu.Lock()
	w.sandboxes[b.id] = b
	w.count.created++
	w.mu.Unlock()
	w.twice(ctx, "create", b.id, create)
	return b
}

func (w *world) kill(ctx context.Context, key string, b *box) {
	var sbx testserver.Sandbox
	err := w.call(ctx, func() (err error) {
		sbx, err = w.client.KillSandbox(ctx, key, b.id)
		return err
	})
	if w.failed(ctx, "kill", err) {
		return
	}
	if sbx.Status != "destroyed" || sbx.DestroyedReason != "user_killed" {
		w.t.Errorf("kill: sandbox %s is %s, %s", b.id, sbx.Status, sbx.DestroyedReason)
	}
	w.mu.Lock()
	b.killed = true
	w.count.killed++
	w.mu.Unlock()
	b.followers.Wait()
}

func (w *world) write(ctx context.Context, key string, b *box, n int) {
	path, content := fmt.Sprintf("/workspace/dir/file%d", n%5), "content "+key
	err := w.call(ctx, func() error {
		_, err := w.client.WriteFile(ctx, key, b.id, path, content)
		return err
	})
	if w.failed(ctx, "write", err) {
		return
	}
	b.files[path] = content
	w.mu.Lock()
	w.count.files++
	w.mu.Unlock()
}

func (w *world) add(b *box, token string, c *command) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b.commands[token] = c
	w.count.commands++
}

// run runs a command that leaves a mark each time it is executed.
func (w *world) run(ctx context.Context, key string, b *box) {
	line := fmt.Sprintf("echo %s >> /workspace/journal; echo out %s; echo err %s >&2", key, key, key)
	var cmd testserver.Command
	run := func() (string, error) {
		var err error
		cmd, err = w.client.Run(ctx, key, b.id, line, 0)
		return cmd.ID, err
	}
	err := w.call(ctx, func() error { _, err := run(); return err })
	if w.failed(ctx, "run", err) {
		return
	}
	failed := cmd.Status == "failed" && cmd.Stdout+cmd.Stderr == ""
	if !failed && (cmd.Status != "exited" || cmd.ExitCode == nil || *cmd.ExitCode != 0 || cmd.Stdout != "out "+key+"\n" || cmd.Stderr != "err "+key+"\n") {
		w.t.Errorf("run: %+v", cmd)
	}
	w.add(b, key, &command{id: cmd.ID, failed: failed})
	w.twice(ctx, "run", cmd.ID, run)
}

// start starts a command that goes on for a while and follows its output across
// all that happens to the server.
func (w *world) start(ctx context.Context, key string, b *box) {
	const lines = 100
	var want strings.Builder
	for i := 1; i <= lines; i++ {
		fmt.Fprintf(&want, "%s %d\n", key, i)
	}
	line := fmt.Sprintf("for i in {1..%d}; do echo %s $i; sleep 0.03; done; echo %s >> /workspace/journal", lines, key, key)
	var cmd testserver.Command
	start := func() (string, error) {
		var err error
		cmd, err = w.client.Start(ctx, key, b.id, line)
		return cmd.ID, err
	}
	err := w.call(ctx, func() error { _, err := start(); return err })
	if w.failed(ctx, "start", err) {
		return
	}
	c := &command{id: cmd.ID, want: want.String(), long: true}
	w.add(b, key, c)
	w.twice(ctx, "start", cmd.ID, start)
	b.followers.Go(func() { w.follow(ctx, b, c) })
}

// follow reads a command's stream to its end, taking it up again where it broke.
func (w *world) follow(ctx context.Context, b *box, cmd *command) {
	id, want := cmd.id, cmd.want
	var got strings.Builder
	last := int64(0)
	var end *testserver.Command
	for end == nil && ctx.Err() == nil {
		err := w.client.Stream(ctx, id, last, func(e testserver.Event) error {
			switch e.Type {
			case "log":
				if e.Seq != last+1 {
					return fmt.Errorf("hole: seq %d follows %d", e.Seq, last)
				}
				last = e.Seq
				got.WriteString(e.Data)
			case "terminal":
				end = e.Command
			case "error":
				return fmt.Errorf("stream: %s: %s", e.Code, e.Message)
			}
			return nil
		})
		if err != nil && strings.HasPrefix(err.Error(), "hole") {
			w.t.Errorf("follow %s: %v", id, err)
			return
		}
		var e *testserver.Error
		if errors.As(err, &e) && e.Status < 500 {
			w.t.Errorf("follow %s: %v", id, err)
			return
		}
		if end == nil {
			wait(ctx, 50*time.Millisecond)
		}
	}
	if end == nil {
		return
	}
	w.mu.Lock()
	killed := b.killed
	cmd.failed = end.Status == "failed" && got.Len() == 0
	w.mu.Unlock()
	switch {
	case cmd.failed:
	case end.Status == "killed": // its sandbox is being killed, or was
		if !strings.HasPrefix(want, got.String()) {
			w.t.Errorf("command %s was killed and its output is no beginning of what it prints: %q", id, got.String())
		}
	case end.Status != "exited":
		w.t.Errorf("command %s (sandbox killed: %v) ended as %+v", id, killed, *end)
	case got.String() != want:
		w.t.Errorf("command %s: the stream gave %d bytes, want %d", id, got.Len(), len(want))
	}
}

// check compares the server's world with what the clients were told.
func (w *world) check(ctx context.Context) {
	t, c := w.t, w.client
	listed, err := c.Sandboxes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, sbx := range listed {
		b := w.sandboxes[sbx.ID]
		if b == nil {
			t.Errorf("sandbox %s (%s, %v) is nobody's", sbx.ID, sbx.Status, sbx.Metadata)
		} else if b.killed {
			t.Errorf("sandbox %s was killed and is listed as %s", sbx.ID, sbx.Status)
		}
	}
	for id, b := range w.sandboxes {
		sbx, err := c.GetSandbox(ctx, id)
		if err != nil {
			t.Errorf("sandbox %s is lost: %v", id, err)
			continue
		}
		if sbx.Metadata["op"] != b.tag {
			t.Errorf("sandbox %s has the metadata %v", id, sbx.Metadata)
		}
		w.checkLogs(ctx, b)
		if b.killed {
			if sbx.Status != "destroyed" {
				t.Errorf("sandbox %s was killed and is %s", id, sbx.Status)
			}
			continue
		}
		if sbx.Status != "ready" && sbx.Status != "running" {
			t.Errorf("sandbox %s is %s, %s", id, sbx.Status, sbx.DestroyedReason)
			continue
		}
		w.checkInside(ctx, b)
		if _, err := c.KillSandbox(ctx, "", id); err != nil {
			t.Errorf("kill: %v", err)
		}
	}
}

// checkLogs wants every command's record and log, also after its sandbox's end.
func (w *world) checkLogs(ctx context.Context, b *box) {
	for token, cmd := range b.commands {
		rec, err := w.client.GetCommand(ctx, cmd.id)
		if err != nil {
			w.t.Errorf("command %s is lost: %v", cmd.id, err)
			continue
		}
		if rec.Status != "exited" && !(b.killed && rec.Status == "killed") && !(cmd.failed && rec.Status == "failed") {
			w.t.Errorf("command %s: %+v", cmd.id, rec)
		}
		chunks, err := w.client.Logs(ctx, cmd.id)
		if err != nil {
			w.t.Errorf("log of command %s: %v", cmd.id, err)
			continue
		}
		streams := map[string]string{}
		for i, ch := range chunks {
			if ch.Seq != int64(i+1) {
				w.t.Errorf("log of command %s: seq %d at place %d", cmd.id, ch.Seq, i+1)
				break
			}
			streams[ch.Stream] += ch.Data
		}
		want := map[string]string{"stdout": "out " + token + "\n", "stderr": "err " + token + "\n"}
		if cmd.long {
			want = map[string]string{"stdout": cmd.want}
		}
		if rec.Status == "exited" && !maps.Equal(streams, want) {
			w.t.Errorf("log of command %s: %q", cmd.id, streams)
		}
	}
}

// checkInside looks for the traces in the sandbox: every command ran once.
func (w *world) checkInside(ctx context.Context, b *box) {
	for path, want := range b.files {
		if got, err := w.client.ReadFile(ctx, b.id, path); err != nil || got != want {
			w.t.Errorf("file %s of %s holds %q, %v; want %q", path, b.id, got, err, want)
		}
	}
	cmd, err := w.client.Run(ctx, "", b.id, "cat /workspace/journal 2>/dev/null", 0)
	if err != nil {
		w.t.Errorf("sandbox %s does not answer: %v", b.id, err)
		return
	}
	ran := map[string]int{}
	for token := range strings.FieldsSeq(cmd.Stdout) {
		ran[token]++
	}
	for token, n := range ran {
		if n != 1 {
			w.t.Errorf("command %q ran %d times", token, n)
		}
		if b.commands[token] == nil {
			w.t.Errorf("command %q ran, but was not acknowledged", token)
		}
	}
	for token, cmd := range b.commands {
		if cmd.failed != (ran[token] == 0) {
			w.t.Errorf("command %q ran %d times; told to have failed: %v", token, ran[token], cmd.failed)
		}
	}
}
