package sqldb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"crownest.dev/crownest/internal/audit"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

const (
	auditColumns = `id, org_id, project_id, actor_kind, actor_id, actor_ip, actor_agent, action, resource_type,
	resource_id, outcome, request_id, created_at, details, prev_hash, hash`
	// auditBatch is how many events a walk holds in memory.
	auditBatch = 500
)

func auditFields(row scanner, e *sandbox.AuditEvent, more ...any) error {
	var created int64
	err := row.Scan(append([]any{
		&e.ID, &e.OrgID, &e.ProjectID, &e.Actor.Kind, &e.Actor.ID, &e.Actor.IP, &e.Actor.UserAgent, &e.Action,
		&e.ResourceType, &e.ResourceID, &e.Outcome, &e.RequestID, &created, jsonOf{&e.Details}, &e.PrevHash, &e.Hash,
	}, more...)...)
	e.CreatedAt = timeOf(created)
	return err
}

func scanAudit(row scanner, e *sandbox.AuditEvent) error { return auditFields(row, e) }

func (r queries) AuditEvents(ctx context.Context, f store.AuditFilter) ([]sandbox.AuditEvent, error) {
	ms, id := after(f.Page)
	if until := millis(f.Until); until > 0 && until <= ms {
		ms, id = until, "" // below every event of that time
	}
	args := arguments{f.OrgID, ms, id, f.Limit}
	text := `SELECT ` + auditColumns + ` FROM audit_events WHERE org_id = $1 AND (created_at, id) < ($2, $3)` +
		ofProjects(&args, `project_id`, f.ProjectIDs)
	for _, c := range []struct{ column, value string }{
		{`resource_id`, f.ResourceID}, {`actor_id`, f.ActorID}, {`action`, f.Action},
	} {
		if c.value != "" {
			text += ` AND ` + c.column + ` = ` + args.add(c.value)
		}
	}
	if !f.Since.IsZero() {
		text += ` AND created_at >= ` + args.add(millis(f.Since))
	}
	return many(ctx, r.q, "audit events", scanAudit, text+` ORDER BY created_at DESC, id DESC LIMIT $4`, args...)
}

// link is an event with its place in the chain.
type link struct {
	event sandbox.AuditEvent
	seq   int64
}

// head is the last link of a chain, as the chain itself remembers it.
type head struct {
	seq  int64
	hash string
}

func scanHead(row scanner, h *head) error { return row.Scan(&h.seq, &h.hash) }

func (r queries) WalkAudit(ctx context.Context, orgID string, fn func(sandbox.AuditEvent) error) error {
	last, err := one(ctx, r.q, "the audit chain", scanHead, `SELECT seq, hash FROM audit_heads WHERE org_id = $1`, orgID)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	var end head
	for {
		links, err := many(ctx, r.q, "audit events", func(row scanner, l *link) error {
			return auditFields(row, &l.event, &l.seq)
		}, `SELECT `+auditColumns+`, seq FROM audit_events WHERE org_id = $1 AND seq > $2 ORDER BY seq LIMIT $3`,
			orgID, end.seq, auditBatch)
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.seq == last.seq && l.event.Hash != last.hash {
				return store.ErrAuditTruncated
			}
			if err := fn(l.event); err != nil {
				return err
			}
			end = head{l.seq, l.event.Hash}
		}
		if len(links) < auditBatch {
			break
		}
	}
	if end.seq < last.seq {
		return store.ErrAuditTruncated
	}
	return nil
}

func (t *tx) AppendAudit(ctx context.Context, events ...sandbox.AuditEvent) error {
	for _, e := range events {
		if err := t.appendAudit(ctx, e); err != nil {
			return fmt.Errorf("appending %s to the audit chain: %w", e.Action, err)
		}
	}
	return nil
}

func (t *tx) appendAudit(ctx context.Context, e sandbox.AuditEvent) error {
	// Taking the head first lets only one transaction at a time go on from it.
	last, err := one(ctx, t.q, "the audit chain", scanHead, `INSERT INTO audit_heads (org_id, seq, hash)
		VALUES ($1, 1, $2) ON CONFLICT (org_id) DO UPDATE SET seq = audit_heads.seq + 1 RETURNING seq, hash`,
		e.OrgID, audit.FirstPrevHash)
	if err != nil {
		return err
	}
	// What is hashed must be what is read back.
	for _, s := range []*string{
		&e.ProjectID, &e.Actor.ID, &e.Actor.IP, &e.Actor.UserAgent, &e.ResourceType, &e.ResourceID, &e.RequestID,
	} {
		*s = clean(*s)
	}
	e.CreatedAt = e.CreatedAt.UTC().Truncate(time.Millisecond)
	if e.Details == nil {
		e.Details = map[string]any{}
	}
	details, err := json.Marshal(e.Details)
	if err != nil {
		return fmt.Errorf("encoding details: %w", err)
	}
	if err := audit.Link(&e, last.hash); err != nil {
		return err
	}
	if err := insert(ctx, t.q, "an audit event", `INSERT INTO audit_events (`+auditColumns+`, seq)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)`,
		e.ID, e.OrgID, e.ProjectID, e.Actor.Kind, e.Actor.ID, e.Actor.IP, e.Actor.UserAgent, e.Action,
		e.ResourceType, e.ResourceID, e.Outcome, e.RequestID, millis(e.CreatedAt), string(details),
		e.PrevHash, e.Hash, last.seq); err != nil {
		return err
	}
	return mustAffect(ctx, t.q, "the audit chain", `UPDATE audit_heads SET hash = $2 WHERE org_id = $1`, e.OrgID, e.Hash)
}
