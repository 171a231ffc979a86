// Package storetest is the suite that every implementation of the store contract
// has to pass. It knows the contract only.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"crownest.dev/crownest/internal/audit"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// Run tests the stores that open makes. Each call has to give an empty one, which
// open itself closes when its test ends.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, s store.Store)
	}{
		{"Org", testOrg},
		{"Projects", testProjects},
		{"Keys", testKeys},
		{"Secrets", testSecrets},
		{"Sandboxes", testSandboxes},
		{"SandboxFilters", testSandboxFilters},
		{"SandboxCompareAndSet", testSandboxCompareAndSet},
		{"Commands", testCommands},
		{"CommandEndsOnce", testCommandEndsOnce},
		{"CommandRetention", testCommandRetention},
		{"Artifacts", testArtifacts},
		{"Uploads", testUploads},
		{"Usage", testUsage},
		{"Paging", testPaging},
		{"OperationRace", testOperationRace},
		{"OperationLife", testOperationLife},
		{"OperationTakeover", testOperationTakeover},
		{"AuditFilters", testAuditFilters},
		{"AuditChain", testAuditChain},
		{"Transactions", testTransactions},
		{"Serializable", testSerializable},
		{"ForeignText", testForeignText},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

const org = "org_00000000000000000000000001"

// start is a time with the precision that a store keeps.
var start = time.Date(2026, 3, 1, 12, 0, 0, 123e6, time.UTC)

var equateEmpty = cmpopts.EquateEmpty()

func update(t testing.TB, s store.Store, fn func(tx store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// must returns v, or ends the test.
func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func same(t testing.TB, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, equateEmpty); d != "" {
		t.Fatalf("differs (-want +got):\n%s", d)
	}
}

func testOrg(t *testing.T, s store.Store) {
	ctx := t.Context()
	_, err := s.Org(ctx)
	wantErr(t, err, store.ErrNotFound)
	o := store.Org{ID: org, Name: "default", OperatorUserID: sandbox.NewID(sandbox.PrefixUser), CreatedAt: start}
	update(t, s, func(tx store.Tx) error { return tx.InsertOrg(ctx, o) })
	same(t, must(s.Org(ctx))(t), o)
	err = s.Update(ctx, func(tx store.Tx) error {
		return tx.InsertOrg(ctx, store.Org{ID: sandbox.NewID(sandbox.PrefixOrg), CreatedAt: start})
	})
	wantErr(t, err, store.ErrConflict)
}

func newProject(i int) sandbox.Project {
	return sandbox.Project{
		ID: fmt.Sprintf("prj_%026d", i), OrgID: org, Name: fmt.Sprintf("project %d", i),
		CreatedAt: start.Add(time.Duration(i) * time.Millisecond),
	}
}

func testProjects(t *testing.T, s store.Store) {
	ctx := t.Context()
	p1, p2 := newProject(1), newProject(2)
	update(t, s, func(tx store.Tx) error {
		return errors.Join(tx.InsertProject(ctx, p1), tx.InsertProject(ctx, p2))
	})
	same(t, must(s.Project(ctx, p1.ID))(t), p1)
	same(t, must(s.ProjectByName(ctx, org, p2.Name))(t), p2)
	_, err := s.Project(ctx, newProject(3).ID)
	wantErr(t, err, store.ErrNotFound)
	_, err = s.ProjectByName(ctx, "org_another", p2.Name)
	wantErr(t, err, store.ErrNotFound)
	page := store.Page{Limit: 10}
	same(t, must(s.Projects(ctx, org, nil, page))(t), []sandbox.Project{p2, p1})
	same(t, must(s.Projects(ctx, org, []string{p1.ID, "prj_x", "prj_y"}, page))(t), []sandbox.Project{p1})
	same(t, must(s.Projects(ctx, org, []string{}, page))(t), []sandbox.Project{})
	same(t, must(s.Projects(ctx, "org_another", nil, page))(t), []sandbox.Project{})
	for _, p := range []sandbox.Project{p1, {ID: newProject(4).ID, OrgID: org, Name: p1.Name, CreatedAt: start}} {
		err := s.Update(ctx, func(tx store.Tx) error { return tx.InsertProject(ctx, p) })
		wantErr(t, err, store.ErrConflict)
	}
}

func newKey(i int) sandbox.Key {
	return sandbox.Key{
		ID: fmt.Sprintf("key_%026d", i), OrgID: org, Name: "key", Prefix: "cn_live_abcd", Last4: "wxyz",
		Hash: fmt.Sprintf("%064d", i), ProjectIDs: []string{"prj_a", "prj_b"}, Scopes: sandbox.DefaultScopes,
		CreatedByUserID: "usr_operator", CreatedAt: start.Add(time.Duration(i) * time.Second),
	}
}

func testKeys(t *testing.T, s store.Store) {
	ctx := t.Context()
	k1, k2 := newKey(1), newKey(2)
	k2.ProjectIDs = nil
	update(t, s, func(tx store.Tx) error { return errors.Join(tx.InsertKey(ctx, k1), tx.InsertKey(ctx, k2)) })
	same(t, must(s.Key(ctx, k1.ID))(t), k1)
	same(t, must(s.KeyByHash(ctx, k2.Hash))(t), k2)
	_, err := s.KeyByHash(ctx, newKey(3).Hash)
	wantErr(t, err, store.ErrNotFound)
	same(t, must(s.Keys(ctx, org, store.Page{Limit: 10}))(t), []sandbox.Key{k2, k1})

	same2 := newKey(4)
	same2.Hash = k1.Hash
	for _, k := range []sandbox.Key{k1, same2} {
		err := s.Update(ctx, func(tx store.Tx) error { return tx.InsertKey(ctx, k) })
		wantErr(t, err, store.ErrConflict)
	}

	revoked := start.Add(time.Hour)
	for _, at := range []time.Time{revoked, revoked.Add(time.Hour)} { // the first one stays
		update(t, s, func(tx store.Tx) error { return tx.RevokeKey(ctx, k1.ID, at) })
	}
	k1.RevokedAt = revoked
	err = s.Update(ctx, func(tx store.Tx) error { return tx.RevokeKey(ctx, newKey(9).ID, revoked) })
	wantErr(t, err, store.ErrNotFound)

	used := start.Add(time.Minute)
	for _, at := range []time.Time{used, used.Add(-time.Second)} { // never back
		update(t, s, func(tx store.Tx) error {
			return tx.TouchKeys(ctx, map[string]time.Time{k1.ID: at, k2.ID: at, "key_gone": at})
		})
	}
	k1.LastUsedAt, k2.LastUsedAt = used, used
	same(t, must(s.Keys(ctx, org, store.Page{Limit: 10}))(t), []sandbox.Key{k2, k1})
}

func testSecrets(t *testing.T, s store.Store) {
	ctx := t.Context()
	_, err := s.Secret(ctx, "url_signing")
	wantErr(t, err, store.ErrNotFound)
	for _, v := range [][]byte{{0, 1, 0xff}, []byte("second")} {
		update(t, s, func(tx store.Tx) error { return tx.SetSecret(ctx, "url_signing", v) })
		same(t, must(s.Secret(ctx, "url_signing"))(t), v)
	}
}

func newSandbox(i int) sandbox.Sandbox {
	return sandbox.Sandbox{
		ID: fmt.Sprintf("sbx_%026d", i), OrgID: org, ProjectID: "prj_a", Status: sandbox.StatusReady,
		TemplateID: "tpl_1", TemplateSlug: "python", TemplateVersion: "1", TemplateVersionID: "tplv_1",
		TTL: time.Hour, ExpiresAt: start.Add(time.Hour), CreatedAt: start.Add(time.Duration(i) * time.Millisecond),
		Network:   sandbox.Network{Egress: sandbox.EgressAllowlist, Allow: []string{"*.example.com:443"}},
		Resources: sandbox.DefaultResources, ComputeMultiplier: 1.5, RuntimeID: "run",
	}
}

func testSandboxes(t *testing.T, s store.Store) {
	ctx := t.Context()
	b := newSandbox(1)
	b.Status = sandbox.StatusCreating
	b.Metadata = map[string]string{"team": "a", "nul": "x\x00y"}
	update(t, s, func(tx store.Tx) error {
		if err := tx.InsertSandbox(ctx, b); err != nil {
			return err
		}
		same(t, must(tx.Sandbox(ctx, b.ID))(t), b) // a transaction sees its own writes
		return nil
	})
	same(t, must(s.Sandbox(ctx, b.ID))(t), b)
	_, err := s.Sandbox(ctx, newSandbox(2).ID)
	wantErr(t, err, store.ErrNotFound)
	wantErr(t, s.Update(ctx, func(tx store.Tx) error { return tx.InsertSandbox(ctx, b) }), store.ErrConflict)

	b.Status, b.ReadyAt, b.TTL, b.ExpiresAt = sandbox.StatusReady, start.Add(time.Second), 2*time.Hour, start.Add(2*time.Hour)
	b.RuntimeID, b.MeteredMs = "another", 1500
	update(t, s, func(tx store.Tx) error { return tx.UpdateSandbox(ctx, b, sandbox.StatusCreating) })
	same(t, must(s.Sandbox(ctx, b.ID))(t), b)
	same(t, must(s.CountActiveSandboxes(ctx, org, nil))(t), 1)

	// What is set at create only is not changed.
	other := b
	other.Metadata, other.CreatedAt, other.OrgID, other.ProjectID = nil, start.Add(time.Hour), "org_x", "prj_x"
	update(t, s, func(tx store.Tx) error { return tx.UpdateSandbox(ctx, other) })
	same(t, must(s.Sandbox(ctx, b.ID))(t), b)

	wantErr(t, s.Update(ctx, func(tx store.Tx) error {
		return tx.UpdateSandbox(ctx, b, sandbox.StatusCreating, sandbox.StatusStarting)
	}), store.ErrConflict)
	wantErr(t, s.Update(ctx, func(tx store.Tx) error {
		return tx.UpdateSandbox(ctx, newSandbox(2), sandbox.StatusReady)
	}), store.ErrNotFound)

	b.Status, b.DestroyedAt, b.DestroyedReason = sandbox.StatusDestroyed, start.Add(time.Hour), sandbox.ReasonUserKilled
	b.FailureCause = "none"
	update(t, s, func(tx store.Tx) error {
		return tx.UpdateSandbox(ctx, b, sandbox.StatusRunning, sandbox.StatusReady, sandbox.StatusIdle)
	})
	same(t, must(s.Sandbox(ctx, b.ID))(t), b)
	same(t, must(s.ActiveSandboxes(ctx))(t), []sandbox.Sandbox{})
	same(t, must(s.CountActiveSandboxes(ctx, org, nil))(t), 0)
}

func testSandboxFilters(t *testing.T, s store.Store) {
	ctx := t.Context()
	statuses := []sandbox.Status{
		sandbox.StatusCreating, sandbox.StatusStarting, sandbox.StatusReady, sandbox.StatusRunning,
		sandbox.StatusIdle, sandbox.StatusExpiring, sandbox.StatusDestroyed, sandbox.StatusFailed,
	}
	var all []sandbox.Sandbox
	for i := range 32 {
		b := newSandbox(i)
		b.Status = statuses[i%len(statuses)]
		b.ProjectID = []string{"prj_a", "prj_b", "prj_c"}[i%3]
		b.Metadata = map[string]string{"even": fmt.Sprint(i%2 == 0), "team.name": []string{"red", "blue"}[i/16]}
		all = append([]sandbox.Sandbox{b}, all...)
	}
	foreign := newSandbox(99)
	foreign.OrgID, foreign.Metadata = "org_another", map[string]string{"even": "true"}
	update(t, s, func(tx store.Tx) error {
		for _, b := range append(slices.Clone(all), foreign) {
			if err := tx.InsertSandbox(ctx, b); err != nil {
				return err
			}
		}
		return nil
	})
	for _, historical := range []bool{false, true} {
		for _, projects := range [][]string{nil, {}, {"prj_b"}, {"prj_a", "prj_c"}, {"prj_a", "prj_b", "prj_c"}, {"prj_x"}} {
			for _, metadata := range []map[string]string{
				nil, {"even": "true"}, {"even": "false", "team.name": "red"}, {"even": "TRUE"}, {"team": "red"},
				{"even": "true", "absent": ""},
			} {
				var want []string
				for _, b := range all {
					matches := func(k string) bool { v, ok := b.Metadata[k]; return ok && v == metadata[k] }
					if (historical || b.Status.Active()) && (projects == nil || slices.Contains(projects, b.ProjectID)) &&
						!slices.ContainsFunc(slices.Collect(maps.Keys(metadata)), func(k string) bool { return !matches(k) }) {
						want = append(want, b.ID)
					}
				}
				// In pages of three, so that every filter is also paged.
				var got []string
				f := store.SandboxFilter{OrgID: org, ProjectIDs: projects, Historical: historical, Metadata: metadata, Page: store.Page{Limit: 3}}
				for {
					page := must(s.Sandboxes(ctx, f))(t)
					for _, b := range page {
						got = append(got, b.ID)
					}
					if len(page) < f.Limit {
						break
					}
					f.AfterTime, f.AfterID = page[len(page)-1].CreatedAt, page[len(page)-1].ID
				}
				if d := cmp.Diff(want, got, equateEmpty); d != "" {
					t.Errorf("historical %v, projects %v, metadata %v (-want +got):\n%s", historical, projects, metadata, d)
				}
			}
		}
	}
	active := 0
	for _, b := range all {
		if b.Status.Active() {
			active++
		}
	}
	same(t, must(s.CountActiveSandboxes(ctx, org, nil))(t), active)
	same(t, must(s.CountActiveSandboxes(ctx, org, []string{"prj_a", "prj_b", "prj_c"}))(t), active)
	same(t, must(s.CountActiveSandboxes(ctx, org, []string{}))(t), 0)
	same(t, len(must(s.ActiveSandboxes(ctx))(t)), active+1) // of all organisations
}

// race runs fn n times at once and waits.
func race(n int, fn func(i int)) {
	var wg sync.WaitGroup
	gate := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-gate
			fn(i)
		})
	}
	close(gate)
	wg.Wait()
}

