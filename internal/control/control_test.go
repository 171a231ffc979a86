package control_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/blob"
	"crownest.dev/crownest/internal/cmdlog"
	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/store/sqldb"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a service over real stores and a scripted host. Restarting it keeps
// data directory and host, as a crash does.
type world struct {
	t       *testing.T
	dir     string
	host    *host
	cfg     control.Config
	db      *sqldb.DB
	logs    *cmdlog.Store
	svc     *control.Service
	driver  *driver
	org     store.Org
	project sandbox.Project
	stopped bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), host: newHost(), cfg: control.DefaultConfig()}
	w.cfg.DefaultTemplate = "base"
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *world) start() {
	t := w.t
	t.Helper()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	log := slog.New(slog.DiscardHandler)
	w.db, err = sqldb.Open(ctx, filepath.Join(w.dir, "db"), log)
	must(err)
	w.org, w.project, err = auth.EnsureOrg(ctx, w.db)
	must(err)
	w.logs, err = cmdlog.Open(filepath.Join(w.dir, "logs"), cmdlog.Options{})
	must(err)
	blobs, err := blob.Open(ctx, filepath.Join(w.dir, "blobs"))
	must(err)
	w.svc, err = control.New(control.Options{
		Config: w.cfg, Store: w.db, Logs: w.logs, Blobs: blobs, Templates: catalogue{},
		Connect: connect, Log: log,
	}, func(ready runtime.ReadyFunc) (runtime.Driver, error) {
		w.driver = newDriver(w.host, ready)
		return w.driver, nil
	})
	must(err)
	must(w.svc.Recover(ctx))
	w.svc.Start()
	w.stopped = false
}

// stop ends the service the way a stop of the server does: guests live on.
func (w *world) stop() {
	if w.stopped {
		return
	}
	w.stopped = true
	if err := w.svc.Close(context.Background()); err != nil {
		w.t.Error(err)
	}
	for _, m := range w.host.instances {
		m.cut()
	}
	_ = w.logs.Close()
	_ = w.db.Close()
}

func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.start()
}

func (w *world) call() control.Call {
	return control.Call{
		Principal:   auth.Principal{OrgID: w.org.ID, KeyID: "key_test", Kind: auth.KindAPIKey, Scopes: sandbox.AllScopes},
		OperationID: sandbox.NewSuffix(),
	}
}

func (w *world) create() sandbox.Sandbox {
	w.t.Helper()
	sb, err := w.svc.CreateSandbox(context.Background(), w.call(), control.CreateSandboxInput{})
	if err != nil {
		w.t.Fatal(err)
	}
	return sb
}

func (w *world) run(sbx, command string) sandbox.Command {
	w.t.Helper()
	return w.runWith(sbx, control.CommandInput{Command: command, Blocking: true})
}

