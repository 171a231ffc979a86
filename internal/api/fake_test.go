package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"go.uber.org/goleak"

	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/store/sqldb"
	"crownest.dev/crownest/internal/template"
)

var update = flag.Bool("update", false, "write api/openapi.json anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeControl is an in-memory stand-in for the use cases. Tests replace single
// behaviours by the function fields.
type fakeControl struct {
	mu        sync.Mutex
	sandboxes map[string]sandbox.Sandbox
	commands  map[string]sandbox.Command
	ended     map[string]chan struct{} // closed when a command is terminal
	logs      map[string][]sandbox.LogChunk
	files     map[string][]byte
	artifacts map[string]sandbox.Artifact
	uploads   map[string]control.UploadInput
	calls     map[string]int
	denied    []string

	createSandbox func(ctx context.Context, c control.Call, in control.CreateSandboxInput) (sandbox.Sandbox, error)
	startCommand  func(ctx context.Context, c control.Call, in control.CommandInput) error
	getSandbox    func(ctx context.Context, c control.Call, id string) (sandbox.Sandbox, error)
}

var _ Control = (*fakeControl)(nil)

func newFake() *fakeControl {
	return &fakeControl{
		sandboxes: map[string]sandbox.Sandbox{}, commands: map[string]sandbox.Command{},
		ended: map[string]chan struct{}{}, logs: map[string][]sandbox.LogChunk{},
		files:     map[string][]byte{"/workspace/hello.txt": []byte("hello"), "/workspace/bin": {0xff, 0xfe, 0}},
		artifacts: map[string]sandbox.Artifact{}, uploads: map[string]control.UploadInput{}, calls: map[string]int{},
	}
}

func (f *fakeControl) count(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[name]++
}

func (f *fakeControl) called(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[name]
}

func absent(what string) error { return sandbox.NewError(sandbox.CodeNotFound, "No such %s.", what) }

func pageOf[T any](all []T, p store.Page, mark func(T) (time.Time, string)) control.Page[T] {
	slices.SortFunc(all, func(a, b T) int {
		ta, ia := mark(a)
		tb, ib := mark(b)
		if c := tb.Compare(ta); c != 0 {
			return c
		}
		return strings.Compare(ib, ia)
	})
	var out control.Page[T]
	for _, item := range all {
		at, id := mark(item)
		if p.AfterID != "" && (at.After(p.AfterTime) || at.Equal(p.AfterTime) && id >= p.AfterID) {
			continue
		}
		if len(out.Items) == p.Limit {
			out.HasMore = true
			break
		}
		out.Items = append(out.Items, item)
	}
	return out
}

func (f *fakeControl) Projects(_ context.Context, c control.Call, p store.Page) (control.Page[sandbox.Project], error) {
	return control.Page[sandbox.Project]{Items: []sandbox.Project{{ID: sandbox.NewID("prj"), OrgID: c.OrgID, Name: "default", CreatedAt: time.Now()}}}, nil
}

func (f *fakeControl) CreateProject(_ context.Context, c control.Call, name string) (sandbox.Project, error) {
	f.count("CreateProject")
	return sandbox.Project{ID: sandbox.ID("prj", c.OperationID), OrgID: c.OrgID, Name: name, CreatedAt: time.Now()}, nil
}

func (f *fakeControl) Keys(_ context.Context, c control.Call, _ store.Page) (control.Page[sandbox.Key], error) {
	return control.Page[sandbox.Key]{Items: []sandbox.Key{{ID: c.KeyID, OrgID: c.OrgID, Name: "k", Prefix: "cn_live_abcd", Last4: "wxyz", Scopes: c.Scopes, CreatedByUserID: c.UserID, CreatedAt: time.Now()}}}, nil
}

func (f *fakeControl) Key(_ context.Context, c control.Call, id string) (sandbox.Key, error) {
	if id != c.KeyID {
		return sandbox.Key{}, absent("API key")
	}
	return sandbox.Key{ID: id, OrgID: c.OrgID, Name: "k", Scopes: c.Scopes, CreatedByUserID: c.UserID, CreatedAt: time.Now()}, nil
}

func (f *fakeControl) CreateKey(_ context.Context, c control.Call, name string, scopes, projectIDs []string) (string, sandbox.Key, error) {
	id := sandbox.ID(sandbox.PrefixKey, c.OperationID)
	return "cn_live_secret", sandbox.Key{ID: id, OrgID: c.OrgID, Name: name, Scopes: scopes, ProjectIDs: projectIDs, CreatedByUserID: c.UserID, CreatedAt: time.Now()}, nil
}

func (f *fakeControl) RevokeKey(ctx context.Context, c control.Call, id string) (sandbox.Key, error) {
	k, err := f.Key(ctx, c, id)
	k.RevokedAt = time.Now()
	return k, err
}

func (f *fakeControl) Templates(context.Context, control.Call) ([]control.Template, error) {
	var out []control.Template
	for _, slug := range []string{"base", "node", "python", "python-node"} {
		t := control.Template{ID: sandbox.ID("tpl", fmt.Sprintf("%026d", len(out))), Slug: slug, Name: slug, Description: "A template."}
		if slug == "base" {
			t.DefaultVersionID = sandbox.NewID("tplv")
			t.Versions = []template.Version{{ID: t.DefaultVersionID, TemplateID: t.ID, Slug: slug, Version: "1", CreatedAt: time.Now(), Resources: sandbox.DefaultResources, ComputeMultiplier: 1}}
		}
		out = append(out, t)
	}
	return out, nil
}

func (f *fakeControl) Template(ctx context.Context, c control.Call, slug string) (control.Template, error) {
	all, _ := f.Templates(ctx, c)
	for _, t := range all {
		if t.Slug == slug {
			return t, nil
		}
	}
	return control.Template{}, absent("template")
}

func (f *fakeControl) Usage(_ context.Context, c control.Call, events bool) (control.UsageSummary, error) {
	u := control.UsageSummary{
		Start: time.Now(), End: time.Now(), PricingVersion: "p1", ComputeUnitSecondsPerCredit: 1000, CurrencyPerCredit: 0.0333,
		ComputeUnitSeconds: 1.23456, Quotas: map[string]control.Quota{"active_sandboxes": {Current: 1, Limit: 5}, "x": {Limit: 1, ResetAt: time.Now()}},
	}
	if events {
		u.Events = []sandbox.UsageEvent{{OrgID: c.OrgID, Metric: "sandbox_creates", Amount: 1, CreatedAt: time.Now()}}
	}
	return u, nil
}

func (f *fakeControl) AuditEvents(_ context.Context, c control.Call, _ store.AuditFilter, _ string) (control.Page[sandbox.AuditEvent], error) {
	return control.Page[sandbox.AuditEvent]{Items: []sandbox.AuditEvent{{
		ID: sandbox.NewID("aud"), OrgID: c.OrgID, Actor: sandbox.AuditActor{Kind: "api_key", ID: c.KeyID}, Action: "sandbox.create",
		ResourceType: "sandbox", ResourceID: "sbx", Outcome: "success", CreatedAt: time.Now(), PrevHash: "0", Hash: "1",
	}}}, nil
}

func (f *fakeControl) VerifyAudit(context.Context, control.Call) (control.AuditCheck, error) {
	return control.AuditCheck{OK: true, Checked: 1}, nil
}

func (f *fakeControl) Denied(_ context.Context, _ control.Call, route string, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.denied = append(f.denied, route)
}

func (f *fakeControl) CreateSandbox(ctx context.Context, c control.Call, in control.CreateSandboxInput) (sandbox.Sandbox, error) {
	f.count("CreateSandbox")
	if f.createSandbox != nil {
		return f.createSandbox(ctx, c, in)
	}
	return f.addSandbox(c, in), nil
}

func (f *fakeControl) addSandbox(c control.Call, in control.CreateSandboxInput) sandbox.Sandbox {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := sandbox.ID("sbx", c.OperationID)
	if sb, ok := f.sandboxes[id]; ok {
		return sb
	}
	sb := sandbox.Sandbox{
		ID: id, OrgID: c.OrgID, ProjectID: "prj_1", Status: sandbox.StatusReady, TemplateSlug: "base", TTL: time.Hour,
		CreatedAt: time.Now().Truncate(time.Millisecond), ExpiresAt: time.Now().Add(time.Hour), Metadata: in.Metadata, Resources: sandbox.DefaultResources,
	}
	f.sandboxes[id] = sb
	return sb
}

func (f *fakeControl) Sandboxes(_ context.Context, _ control.Call, in control.ListSandboxesInput) (control.Page[sandbox.Sandbox], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []sandbox.Sandbox
	for _, sb := range f.sandboxes {
		match := true
		for k, v := range in.Metadata {
			match = match && sb.Metadata[k] == v
		}
		if match {
			all = append(all, sb)
		}
	}
	return pageOf(all, in.Page, func(s sandbox.Sandbox) (time.Time, string) { return s.CreatedAt, s.ID }), nil
}

func (f *fakeControl) Sandbox(ctx context.Context, c control.Call, id string) (sandbox.Sandbox, error) {
	if f.getSandbox != nil {
		return f.getSandbox(ctx, c, id)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	sb, ok := f.sandboxes[id]
	if !ok || sb.OrgID != c.OrgID {
		return sandbox.Sandbox{}, absent("sandbox")
	}
	return sb, nil
}

func (f *fakeControl) ExtendSandbox(ctx context.Context, c control.Call, id string, ttlMs int64) (sandbox.Sandbox, error) {
	sb, err := f.Sandbox(ctx, c, id)
	if err == nil && ttlMs > 604800000 {
		err = sandbox.NewError(sandbox.CodeTTLExceeded, "Too long.").With("maxTtlMs", 604800000)
	}
	return sb, err
}

func (f *fakeControl) KillSandbox(ctx context.Context, c control.Call, id string) (sandbox.Sandbox, error) {
	f.count("KillSandbox")
	sb, err := f.Sandbox(ctx, c, id)
	if err != nil {
		return sb, err
	}
	sb.Status, sb.DestroyedAt, sb.DestroyedReason = sandbox.StatusDestroyed, time.Now(), sandbox.ReasonUserKilled
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sandboxes[id] = sb
	return sb, nil
}

func (f *fakeControl) StartCommand(ctx context.Context, c control.Call, sandboxID string, in control.CommandInput) (sandbox.Command, error) {
	f.count("StartCommand")
	if f.startCommand != nil {
		if err := f.startCommand(ctx, c, in); err != nil {
			return sandbox.Command{}, err
		}
	}
	if _, err := f.Sandbox(ctx, c, sandboxID); err != nil {
		return sandbox.Command{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id := sandbox.ID("cmd", c.OperationID)
	if cmd, ok := f.commands[id]; ok {
		return cmd, nil
	}
	f.calls["started"]++
	cmd := sandbox.Command{
		ID: id, SandboxID: sandboxID, OrgID: c.OrgID, Command: in.Command, Cwd: "/workspace", Status: sandbox.CommandRunning,
		CreatedAt: time.Now(), StartedAt: time.Now(), CollectStatus: sandbox.CollectNotRequested,
	}
	f.commands[id] = cmd
	f.ended[id] = make(chan struct{})
	if !strings.HasPrefix(in.Command, "wait") {
		f.endLocked(id, in.Command+"\n", "")
	}
	return cmd, nil
}

// end finishes a command with its whole output as one chunk.
func (f *fakeControl) end(id, stdout, stderr string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocked(id, stdout, stderr)
}

func (f *fakeControl) endLocked(id, stdout, stderr string) {
	cmd := f.commands[id]
	cmd.Status, cmd.ExitCode, cmd.FinishedAt = sandbox.CommandExited, ptr(0), time.Now()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	f.commands[id] = cmd
	for data := stdout; data != ""; {
		n := min(len(data), 64<<10)
		f.logs[id] = append(f.logs[id], sandbox.LogChunk{CommandID: id, Seq: int64(len(f.logs[id]) + 1), Stream: sandbox.Stdout, Data: []byte(data[:n]), CreatedAt: time.Now()})
		data = data[n:]
	}
	close(f.ended[id])
}

func (f *fakeControl) running() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.commands))
}

func (f *fakeControl) WaitCommand(ctx context.Context, c control.Call, id string) (sandbox.Command, error) {
	f.mu.Lock()
	done := f.ended[id]
	f.mu.Unlock()
	select {
	case <-done:
		return f.Command(ctx, c, id)
	case <-ctx.Done():
		return sandbox.Command{}, ctx.Err()
	}
}

func (f *fakeControl) Command(_ context.Context, c control.Call, id string) (sandbox.Command, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cmd, ok := f.commands[id]
	if !ok || cmd.OrgID != c.OrgID {
		return sandbox.Command{}, absent("command")
	}
	return cmd, nil
}

func (f *fakeControl) Commands(_ context.Context, _ control.Call, sandboxID string, p store.Page) (control.Page[sandbox.Command], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return pageOf(slices.Collect(maps.Values(f.commands)), p, func(c sandbox.Command) (time.Time, string) { return c.CreatedAt, c.ID }), nil
}

func (f *fakeControl) CancelCommand(ctx context.Context, c control.Call, id string, mode sandbox.CancelMode) (sandbox.Command, error) {
	return f.Command(ctx, c, id)
}

func (f *fakeControl) CommandLogs(ctx context.Context, c control.Call, id string, afterSeq *int64, limit int) (control.LogPage, error) {
	if _, err := f.Command(ctx, c, id); err != nil {
		return control.LogPage{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var page control.LogPage
	for _, chunk := range f.logs[id] {
		if afterSeq != nil && chunk.Seq <= *afterSeq {
			continue
		}
		if len(page.Chunks) == limit {
			page.HasMore = true
			break
		}
		page.Chunks = append(page.Chunks, chunk)
	}
	return page, nil
}

func (f *fakeControl) StreamCommand(ctx context.Context, c control.Call, id string, afterSeq *int64) (<-chan control.StreamEvent, error) {
	if _, err := f.Command(ctx, c, id); err != nil {
		return nil, err
	}
	if afterSeq != nil && *afterSeq == 999 {
		return nil, sandbox.NewError(sandbox.CodeStreamGap, "Gone.").With("oldestSeq", int64(5))
	}
	events := make(chan control.StreamEvent)
	go func() {
		defer close(events)
		cmd, err := f.WaitCommand(ctx, c, id)
		if err != nil {
			return
		}
		page, _ := f.CommandLogs(ctx, c, id, afterSeq, 1<<30)
		for i := range page.Chunks {
			select {
			case events <- control.StreamEvent{Log: &page.Chunks[i]}:
			case <-ctx.Done():
				return
			}
		}
		select {
		case events <- control.StreamEvent{Terminal: &cmd}:
		case <-ctx.Done():
		}
	}()
	return events, nil
}

func memory(name string, data []byte) control.Content {
	return control.Content{
		Name: name, Size: int64(len(data)), Close: func() error { return nil },
		OpenRange: func(_ context.Context, offset, length int64) (io.ReadCloser, error) {
			if length < 0 {
				length = int64(len(data)) - offset
			}
			return io.NopCloser(bytes.NewReader(data[offset : offset+length])), nil
		},
	}
}

func (f *fakeControl) CommandLogContent(ctx context.Context, c control.Call, id string, which control.LogSelection) (control.Content, error) {
	cmd, err := f.Command(ctx, c, id)
	return memory(id+".log", []byte(string(which)+":"+cmd.Stdout)), err
}

func (f *fakeControl) ListFiles(ctx context.Context, c control.Call, id, path string) (control.DirectoryListing, error) {
	_, err := f.Sandbox(ctx, c, id)
	return control.DirectoryListing{Entries: []sandbox.FileInfo{{Name: "hello.txt", Path: "/workspace/hello.txt", Size: 5, Type: "file", ModifiedAt: time.Now()}}}, err
}

func (f *fakeControl) StatFile(ctx context.Context, c control.Call, id, path string) (sandbox.FileInfo, error) {
	if _, err := f.Sandbox(ctx, c, id); err != nil {
		return sandbox.FileInfo{}, err
	}
	if path == "/workspace" {
		return sandbox.FileInfo{Name: "workspace", Path: path, Type: sandbox.FileTypeDirectory}, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.files[path]
	if !ok {
		return sandbox.FileInfo{}, sandbox.NewError(sandbox.CodeFileNotFound, "No such file.")
	}
	return sandbox.FileInfo{Name: filepath.Base(path), Path: path, Size: int64(len(data)), Type: sandbox.FileTypeFile, ModifiedAt: time.Now()}, nil
}

func (f *fakeControl) ReadFile(ctx context.Context, c control.Call, id, path string) ([]byte, sandbox.FileInfo, error) {
	info, err := f.StatFile(ctx, c, id, path)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.files[path], info, err
}

func (f *fakeControl) WriteFile(ctx context.Context, c control.Call, id string, in control.WriteFileInput) (sandbox.FileInfo, error) {
	f.count("WriteFile")
	f.mu.Lock()
	f.files[in.Path] = in.Content
	f.mu.Unlock()
	return f.StatFile(ctx, c, id, in.Path)
}

func (f *fakeControl) DeleteFile(ctx context.Context, c control.Call, id, path string) error {
	f.count("DeleteFile")
	_, err := f.StatFile(ctx, c, id, path)
	return err
}

func (f *fakeControl) MakeDirectory(ctx context.Context, c control.Call, id, path string, parents bool) (sandbox.FileInfo, error) {
	return f.StatFile(ctx, c, id, "/workspace")
}

func (f *fakeControl) MoveFile(ctx context.Context, c control.Call, id, from, to string, overwrite bool) (sandbox.FileInfo, error) {
	return f.StatFile(ctx, c, id, from)
}

func (f *fakeControl) FileContent(ctx context.Context, c control.Call, id, path string) (control.Content, error) {
	if _, err := f.StatFile(ctx, c, id, path); err != nil {
		return control.Content{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return memory(filepath.Base(path), f.files[path]), nil
}

func (f *fakeControl) CreateUpload(ctx context.Context, c control.Call, id string, in control.UploadInput) (control.UploadTicket, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	up := sandbox.ID("upl", c.OperationID)
	f.uploads[up] = in
	return control.UploadTicket{ID: up, MaxSize: 1 << 20, ExpiresAt: time.Now().Add(15 * time.Minute)}, nil
}

func (f *fakeControl) PutUpload(_ context.Context, _ control.Call, _, uploadID string, _ int64, body io.Reader) (sandbox.FileInfo, error) {
	data, err := io.ReadAll(body)
	if err != nil {
		return sandbox.FileInfo{}, fmt.Errorf("writing: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	in, ok := f.uploads[uploadID]
	if !ok {
		return sandbox.FileInfo{}, sandbox.NewError(sandbox.CodeUploadNotFound, "No such upload.")
	}
	f.files[in.Path] = data
	return sandbox.FileInfo{Name: "x", Path: in.Path, Size: int64(len(data)), Type: sandbox.FileTypeFile, ModifiedAt: time.Now()}, nil
}

func (f *fakeControl) CreateArtifact(_ context.Context, c control.Call, id string, item sandbox.CollectItem) (sandbox.Artifact, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := sandbox.Artifact{ID: sandbox.ID("art", c.OperationID), OrgID: c.OrgID, ProjectID: "prj_1", SandboxID: id, Name: filepath.Base(item.Path), ObjectKey: "k", Size: 3, CreatedAt: time.Now()}
	f.artifacts[a.ID] = a
	return a, nil
}

func (f *fakeControl) Artifacts(_ context.Context, _ control.Call, _ string, p store.Page) (control.Page[sandbox.Artifact], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return pageOf(slices.Collect(maps.Values(f.artifacts)), p, func(a sandbox.Artifact) (time.Time, string) { return a.CreatedAt, a.ID }), nil
}

func (f *fakeControl) Artifact(_ context.Context, _ control.Call, id string) (sandbox.Artifact, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.artifacts[id]
	if !ok {
		return a, absent("artifact")
	}
	return a, nil
}

func (f *fakeControl) ArtifactContent(ctx context.Context, c control.Call, id string) (control.Content, error) {
	a, err := f.Artifact(ctx, c, id)
	content := memory(a.Name, []byte("abc"))
	content.ContentType = "text/html"
	return content, err
}

func (f *fakeControl) DeleteArtifact(ctx context.Context, c control.Call, id string) (sandbox.Artifact, error) {
	a, err := f.Artifact(ctx, c, id)
	a.DeletedAt = time.Now()
	return a, err
}

// rig is a server over the fake and a real store, and a client that checks every
// answer against the document.
type rig struct {
	*fakeControl
	t      testing.TB
	api    *Server
	http   *httptest.Server
	auth   *auth.Authenticator
	store  *sqldb.DB
	org    store.Org
	key    string
	keyID  string
	logged *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newRig(t testing.TB, change ...func(*Options)) *rig {
	t.Helper()
	ctx := t.Context()
	r := &rig{fakeControl: newFake(), t: t, logged: &lockedBuffer{}}
	log := slog.New(slog.NewTextHandler(r.logged, nil))
	var err error
	if r.store, err = sqldb.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "test.db"), log); err != nil {
		t.Fatal(err)
	}
	if r.org, _, err = auth.EnsureOrg(ctx, r.store); err != nil {
		t.Fatal(err)
	}
	r.auth = auth.NewAuthenticator(r.store, log)
	signer, err := auth.NewSigner(ctx, r.store)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Control: r.fakeControl, Auth: r.auth, Signer: signer, Store: r.store, Log: log, BootID: "boot-1", Version: "test"}
	for _, c := range change {
		c(&o)
	}
	if r.api, err = New(o); err != nil {
		t.Fatal(err)
	}
	r.http = httptest.NewServer(r.api)
	r.key, r.keyID = r.newKey(sandbox.AllScopes...)
	t.Cleanup(func() {
		r.http.CloseClientConnections()
		r.api.Close()
		r.http.Close()
		http.DefaultClient.CloseIdleConnections()
		if err := errors.Join(r.auth.Close(), r.store.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) newKey(scopes ...string) (secret, id string) {
	r.t.Helper()
	secret, key, err := auth.CreateKey(r.t.Context(), r.store, auth.KeyParams{OrgID: r.org.ID, Name: "test", Scopes: scopes, CreatedByUserID: r.org.OperatorUserID})
	if err != nil {
		r.t.Fatal(err)
	}
	return secret, key.ID
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) json(t testing.TB) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("status %d, not JSON: %v: %.200s", a.status, err, a.body)
	}
	return v
}

// errorOf returns code and details of an envelope.
func (a answer) errorOf(t testing.TB) (string, map[string]any) {
	t.Helper()
	e, ok := a.json(t)["error"].(map[string]any)
	if !ok {
		t.Fatalf("status %d, no envelope: %.200s", a.status, a.body)
	}
	details, _ := e["details"].(map[string]any)
	return e["code"].(string), details
}

// do sends a request with the rig's key. headers are pairs; an empty value removes
// what would be sent.
func (r *rig) do(method, path, body string, headers ...string) answer {
	r.t.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	url := path
	if !strings.HasPrefix(path, "http") {
		url = r.http.URL + path
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, url, rd)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i+1] == "" {
			req.Header.Del(headers[i])
		} else {
			req.Header.Set(headers[i], headers[i+1])
		}
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatalf("%s %s: reading the answer: %v", method, path, err)
	}
	a := answer{res.StatusCode, res.Header, b}
	r.check(method, path, a)
	return a
}

// check holds an answer against the document and the common rules.
func (r *rig) check(method, path string, a answer) {
	r.t.Helper()
	if id := a.header.Get("X-Request-Id"); !sandbox.ValidID("req", id) {
		r.t.Errorf("%s %s: x-request-id %q", method, path, id)
	}
	if a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("Cache-Control") != "no-store" {
		r.t.Errorf("%s %s: headers %v", method, path, a.header)
	}
	p := strings.TrimPrefix(strings.SplitN(path, "?", 2)[0], r.http.URL)
	op := r.operation(method, strings.TrimPrefix(p, r.api.opts.PathPrefix))
	media := strings.SplitN(a.header.Get("Content-Type"), ";", 2)[0]
	if media != mediaJSON || len(a.body) == 0 {
		return
	}
	var v any
	if err := json.Unmarshal(a.body, &v); err != nil {
		r.t.Errorf("%s %s: not JSON: %.200s", method, path, a.body)
		return
	}
	if a.status >= 400 {
		if strings.HasSuffix(p, "/readyz") {
			return
		}
		r.validate(method+" "+path, r.api.registry.Map()["Error"], v)
		if op != nil && op.id != "" && !slices.Contains(op.statuses(), a.status) && a.status != 405 {
			r.t.Errorf("%s: status %d is not in the document", op.id, a.status)
		}
		return
	}
	if op == nil || op.id == "" {
		return
	}
	c := op.responses[a.status]
	if c == nil || c.media[media] == nil {
		r.t.Errorf("%s: status %d with %s is not in the document", op.id, a.status, media)
		return
	}
	r.validate(op.id, r.api.registry.Schema(c.media[media], true, ""), v)
}

func (r *rig) operation(method, path string) *operation {
	req := httptest.NewRequest(method, "http://x/", nil)
	req.URL.Path = path
	_, pattern := r.api.mux.Handler(req)
	if rt := r.api.routes[pattern]; rt != nil {
		return rt.methods[method]
	}
	return nil
}

// validate is stricter than clients are: what the document does not know is an
// error, and nothing may be null that it does not allow to be.
func (r *rig) validate(where string, schema *huma.Schema, v any) {
	r.t.Helper()
	res := &huma.ValidateResult{}
	huma.Validate(r.api.registry, schema, huma.NewPathBuffer(nil, 0), huma.ModeReadFromServer, v, res)
	for _, e := range res.Errors {
		r.t.Errorf("%s: answer breaks the document: %v", where, e)
	}
	r.strict(where, schema, v)
}

func (r *rig) strict(where string, schema *huma.Schema, v any) {
	r.t.Helper()
	for schema.Ref != "" {
		schema = r.api.registry.SchemaFromRef(schema.Ref)
	}
	switch v := v.(type) {
	case nil:
		if !schema.Nullable && schema.Type != "" {
			r.t.Errorf("%s: null", where)
		}
	case []any:
		for _, item := range v {
			r.strict(where+"[]", schema.Items, item)
		}
	case map[string]any:
		for k, item := range v {
			if p := schema.Properties[k]; p != nil {
				r.strict(where+"."+k, p, item)
			} else if more, ok := schema.AdditionalProperties.(*huma.Schema); ok {
				if more.Type != "" || more.Ref != "" {
					r.strict(where+"."+k, more, item)
				}
			} else if schema.OneOf == nil {
				r.t.Errorf("%s.%s is not in the document", where, k)
			}
		}
	}
}

// sandbox makes a sandbox and returns its id.
func (r *rig) sandbox() string {
	r.t.Helper()
	a := r.do("POST", "/v1/sandboxes", `{}`)
	if a.status != 201 {
		r.t.Fatalf("create: %d %s", a.status, a.body)
	}
	return a.json(r.t)["sandbox"].(map[string]any)["id"].(string)
}