func testSandboxCompareAndSet(t *testing.T, s store.Store) {
	ctx := t.Context()
	b := newSandbox(1)
	update(t, s, func(tx store.Tx) error { return tx.InsertSandbox(ctx, b) })
	const racers = 16
	errs := make([]error, racers)
	race(racers, func(i int) {
		mine := b
		mine.Status, mine.RuntimeID = sandbox.StatusExpiring, fmt.Sprint(i)
		errs[i] = s.Update(ctx, func(tx store.Tx) error { return tx.UpdateSandbox(ctx, mine, sandbox.StatusReady) })
	})
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case err == nil:
			t.Fatalf("both %d and %d won", winner, i)
		default:
			wantErr(t, err, store.ErrConflict)
		}
	}
	same(t, must(s.Sandbox(ctx, b.ID))(t).RuntimeID, fmt.Sprint(winner))
}

func newCommand(i int) sandbox.Command {
	return sandbox.Command{
		ID: fmt.Sprintf("cmd_%026d", i), SandboxID: newSandbox(1).ID, OrgID: org, ProjectID: "prj_a",
		Command: "echo \xff", Cwd: "/workspace/\xfe", Status: sandbox.CommandQueued,
		CreatedAt: start.Add(time.Duration(i) * time.Millisecond), Timeout: time.Minute,
		Collect: []sandbox.CollectItem{{Path: "/workspace/a", Name: "a"}}, CollectOn: sandbox.OnSuccess,
		CollectStatus: sandbox.CollectPending,
	}
}