func (w *world) runWith(sbx string, in control.CommandInput) sandbox.Command {
	w.t.Helper()
	cmd := w.startCmd(sbx, in)
	cmd, err := w.svc.WaitCommand(context.Background(), w.call(), cmd.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return cmd
}

func (w *world) startCmd(sbx string, in control.CommandInput) sandbox.Command {
	w.t.Helper()
	cmd, err := w.svc.StartCommand(context.Background(), w.call(), sbx, in)
	if err != nil {
		w.t.Fatal(err)
	}
	return cmd
}

func (w *world) sandbox(id string) sandbox.Sandbox {
	w.t.Helper()
	sb, err := w.svc.Sandbox(context.Background(), w.call(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return sb
}

// eventually waits for a condition that background work brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never happened: %s", what)
}

func wantCode(t *testing.T, err error, code sandbox.Code) {
	t.Helper()
	if sandbox.CodeOf(err) != code || err == nil {
		t.Fatalf("got %v, want code %s", err, code)
	}
}

func TestSandboxLife(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	if sb.Status != sandbox.StatusReady || sb.ProjectID != w.project.ID || sb.ExpiresAt.Sub(sb.CreatedAt) != time.Hour {
		t.Fatalf("unexpected sandbox: %+v", sb)
	}
	cmd := w.run(sb.ID, "print hello")
	if cmd.Status != sandbox.CommandExited || *cmd.ExitCode != 0 || cmd.Stdout != "hello" {
		t.Fatalf("unexpected command: %+v", cmd)
	}
	killed, err := w.svc.KillSandbox(context.Background(), w.call(), sb.ID)
	if err != nil || killed.Status != sandbox.StatusDestroyed || killed.DestroyedReason != sandbox.ReasonUserKilled {
		t.Fatalf("kill: %+v, %v", killed, err)
	}
	if n := w.host.count(); n != 0 {
		t.Errorf("%d instances are left after the kill answered", n)
	}
	again, err := w.svc.KillSandbox(context.Background(), w.call(), sb.ID)
	if err != nil || !again.DestroyedAt.Equal(killed.DestroyedAt) {
		t.Errorf("a second kill changed the record: %+v, %v", again, err)
	}
	_, err = w.svc.StartCommand(context.Background(), w.call(), sb.ID, control.CommandInput{Command: "true", Blocking: true})
	wantCode(t, err, sandbox.CodeSandboxDestroyed)
	check, err := w.svc.VerifyAudit(context.Background(), w.call())
	if err != nil || !check.OK || check.Checked < 3 {
		t.Errorf("audit chain: %+v, %v", check, err)
	}
}

func TestCommandEnds(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	ms := func(n int64) *int64 { return &n }
	for _, tc := range []struct {
		command string
		timeout *int64
		status  sandbox.CommandStatus
		code    int
		signal  string
	}{
		{command: "exit 3", status: sandbox.CommandExited, code: 3},
		{command: "segv", status: sandbox.CommandFailed, code: 139},
		{command: "hang", timeout: ms(20), status: sandbox.CommandTimedOut, code: -1, signal: "SIGTERM"},
	} {
		t.Run(tc.command, func(t *testing.T) {
			cmd := w.runWith(sb.ID, control.CommandInput{Command: tc.command, Blocking: true, TimeoutMs: tc.timeout})
			code := -1
			if cmd.ExitCode != nil {
				code = *cmd.ExitCode
			}
			if cmd.Status != tc.status || code != tc.code || cmd.TerminationSignal != tc.signal {
				t.Fatalf("got %s, code %d, signal %q", cmd.Status, code, cmd.TerminationSignal)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	cmd := w.startCmd(sb.ID, control.CommandInput{Command: "hang"})
	if got := w.sandbox(sb.ID).Status; got != sandbox.StatusRunning {
		t.Errorf("a sandbox with an active command is %s", got)
	}
	end, err := w.svc.CancelCommand(context.Background(), w.call(), cmd.ID, sandbox.CancelForce)
	if err != nil || end.Status != sandbox.CommandCanceled || end.CancelMode != sandbox.CancelForce ||
		end.TerminationSignal != "SIGKILL" || end.CanceledAt.IsZero() || end.ExitCode != nil {
		t.Fatalf("cancel: %+v, %v", end, err)
	}
	again, err := w.svc.CancelCommand(context.Background(), w.call(), cmd.ID, sandbox.CancelGraceful)
	if err != nil || again.CancelMode != sandbox.CancelForce {
		t.Errorf("canceling what has ended changed it: %+v, %v", again, err)
	}
}

func TestKillWhileStarting(t *testing.T) {
	w := newWorld(t)
	w.host.slow = make(chan struct{})
	call := w.call()
	id := sandbox.ID(sandbox.PrefixSandbox, call.OperationID)
	created := make(chan error, 1)
	go func() {
		_, err := w.svc.CreateSandbox(context.Background(), call, control.CreateSandboxInput{})
		created <- err
	}()
	eventually(t, "the sandbox is recorded", func() bool {
		_, err := w.svc.Sandbox(context.Background(), w.call(), id)
		return err == nil
	})
	cmd := w.startCmd(id, control.CommandInput{Command: "true"})
	if cmd.Status != sandbox.CommandQueued {
		t.Errorf("a command in a sandbox that starts is %s", cmd.Status)
	}
	sb, err := w.svc.KillSandbox(context.Background(), w.call(), id)
	if err != nil || sb.Status != sandbox.StatusDestroyed {
		t.Fatalf("kill: %+v, %v", sb, err)
	}
	_ = <-created
	end, err := w.svc.Command(context.Background(), w.call(), cmd.ID)
	if err != nil || end.Status != sandbox.CommandKilled || end.KilledReason != sandbox.KilledSandboxDestroyed {
		t.Errorf("the queued command: %+v, %v", end, err)
	}
	if w.host.count() != 0 {
		t.Error("an instance is left")
	}
}

func TestExpiryAndExtension(t *testing.T) {
	w := newWorld(t)
	ttl := int64(60)
	sb, err := w.svc.CreateSandbox(context.Background(), w.call(), control.CreateSandboxInput{TTLMs: &ttl})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the sandbox expires", func() bool { return w.sandbox(sb.ID).Status == sandbox.StatusDestroyed })
	end := w.sandbox(sb.ID)
	if end.DestroyedReason != sandbox.ReasonTTLExpired || end.MeteredMs > 60 {
		t.Errorf("reason %s, metered %d ms of 60", end.DestroyedReason, end.MeteredMs)
	}
	_, err = w.svc.ExtendSandbox(context.Background(), w.call(), sb.ID, 1000)
	wantCode(t, err, sandbox.CodeSandboxDestroyed)

	sb = w.create()
	if sb, err = w.svc.ExtendSandbox(context.Background(), w.call(), sb.ID, 50); err != nil {
		t.Fatal(err)
	}
	if sb.TTL != 50*time.Millisecond {
		t.Errorf("ttl after an extension downwards: %s", sb.TTL)
	}
	eventually(t, "the shortened sandbox expires", func() bool { return w.sandbox(sb.ID).Status == sandbox.StatusDestroyed })
	_, err = w.svc.ExtendSandbox(context.Background(), w.call(), w.create().ID, w.cfg.MaxSession.Milliseconds()+1)
	wantCode(t, err, sandbox.CodeTTLExceeded)
}

func TestRepeatedOperations(t *testing.T) {
	w := newWorld(t)
	call := w.call()
	first, err := w.svc.CreateSandbox(context.Background(), call, control.CreateSandboxInput{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.svc.CreateSandbox(context.Background(), call, control.CreateSandboxInput{})
	if err != nil || second.ID != first.ID || w.host.count() != 1 {
		t.Fatalf("a repeated create made another sandbox: %v, %v", second.ID, err)
	}
	call = w.call()
	in := control.CommandInput{Command: "print once", Blocking: true}
	a, err := w.svc.StartCommand(context.Background(), call, first.ID, in)
	if err != nil {
		t.Fatal(err)
	}
	w.restart()
	b, err := w.svc.StartCommand(context.Background(), call, first.ID, in)
	if err != nil || a.ID != b.ID {
		t.Fatalf("a repeated run made another command: %v, %v", b.ID, err)
	}
	for _, m := range w.host.instances {
		if n := m.started[a.ID]; n != 1 {
			t.Errorf("the command was started %d times", n)
		}
	}
}

func TestRestartAdopts(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	cmd := w.startCmd(sb.ID, control.CommandInput{Command: "hang"})
	m := w.driver.machine(sb.RuntimeID)
	m.commands[cmd.ID].print(sandbox.Stdout, "before ")
	eventually(t, "the first output is stored", func() bool {
		p, err := w.svc.CommandLogs(context.Background(), w.call(), cmd.ID, nil, 10)
		return err == nil && len(p.Chunks) == 1
	})
	w.stop()
	m.commands[cmd.ID].print(sandbox.Stdout, "while away ")
	w.start()
	if got := w.sandbox(sb.ID).Status; got != sandbox.StatusRunning {
		t.Errorf("the adopted sandbox is %s", got)
	}
	m.commands[cmd.ID].print(sandbox.Stderr, "after")
	m.commands[cmd.ID].finish(exitCode(0))
	end, err := w.svc.WaitCommand(context.Background(), w.call(), cmd.ID)
	if err != nil || end.Status != sandbox.CommandExited || end.Stdout != "before while away " || end.Stderr != "after" {
		t.Fatalf("the adopted command: %+v, %v", end, err)
	}
	page, err := w.svc.CommandLogs(context.Background(), w.call(), cmd.ID, nil, 10)
	if err != nil || len(page.Chunks) != 3 || page.NextSeq != 3 {
		t.Errorf("the log has holes or doubles: %+v, %v", page, err)
	}
}

func TestRestartForgetsAndFinishes(t *testing.T) {
	w := newWorld(t)
	gone, kept := w.create(), w.create()
	lost := w.startCmd(kept.ID, control.CommandInput{Command: "hang"})
	w.stop()
	delete(w.host.instances, gone.RuntimeID)
	m := w.host.instances[kept.RuntimeID]
	delete(m.commands, lost.ID)
	stray := newDriver(w.host, func(context.Context, runtime.Instance, netConn) error { return nil })
	if _, err := stray.Acquire(context.Background(), runtime.Spec{}); err != nil {
		t.Fatal(err)
	}
	w.start()
	eventually(t, "the vanished sandbox ends", func() bool { return w.sandbox(gone.ID).Status == sandbox.StatusDestroyed })
	if r := w.sandbox(gone.ID).DestroyedReason; r != sandbox.ReasonPlatformCleanup {
		t.Errorf("reason %s", r)
	}
	end, err := w.svc.WaitCommand(context.Background(), w.call(), lost.ID)
	if err != nil || end.Status != sandbox.CommandFailed {
		t.Errorf("a command that the guest does not know: %+v, %v", end, err)
	}
	if n := w.host.count(); n != 1 {
		t.Errorf("%d instances exist, want the one that has a record", n)
	}
}

func TestBrokenConnectionResumes(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	cmd := w.startCmd(sb.ID, control.CommandInput{Command: "hang"})
	m := w.driver.machine(sb.RuntimeID)
	m.commands[cmd.ID].print(sandbox.Stdout, "a")
	m.cut()
	m.commands[cmd.ID].print(sandbox.Stdout, "b")
	m.commands[cmd.ID].finish(exitCode(0))
	end, err := w.svc.WaitCommand(context.Background(), w.call(), cmd.ID)
	if err != nil || end.Stdout != "ab" || m.started[cmd.ID] != 1 {
		t.Fatalf("after a broken connection: %+v, started %d times, %v", end, m.started[cmd.ID], err)
	}
}

func TestInstanceExit(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	cmd := w.startCmd(sb.ID, control.CommandInput{Command: "hang"})
	w.driver.exits <- runtime.Exit{ID: sb.RuntimeID, Cause: "out of memory"}
	end, err := w.svc.WaitCommand(context.Background(), w.call(), cmd.ID)
	if err != nil || end.Status != sandbox.CommandKilled {
		t.Fatalf("the command of a dead sandbox: %+v, %v", end, err)
	}
	eventually(t, "the sandbox ends", func() bool { return w.sandbox(sb.ID).DestroyedReason == sandbox.ReasonPlatformCleanup })
}

func TestCollect(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	w.driver.machine(sb.RuntimeID).files["/workspace/report.html"] = "<p>"
	ask := []sandbox.CollectItem{{Path: "/workspace/report.html"}, {Path: "/workspace/none"}}
	for _, tc := range []struct {
		name, command string
		items         []sandbox.CollectItem
		on            sandbox.CollectOn
		status        sandbox.CollectStatus
		kept, errs    int
	}{
		{"all there", "true", ask[:1], "", sandbox.CollectSucceeded, 1, 0},
		{"one missing", "true", ask, "", sandbox.CollectPartial, 1, 1},
		{"none there", "true", ask[1:], "", sandbox.CollectFailed, 0, 1},
		{"only after success", "exit 1", ask[:1], "", sandbox.CollectSkipped, 0, 0},
		{"always", "exit 1", ask[:1], sandbox.OnAlways, sandbox.CollectSucceeded, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := w.runWith(sb.ID, control.CommandInput{Command: tc.command, Collect: tc.items, CollectOn: tc.on, Blocking: true})
			if cmd.CollectStatus != tc.status || len(cmd.ArtifactIDs) != tc.kept || len(cmd.CollectErrors) != tc.errs {
				t.Fatalf("status %s, artifacts %v, errors %v", cmd.CollectStatus, cmd.ArtifactIDs, cmd.CollectErrors)
			}
			for _, e := range cmd.CollectErrors {
				if e.Code != sandbox.CodeFileNotFound {
					t.Errorf("collect error %+v", e)
				}
			}
		})
	}
	if _, err := w.svc.KillSandbox(context.Background(), w.call(), sb.ID); err != nil {
		t.Fatal(err)
	}
	page, err := w.svc.Artifacts(context.Background(), w.call(), sb.ID, store.Page{Limit: 10})
	if err != nil || len(page.Items) != 3 || page.Items[0].Name != "report.html" || page.Items[0].Size != 3 {
		t.Fatalf("artifacts after the end: %+v, %v", page, err)
	}
	if _, err := w.svc.DeleteArtifact(context.Background(), w.call(), page.Items[0].ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.svc.Artifact(context.Background(), w.call(), page.Items[0].ID)
	wantCode(t, err, sandbox.CodeNotFound)
}

func TestCapacity(t *testing.T) {
	w := newWorld(t)
	w.host.capacity = 2
	w.create()
	w.create()
	_, err := w.svc.CreateSandbox(context.Background(), w.call(), control.CreateSandboxInput{})
	wantCode(t, err, sandbox.CodeCapacityExhausted)
}

func TestProvisioningFails(t *testing.T) {
	w := newWorld(t)
	w.host.refuse = errors.New("no luck")
	call := w.call()
	_, err := w.svc.CreateSandbox(context.Background(), call, control.CreateSandboxInput{})
	wantCode(t, err, sandbox.CodeInternal)
	id := sandbox.ID(sandbox.PrefixSandbox, call.OperationID)
	eventually(t, "the sandbox is failed", func() bool { return w.sandbox(id).Status == sandbox.StatusFailed })
	sb, err := w.svc.KillSandbox(context.Background(), w.call(), id)
	if err != nil || sb.Status != sandbox.StatusFailed {
		t.Errorf("killing a failed sandbox: %+v, %v", sb, err)
	}
}

func TestVisibility(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	other := w.call()
	other.ProjectIDs = []string{"prj_00000000000000000000000000"}
	_, err := w.svc.Sandbox(context.Background(), other, sb.ID)
	wantCode(t, err, sandbox.CodeNotFound)
	foreign := w.call()
	foreign.OrgID = "org_00000000000000000000000000"
	_, err = w.svc.KillSandbox(context.Background(), foreign, sb.ID)
	wantCode(t, err, sandbox.CodeNotFound)
	_, err = w.svc.CreateSandbox(context.Background(), other, control.CreateSandboxInput{ProjectID: w.project.ID})
	wantCode(t, err, sandbox.CodeNotFound)
}

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t)
	n := func(v int64) *int64 { return &v }
	many := map[string]string{}
	for i := range 17 {
		many[strings.Repeat("k", i+1)] = ""
	}
	for _, tc := range []struct {
		name string
		in   control.CreateSandboxInput
		code sandbox.Code
	}{
		{"ttl too small", control.CreateSandboxInput{TTLMs: n(0)}, sandbox.CodeInvalidRequest},
		{"ttl too large", control.CreateSandboxInput{TTLMs: n(3_600_001)}, sandbox.CodeTTLExceeded},
		{"unknown template", control.CreateSandboxInput{Template: "cobol"}, sandbox.CodeNotFound},
		{"template not built", control.CreateSandboxInput{Template: "python"}, sandbox.CodeSandboxNotReady},
		{"version of another template", control.CreateSandboxInput{Template: "python", TemplateVersionID: built.ID}, sandbox.CodeInvalidRequest},
		{"unknown project", control.CreateSandboxInput{ProjectID: "prj_1"}, sandbox.CodeNotFound},
		{"metadata key", control.CreateSandboxInput{Metadata: map[string]string{"a b": ""}}, sandbox.CodeInvalidMetadataKey},
		{"metadata value", control.CreateSandboxInput{Metadata: map[string]string{"a": strings.Repeat("x", 513)}}, sandbox.CodeInvalidMetadataValue},
		{"metadata keys", control.CreateSandboxInput{Metadata: many}, sandbox.CodeMetadataTooManyKeys},
		{"egress", control.CreateSandboxInput{Network: &sandbox.Network{Egress: sandbox.EgressInternet}}, sandbox.CodeFeatureNotEnabled},
		{"allow without allowlist", control.CreateSandboxInput{Network: &sandbox.Network{Egress: sandbox.EgressNone, Allow: []string{"a.b"}}}, sandbox.CodeInvalidRequest},
		{"backup", control.CreateSandboxInput{RestoreFrom: "bkp_1"}, sandbox.CodeFeatureNotEnabled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := w.svc.CreateSandbox(context.Background(), w.call(), tc.in)
			wantCode(t, err, tc.code)
		})
	}
}

func TestStream(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	cmd := w.startCmd(sb.ID, control.CommandInput{Command: "hang"})
	p := w.driver.machine(sb.RuntimeID).commands[cmd.ID]
	p.print(sandbox.Stdout, "one")
	events, err := w.svc.StreamCommand(context.Background(), w.call(), cmd.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Log == nil || string(e.Log.Data) != "one" || e.Log.Seq != 1 {
		t.Fatalf("first event %+v", e)
	}
	p.print(sandbox.Stdout, "two")
	if e := <-events; e.Log == nil || e.Log.Seq != 2 {
		t.Fatalf("second event %+v", e)
	}
	p.finish(exitCode(0))
	if e := <-events; e.Terminal == nil || e.Terminal.Stdout != "onetwo" {
		t.Fatalf("third event %+v", e)
	}
	if _, open := <-events; open {
		t.Error("the stream goes on after the terminal event")
	}
	after := int64(1)
	replay, err := w.svc.StreamCommand(context.Background(), w.call(), cmd.ID, &after)
	if err != nil {
		t.Fatal(err)
	}
	if e := <-replay; e.Log == nil || e.Log.Seq != 2 {
		t.Errorf("replay begins with %+v", e)
	}
	if e := <-replay; e.Terminal == nil {
		t.Errorf("replay ends with %+v", e)
	}
}

func TestMetering(t *testing.T) {
	w := newWorld(t)
	sb := w.create()
	w.run(sb.ID, "true")
	end, err := w.svc.KillSandbox(context.Background(), w.call(), sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	usage, err := w.svc.Usage(context.Background(), w.call(), true)
	if err != nil {
		t.Fatal(err)
	}
	want := float64(end.DestroyedAt.Sub(end.ReadyAt).Milliseconds()) / 1000
	if usage.ComputeUnitSeconds != want || usage.CurrencyPerCredit != 0.0333 {
		t.Errorf("used %v, want %v; currency per credit %v", usage.ComputeUnitSeconds, want, usage.CurrencyPerCredit)
	}
	if len(usage.Events) != 3 || usage.Quotas["active_sandboxes"].Current != 0 {
		t.Errorf("events %+v, quotas %+v", usage.Events, usage.Quotas)
	}
}
