package sqldb

import (
	"context"
	"log/slog"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// planner asks the engine how it would run each statement.
type planner struct {
	engine
	t     *testing.T
	plans []string
}

func (p *planner) query(ctx context.Context, text string, args ...any) (rows, error) {
	steps, err := many(ctx, p.engine, "a plan", func(row scanner, detail *string) error {
		var id, parent, unused int
		return row.Scan(&id, &parent, &unused, detail)
	}, "EXPLAIN QUERY PLAN "+text, args...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.plans = append(p.plans, strings.Join(steps, "; "))
	return p.engine.query(ctx, text, args...)
}

var (
	walksTable = regexp.MustCompile(`SCAN \w+( USING (COVERING )?INDEX (\w+))?`)
	sorts      = "USE TEMP B-TREE FOR ORDER BY"
)

// TestPlans holds every question that clients and timers ask to an index, in the
// order of the answer: a store of millions of records answers like a small one.
func TestPlans(t *testing.T) {
	db, err := Open(t.Context(), filepath.Join(t.TempDir(), "store.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, now := t.Context(), time.Now()
	page := store.Page{Limit: 10, AfterTime: now, AfterID: "x"}
	one := []string{"prj_a"}
	pairs := map[string]string{"a": "1", "b": "2"}
	for name, c := range map[string]struct {
		ask  func(q queries) error
		uses string // part of the plan
	}{
		"key by hash": {func(q queries) error { _, err := q.KeyByHash(ctx, "x"); return ignoreNotFound(err) }, "hash=?"},
		"keys":        {func(q queries) error { _, err := q.Keys(ctx, "x", page); return err }, "api_keys_newest"},
		"projects":    {func(q queries) error { _, err := q.Projects(ctx, "x", nil, page); return err }, "projects_newest"},
		"sandbox":     {func(q queries) error { _, err := q.Sandbox(ctx, "x"); return ignoreNotFound(err) }, "id=?"},
		"sandboxes": {func(q queries) error {
			_, err := q.Sandboxes(ctx, store.SandboxFilter{OrgID: "x", Page: page})
			return err
		}, "sandboxes_active"},
		"sandboxes by metadata": {func(q queries) error {
			_, err := q.Sandboxes(ctx, store.SandboxFilter{OrgID: "x", Metadata: pairs, Page: page})
			return err
		}, "sandboxes_active"},
		"all sandboxes": {func(q queries) error {
			_, err := q.Sandboxes(ctx, store.SandboxFilter{OrgID: "x", Historical: true, Page: page})
			return err
		}, "sandboxes_newest"},
		"all sandboxes of a project": {func(q queries) error {
			_, err := q.Sandboxes(ctx, store.SandboxFilter{OrgID: "x", ProjectIDs: one, Historical: true, Page: page})
			return err
		}, "sandboxes_project"},
		"all sandboxes by metadata": {func(q queries) error {
			_, err := q.Sandboxes(ctx, store.SandboxFilter{OrgID: "x", ProjectIDs: one, Historical: true, Metadata: pairs, Page: page})
			return err
		}, "SEARCH m USING"},
		"active sandboxes": {func(q queries) error { _, err := q.ActiveSandboxes(ctx); return err }, "sandboxes_active"},
		"count":            {func(q queries) error { _, err := q.CountActiveSandboxes(ctx, "x", nil); return err }, "COVERING INDEX sandboxes_active"},
		"commands":         {func(q queries) error { _, err := q.Commands(ctx, "x", page); return err }, "commands_newest"},
		"active commands":  {func(q queries) error { _, err := q.ActiveCommands(ctx, "x"); return err }, "commands_active"},
		"command totals":   {func(q queries) error { _, err := q.CommandTotals(ctx, "x"); return err }, "COVERING INDEX commands_newest"},
		"expired logs":     {func(q queries) error { _, err := q.ExpiredCommandLogs(ctx, now, 10); return err }, "commands_retained"},
		"artifacts": {func(q queries) error {
			_, err := q.Artifacts(ctx, store.ArtifactFilter{SandboxID: "x", Page: page})
			return err
		}, "artifacts_newest"},
		"expired artifacts": {func(q queries) error { _, err := q.ExpiredArtifacts(ctx, now, 10); return err }, "artifacts_retained"},
		"usage totals":      {func(q queries) error { _, err := q.UsageTotals(ctx, "x", nil, now, now); return err }, "COVERING INDEX usage_events_period"},
		"usage events":      {func(q queries) error { _, err := q.UsageEvents(ctx, "x", nil, 10); return err }, "usage_events_period"},
		"usage of a resource": {func(q queries) error {
			_, err := q.UsageOfResource(ctx, "x", sandbox.MetricComputeUnitSeconds)
			return err
		}, "COVERING INDEX usage_events_resource"},
		"audit": {func(q queries) error {
			_, err := q.AuditEvents(ctx, store.AuditFilter{OrgID: "x", Page: page})
			return err
		}, "audit_events_newest"},
		"audit of a resource": {func(q queries) error {
			_, err := q.AuditEvents(ctx, store.AuditFilter{OrgID: "x", ResourceID: "x", Page: page})
			return err
		}, "audit_events_resource"},
		"audit of an actor": {func(q queries) error {
			_, err := q.AuditEvents(ctx, store.AuditFilter{OrgID: "x", ActorID: "x", Since: now, Page: page})
			return err
		}, "audit_events_actor"},
		"audit of an action": {func(q queries) error {
			_, err := q.AuditEvents(ctx, store.AuditFilter{OrgID: "x", Action: "x", Until: now, Page: page})
			return err
		}, "audit_events_action"},
		"walk": {func(q queries) error {
			return q.WalkAudit(ctx, "x", func(sandbox.AuditEvent) error { return nil })
		}, "seq>?"},
		"operation": {func(q queries) error { _, err := q.Operation(ctx, "x"); return ignoreNotFound(err) }, "namespace=?"},
	} {
		p := &planner{engine: db.engine, t: t}
		if err := c.ask(queries{q: p}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		plan := strings.Join(p.plans, "; ")
		if !strings.Contains(plan, c.uses) {
			t.Errorf("%s: the plan does not use %s: %s", name, c.uses, plan)
		}
		// The partial index holds active sandboxes only, and all of them are asked for.
		if m := walksTable.FindStringSubmatch(plan); m != nil && m[3] != "sandboxes_active" {
			t.Errorf("%s: the plan reads everything: %s", name, plan)
		}
		if strings.Contains(plan, sorts) && name != "active sandboxes" && name != "active commands" {
			t.Errorf("%s: the plan sorts: %s", name, plan)
		}
	}
}

func ignoreNotFound(err error) error {
	if err != nil && strings.Contains(err.Error(), store.ErrNotFound.Error()) {
		return nil
	}
	return err
}