func testCommands(t *testing.T, s store.Store) {
	ctx := t.Context()
	c := newCommand(1)
	update(t, s, func(tx store.Tx) error { return tx.InsertCommand(ctx, c) })
	same(t, must(s.Command(ctx, c.ID))(t), c)
	_, err := s.Command(ctx, newCommand(2).ID)
	wantErr(t, err, store.ErrNotFound)
	wantErr(t, s.Update(ctx, func(tx store.Tx) error { return tx.InsertCommand(ctx, c) }), store.ErrConflict)
	wantErr(t, s.Update(ctx, func(tx store.Tx) error { return tx.UpdateCommand(ctx, newCommand(2)) }), store.ErrNotFound)

	c.Status, c.StartedAt = sandbox.CommandRunning, start.Add(time.Second)
	update(t, s, func(tx store.Tx) error { return tx.UpdateCommand(ctx, c) })
	same(t, must(s.ActiveCommands(ctx, c.SandboxID))(t), []sandbox.Command{c})

	code := 3
	c.Status, c.FinishedAt, c.Duration, c.ExitCode = sandbox.CommandExited, start.Add(2*time.Second), 1234*time.Millisecond, &code
	c.Stdout, c.Stderr, c.StdoutTruncated, c.StderrTruncated = "out\x00\xff", strings.Repeat("e", 1<<20), true, true
	c.CollectStatus, c.ArtifactIDs = sandbox.CollectPartial, []string{"art_1"}
	c.CollectErrors = []sandbox.CollectError{{Code: sandbox.CodeFileNotFound, Message: "none\x00", Path: "/workspace/b"}}
	c.CancelMode, c.CanceledAt, c.TerminationSignal = sandbox.CancelForce, start.Add(3*time.Second), "SIGKILL"
	c.KilledReason, c.FailureCause = sandbox.KilledSandboxDestroyed, "cause"
	update(t, s, func(tx store.Tx) error { return tx.UpdateCommand(ctx, c) })
	same(t, must(s.Command(ctx, c.ID))(t), c)
	same(t, must(s.ActiveCommands(ctx, c.SandboxID))(t), []sandbox.Command{})

	second := newCommand(2)
	second.Collect, second.CollectStatus = nil, sandbox.CollectNotRequested
	update(t, s, func(tx store.Tx) error { return tx.InsertCommand(ctx, second) })
	listed := c
	listed.Stdout, listed.Stderr = "", ""
	same(t, must(s.Commands(ctx, c.SandboxID, store.Page{Limit: 10}))(t), []sandbox.Command{second, listed})
	same(t, must(s.CommandTotals(ctx, c.SandboxID))(t), 2)
	same(t, must(s.CommandTotals(ctx, "sbx_none"))(t), 0)
}

func testCommandEndsOnce(t *testing.T, s store.Store) {
	ctx := t.Context()
	c := newCommand(1)
	update(t, s, func(tx store.Tx) error { return tx.InsertCommand(ctx, c) })
	ends := []sandbox.CommandStatus{
		sandbox.CommandExited, sandbox.CommandFailed, sandbox.CommandCanceled, sandbox.CommandTimedOut, sandbox.CommandKilled,
	}
	errs := make([]error, 2*len(ends))
	race(len(errs), func(i int) {
		mine := c
		mine.Status, mine.FailureCause = ends[i%len(ends)], fmt.Sprint(i)
		errs[i] = s.Update(ctx, func(tx store.Tx) error { return tx.UpdateCommand(ctx, mine) })
	})
	won := ""
	for i, err := range errs {
		if err != nil {
			wantErr(t, err, store.ErrConflict)
			continue
		}
		if won != "" {
			t.Fatalf("both %s and %d won", won, i)
		}
		won = fmt.Sprint(i)
	}
	same(t, must(s.Command(ctx, c.ID))(t).FailureCause, won)
	for _, status := range append(ends, sandbox.CommandRunning) {
		c.Status = status
		wantErr(t, s.Update(ctx, func(tx store.Tx) error { return tx.UpdateCommand(ctx, c) }), store.ErrConflict)
	}
}

func testCommandRetention(t *testing.T, s store.Store) {
	ctx := t.Context()
	update(t, s, func(tx store.Tx) error {
		for i := range 5 {
			c := newCommand(i)
			if i < 4 {
				c.Status, c.FinishedAt = sandbox.CommandExited, start.Add(time.Duration(i)*time.Hour)
			}
			if err := tx.InsertCommand(ctx, c); err != nil {
				return err
			}
		}
		return nil
	})
	same(t, must(s.ExpiredCommandLogs(ctx, start.Add(2*time.Hour), 10))(t), []string{newCommand(0).ID, newCommand(1).ID})
	same(t, must(s.ExpiredCommandLogs(ctx, start.Add(2*time.Hour), 1))(t), []string{newCommand(0).ID})
	update(t, s, func(tx store.Tx) error { return tx.MarkCommandLogDropped(ctx, newCommand(0).ID) })
	same(t, must(s.ExpiredCommandLogs(ctx, start.Add(100*time.Hour), 10))(t),
		[]string{newCommand(1).ID, newCommand(2).ID, newCommand(3).ID})
	wantErr(t, s.Update(ctx, func(tx store.Tx) error { return tx.MarkCommandLogDropped(ctx, "cmd_none") }), store.ErrNotFound)
}

func testArtifacts(t *testing.T, s store.Store) {
	ctx := t.Context()
	newArtifact := func(i int) sandbox.Artifact {
		return sandbox.Artifact{
			ID: fmt.Sprintf("art_%026d", i), OrgID: org, ProjectID: "prj_a", SandboxID: "sbx_1", CommandID: "cmd_1",
			Name: "report.html", ObjectKey: "a/b", Size: 1 << 40, SHA256: strings.Repeat("a", 64), ContentType: "text/html",
			SourcePath: "/workspace/\xff", CreatedAt: start.Add(time.Duration(i) * time.Second),
			RetentionExpiresAt: start.Add(time.Duration(i) * time.Hour),
		}
	}
	var all []sandbox.Artifact
	for i := range 5 {
		a := newArtifact(i + 1)
		if i == 4 {
			a.RetentionExpiresAt = time.Time{}
		}
		all = append(all, a)
		update(t, s, func(tx store.Tx) error { return tx.InsertArtifact(ctx, a) })
	}
	same(t, must(s.Artifact(ctx, all[0].ID))(t), all[0])
	wantErr(t, s.Update(ctx, func(tx store.Tx) error { return tx.InsertArtifact(ctx, all[0]) }), store.ErrConflict)

	all[1].DeletedAt = start.Add(time.Minute)
	update(t, s, func(tx store.Tx) error { return tx.DeleteArtifact(ctx, all[1].ID, all[1].DeletedAt) })
	wantErr(t, s.Update(ctx, func(tx store.Tx) error {
		return tx.DeleteArtifact(ctx, all[1].ID, start.Add(time.Hour))
	}), store.ErrNotFound)
	same(t, must(s.Artifact(ctx, all[1].ID))(t), all[1])

	first := must(s.Artifacts(ctx, store.ArtifactFilter{SandboxID: "sbx_1", Page: store.Page{Limit: 2}}))(t)
	same(t, first, []sandbox.Artifact{all[4], all[3]})
	second := must(s.Artifacts(ctx, store.ArtifactFilter{SandboxID: "sbx_1", Page: store.Page{
		Limit: 5, AfterTime: all[3].CreatedAt, AfterID: all[3].ID,
	}}))(t)
	same(t, second, []sandbox.Artifact{all[2], all[0]})
	same(t, must(s.ExpiredArtifacts(ctx, start.Add(4*time.Hour), 10))(t), []sandbox.Artifact{all[0], all[2]})
	same(t, must(s.ExpiredArtifacts(ctx, start.Add(4*time.Hour), 1))(t), []sandbox.Artifact{all[0]})
}

func testUploads(t *testing.T, s store.Store) {
	ctx := t.Context()
	u := sandbox.Upload{
		ID: sandbox.NewID(sandbox.PrefixUpload), OrgID: org, ProjectID: "prj_a", SandboxID: "sbx_1", Path: "/workspace/x\xff",
		Size: -1, CreateParents: true, Overwrite: true, Status: sandbox.UploadPending,
		CreatedAt: start, ExpiresAt: start.Add(time.Minute),
	}
	_, err := s.Upload(ctx, u.ID)
	wantErr(t, err, store.ErrNotFound)
	update(t, s, func(tx store.Tx) error { return tx.InsertUpload(ctx, u) })
	same(t, must(s.Upload(ctx, u.ID))(t), u)
	wantErr(t, s.Update(ctx, func(tx store.Tx) error { return tx.InsertUpload(ctx, u) }), store.ErrConflict)
	u.Status, u.Size, u.SHA256 = sandbox.UploadFinalized, 7, strings.Repeat("b", 64)
	errs := make([]error, 8)
	race(len(errs), func(i int) {
		errs[i] = s.Update(ctx, func(tx store.Tx) error { return tx.UpdateUpload(ctx, u) })
	})
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		wantErr(t, err, store.ErrConflict)
	}
	same(t, won, 1)
	same(t, must(s.Upload(ctx, u.ID))(t), u)
}

func testUsage(t *testing.T, s store.Store) {
	ctx := t.Context()
	var all []sandbox.UsageEvent
	for i := range 20 {
		all = append(all, sandbox.UsageEvent{
			OrgID: org, ProjectID: []string{"prj_a", "prj_b"}[i%2], ResourceID: fmt.Sprintf("sbx_%d", i%4),
			Metric: []string{sandbox.MetricComputeUnitSeconds, sandbox.MetricSandboxCreates}[i/10],
			Amount: 0.5, PricingVersion: "v1", CreatedAt: start.Add(time.Duration(i) * time.Hour),
		})
	}
	update(t, s, func(tx store.Tx) error { return tx.InsertUsage(ctx, all...) })
	totals := func(projects []string, from, to int) map[string]float64 {
		return must(s.UsageTotals(ctx, org, projects, start.Add(time.Duration(from)*time.Hour), start.Add(time.Duration(to)*time.Hour)))(t)
	}
	const c, n = sandbox.MetricComputeUnitSeconds, sandbox.MetricSandboxCreates
	same(t, totals(nil, 0, 20), map[string]float64{c: 5, n: 5})
	same(t, totals([]string{"prj_a"}, 0, 20), map[string]float64{c: 2.5, n: 2.5})
	same(t, totals([]string{"prj_a", "prj_b", "prj_c"}, 0, 20), map[string]float64{c: 5, n: 5})
	same(t, totals([]string{}, 0, 20), map[string]float64{})
	same(t, totals(nil, 5, 10), map[string]float64{c: 2.5}) // the end is exclusive
	same(t, totals(nil, 30, 40), map[string]float64{})
	same(t, must(s.UsageOfResource(ctx, "sbx_1", c))(t), 1.5)
	same(t, must(s.UsageOfResource(ctx, "sbx_none", c))(t), 0.0)

	got := must(s.UsageEvents(ctx, org, []string{"prj_b"}, 3))(t)
	want := []sandbox.UsageEvent{all[19], all[17], all[15]}
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(sandbox.UsageEvent{}, "ID")); d != "" {
		t.Fatalf("differs (-want +got):\n%s", d)
	}
	ids := map[int64]bool{}
	for _, e := range must(s.UsageEvents(ctx, org, nil, 100))(t) {
		ids[e.ID] = true
	}
	same(t, len(ids), len(all))
}

// testPaging pages through records that share their times, while more are
// inserted: what was there at the start comes exactly once.
func testPaging(t *testing.T, s store.Store) {
	ctx := t.Context()
	insert := func(i int) {
		c := newCommand(i)
		c.CreatedAt = start.Add(time.Duration(i/7) * time.Millisecond)
		update(t, s, func(tx store.Tx) error { return tx.InsertCommand(ctx, c) })
	}
	const records = 50
	for i := range records {
		insert(i)
	}
	var got []string
	page := store.Page{Limit: 6}
	for n := 0; ; n++ {
		list := must(s.Commands(ctx, newCommand(0).SandboxID, page))(t)
		for _, c := range list {
			got = append(got, c.ID)
		}
		if len(list) < page.Limit {
			break
		}
		page.AfterTime, page.AfterID = list[len(list)-1].CreatedAt, list[len(list)-1].ID
		insert(records + n) // newer than everything
	}
	var want []string
	for i := records - 1; i >= 0; i-- {
		want = append(want, newCommand(i).ID)
	}
	same(t, got, want)
}

func newOperation(namespace string) store.Operation {
	now := time.Now().UTC().Truncate(time.Millisecond)
	return store.Operation{
		Namespace: namespace, Fingerprint: "print", OperationID: sandbox.NewSuffix(), Owner: "boot1",
		CreatedAt: now, ExpiresAt: now.Add(24 * time.Hour),
	}
}

func begin(t testing.TB, s store.Store, o store.Operation) (store.Operation, bool) {
	t.Helper()
	var (
		stored store.Operation
		fresh  bool
	)
	update(t, s, func(tx store.Tx) (err error) {
		stored, fresh, err = tx.BeginOperation(t.Context(), o)
		return err
	})
	return stored, fresh
}

func testOperationRace(t *testing.T, s store.Store) {
	ctx := t.Context()
	const racers = 16
	type outcome struct {
		stored store.Operation
		fresh  bool
		err    error
	}
	outcomes := make([]outcome, racers)
	race(racers, func(i int) {
		o := newOperation("space")
		outcomes[i].err = s.Update(ctx, func(tx store.Tx) (err error) {
			outcomes[i].stored, outcomes[i].fresh, err = tx.BeginOperation(ctx, o)
			return err
		})
	})
	fresh := 0
	for _, o := range outcomes {
		if o.err != nil {
			t.Fatal(o.err)
		}
		if o.fresh {
			fresh++
		}
		same(t, o.stored.OperationID, outcomes[0].stored.OperationID)
	}
	same(t, fresh, 1)
}

func testOperationLife(t *testing.T, s store.Store) {
	ctx := t.Context()
	_, err := s.Operation(ctx, "space")
	wantErr(t, err, store.ErrNotFound)
	o := newOperation("space")
	stored, fresh := begin(t, s, o)
	same(t, stored, o)
	same(t, fresh, true)
	same(t, must(s.Operation(ctx, "space"))(t), o)

	o.Done, o.Owner, o.Status, o.Body, o.Sealed = true, "", 201, []byte("{\x00}"), true
	o.ExpiresAt = o.ExpiresAt.Add(time.Hour)
	update(t, s, func(tx store.Tx) error { return tx.FinishOperation(ctx, o) })
	same(t, must(s.Operation(ctx, "space"))(t), o)
	stored, fresh = begin(t, s, newOperation("space"))
	same(t, stored, o)
	same(t, fresh, false)
	// A stored answer stays as it is.
	wantErr(t, s.Update(ctx, func(tx store.Tx) error { return tx.FinishOperation(ctx, o) }), store.ErrNotFound)
	wantErr(t, s.Update(ctx, func(tx store.Tx) error { return tx.ReleaseOperation(ctx, "space") }), store.ErrNotFound)

	dropped := newOperation("dropped")
	begin(t, s, dropped)
	update(t, s, func(tx store.Tx) error { return tx.DropOperation(ctx, "dropped") })
	_, err = s.Operation(ctx, "dropped")
	wantErr(t, err, store.ErrNotFound)
	_, fresh = begin(t, s, newOperation("dropped"))
	same(t, fresh, true)

	expired := newOperation("expired")
	expired.ExpiresAt = time.Now().Add(-time.Hour)
	begin(t, s, expired)
	_, err = s.Operation(ctx, "expired")
	wantErr(t, err, store.ErrNotFound)
	next := newOperation("expired")
	next.Fingerprint = "another"
	stored, fresh = begin(t, s, next)
	same(t, stored, next)
	same(t, fresh, true)

	for i := range 5 {
		e := newOperation(fmt.Sprint("prune", i))
		e.ExpiresAt = time.Now().Add(-time.Hour)
		begin(t, s, e)
	}
	for _, want := range []int{3, 2, 0} {
		update(t, s, func(tx store.Tx) error {
			n, err := tx.PruneOperations(ctx, time.Now(), 3)
			same(t, n, want)
			return err
		})
	}
	same(t, must(s.Operation(ctx, "space"))(t), o)
}

func testOperationTakeover(t *testing.T, s store.Store) {
	ctx := t.Context()
	first := newOperation("space")
	begin(t, s, first)

	// The same process: somebody else of it works on this.
	again := newOperation("space")
	stored, fresh := begin(t, s, again)
	same(t, stored, first)
	same(t, fresh, false)

	// Another process with another request may not have it.
	other := newOperation("space")
	other.Owner, other.Fingerprint = "boot2", "another"
	stored, fresh = begin(t, s, other)
	same(t, stored, first)
	same(t, fresh, false)

	// Another process with the same request goes on with the same operation id.
	other.Fingerprint = first.Fingerprint
	stored, fresh = begin(t, s, other)
	want := first
	want.Owner = "boot2"
	same(t, stored, want)
	same(t, fresh, true)
	same(t, must(s.Operation(ctx, "space"))(t), want)

	// Released, the same process may go on.
	update(t, s, func(tx store.Tx) error { return tx.ReleaseOperation(ctx, "space") })
	want.Owner = ""
	same(t, must(s.Operation(ctx, "space"))(t), want)
	stored, fresh = begin(t, s, other)
	want.Owner = "boot2"
	same(t, stored, want)
	same(t, fresh, true)
}

func newAudit(i int) sandbox.AuditEvent {
	return sandbox.AuditEvent{
		ID: fmt.Sprintf("aud_%026d", i), OrgID: org, ProjectID: []string{"prj_a", "prj_b", ""}[i%3],
		Actor:        sandbox.AuditActor{Kind: "api_key", ID: fmt.Sprintf("key_%d", i%2), IP: "127.0.0.1", UserAgent: "a\x00\xff"},
		Action:       []string{"sandbox.create", "sandbox.kill"}[i/2%2],
		ResourceType: "sandbox", ResourceID: fmt.Sprintf("sbx_%d", i%5), Outcome: sandbox.OutcomeSuccess,
		RequestID: "req_1", CreatedAt: start.Add(time.Duration(i)*time.Minute + 999*time.Microsecond),
		Details: map[string]any{"n": i, "big": int64(1)<<53 + 1, "nested": map[string]any{"é": []any{1.5, "x\u2028", nil}}},
	}
}

func testAuditFilters(t *testing.T, s store.Store) {
	ctx := t.Context()
	var events []sandbox.AuditEvent
	for i := range 30 {
		events = append(events, newAudit(i))
	}
	update(t, s, func(tx store.Tx) error { return tx.AppendAudit(ctx, events...) })
	for name, f := range map[string]store.AuditFilter{
		"all":      {},
		"projects": {ProjectIDs: []string{"prj_a"}},
		"two":      {ProjectIDs: []string{"prj_a", "prj_b"}},
		"none":     {ProjectIDs: []string{}},
		"action":   {Action: "sandbox.kill"},
		"actor":    {ActorID: "key_1"},
		"resource": {ResourceID: "sbx_3"},
		"since":    {Since: start.Add(10 * time.Minute)},
		"until":    {Until: start.Add(10 * time.Minute)},
		"several": {
			ProjectIDs: []string{"prj_a"}, Action: "sandbox.kill", ActorID: "key_1",
			Since: start.Add(time.Minute), Until: start.Add(20 * time.Minute),
		},
	} {
		var want []string
		for _, e := range slices.Backward(events) {
			at := e.CreatedAt.Truncate(time.Millisecond)
			if (f.ProjectIDs == nil || slices.Contains(f.ProjectIDs, e.ProjectID)) &&
				(f.Action == "" || f.Action == e.Action) && (f.ActorID == "" || f.ActorID == e.Actor.ID) &&
				(f.ResourceID == "" || f.ResourceID == e.ResourceID) &&
				!at.Before(f.Since) && (f.Until.IsZero() || at.Before(f.Until)) {
				want = append(want, e.ID)
			}
		}
		var got []string
		f.OrgID, f.Page = org, store.Page{Limit: 4}
		for {
			page := must(s.AuditEvents(ctx, f))(t)
			for _, e := range page {
				got = append(got, e.ID)
			}
			if len(page) < f.Limit {
				break
			}
			f.AfterTime, f.AfterID = page[len(page)-1].CreatedAt, page[len(page)-1].ID
		}
		if d := cmp.Diff(want, got, equateEmpty); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func testAuditChain(t *testing.T, s store.Store) {
	ctx := t.Context()
	same(t, must(audit.Verify(ctx, s, org))(t), audit.Result{OK: true})

	// Many writers, two chains: each is whole and in order.
	const writers, each = 8, 80
	errs := make([]error, writers)
	race(writers, func(w int) {
		for i := range each {
			e := newAudit(w*each + i)
			other := newAudit(10000 + w*each + i)
			other.OrgID = "org_another"
			err := s.Update(ctx, func(tx store.Tx) error { return tx.AppendAudit(ctx, e, other) })
			if err != nil {
				errs[w] = err
				return
			}
		}
	})
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{org, "org_another"} {
		var first, last sandbox.AuditEvent
		n := 0
		err := s.WalkAudit(ctx, id, func(e sandbox.AuditEvent) error {
			if n == 0 {
				first = e
			}
			n++
			last = e
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		same(t, first.PrevHash, strings.Repeat("0", 64))
		same(t, must(audit.Verify(ctx, s, id))(t), audit.Result{
			OK: true, Checked: writers * each, FirstID: first.ID, LastID: last.ID,
		})
	}
	wantErr(t, s.Update(ctx, func(tx store.Tx) error { return tx.AppendAudit(ctx, newAudit(0)) }), store.ErrConflict)

	// An error of the caller ends the walk.
	stop := errors.New("enough")
	wantErr(t, s.WalkAudit(ctx, org, func(sandbox.AuditEvent) error { return stop }), stop)
}

func testTransactions(t *testing.T, s store.Store) {
	ctx := t.Context()
	fail := errors.New("no")
	var kept store.Tx
	err := s.Update(ctx, func(tx store.Tx) error {
		kept = tx
		if err := tx.InsertProject(ctx, newProject(1)); err != nil {
			return err
		}
		// A conflict leaves the transaction usable.
		wantErr(t, tx.InsertProject(ctx, newProject(1)), store.ErrConflict)
		return fail
	})
	if err != fail { //nolint:errorlint // the contract says unchanged
		t.Fatalf("got %v", err)
	}
	_, err = s.Project(ctx, newProject(1).ID)
	wantErr(t, err, store.ErrNotFound)
	if err := kept.InsertProject(ctx, newProject(2)); err == nil {
		t.Fatal("a transaction works after its end")
	}

	func() {
		defer func() {
			if recover() == nil {
				t.Error("a panic was swallowed")
			}
		}()
		_ = s.Update(ctx, func(tx store.Tx) error {
			_ = tx.InsertProject(ctx, newProject(1))
			panic("no")
		})
	}()
	_, err = s.Project(ctx, newProject(1).ID)
	wantErr(t, err, store.ErrNotFound)

	canceled, cancel := context.WithCancel(ctx)
	err = s.Update(canceled, func(tx store.Tx) error {
		if err := tx.InsertProject(canceled, newProject(1)); err != nil {
			return err
		}
		cancel()
		return nil
	})
	wantErr(t, err, context.Canceled)
	_, err = s.Project(ctx, newProject(1).ID)
	wantErr(t, err, store.ErrNotFound)
	wantErr(t, s.Update(canceled, func(store.Tx) error { return nil }), context.Canceled)

	// The store works on after all of that.
	update(t, s, func(tx store.Tx) error { return tx.InsertProject(ctx, newProject(1)) })
	same(t, must(s.Project(ctx, newProject(1).ID))(t), newProject(1))
}

// testSerializable admits sandboxes up to a limit that each transaction counts
// for itself: under a weaker isolation more would get in.
func testSerializable(t *testing.T, s store.Store) {
	ctx := t.Context()
	const limit, racers = 5, 16
	full := errors.New("full")
	errs := make([]error, racers)
	race(racers, func(i int) {
		errs[i] = s.Update(ctx, func(tx store.Tx) error {
			n, err := tx.CountActiveSandboxes(ctx, org, nil)
			if err != nil {
				return err
			}
			if n >= limit {
				return full
			}
			return tx.InsertSandbox(ctx, newSandbox(i))
		})
	})
	for _, err := range errs {
		if err != nil {
			wantErr(t, err, full)
		}
	}
	same(t, must(s.CountActiveSandboxes(ctx, org, nil))(t), limit)
}

// testForeignText asks with texts that no record can hold.
func testForeignText(t *testing.T, s store.Store) {
	ctx := t.Context()
	for _, bad := range []string{"\x00", "sbx_\xff", "'; DROP TABLE sandboxes; --"} {
		_, err := s.Sandbox(ctx, bad)
		wantErr(t, err, store.ErrNotFound)
		_, err = s.ProjectByName(ctx, org, bad)
		wantErr(t, err, store.ErrNotFound)
		same(t, must(s.AuditEvents(ctx, store.AuditFilter{OrgID: org, Action: bad, Page: store.Page{Limit: 1}}))(t), []sandbox.AuditEvent{})
		same(t, must(s.Sandboxes(ctx, store.SandboxFilter{
			OrgID: org, Metadata: map[string]string{bad: bad}, Page: store.Page{Limit: 1, AfterTime: start, AfterID: bad},
		}))(t), []sandbox.Sandbox{})
		wantErr(t, s.Update(ctx, func(tx store.Tx) error { return tx.RevokeKey(ctx, bad, start) }), store.ErrNotFound)
	}
}
