package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"crownest.dev/crownest/internal/audit"
	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// ActorID is who the audit log says it was.
func (c Call) ActorID() string { return c.actor().ID }

// actor is the caller, or the server itself for the zero Call.
func (c Call) actor() sandbox.AuditActor {
	if c.OrgID == "" {
		return sandbox.AuditActor{Kind: string(auth.KindSystem), ID: "system"}
	}
	return c.Actor(c.IP, c.UserAgent)
}

// auditEvent describes something that the caller did. The store completes the chain.
func (s *Service) auditEvent(c Call, action, resourceType, resourceID, projectID string, details map[string]any) sandbox.AuditEvent {
	if details == nil {
		details = map[string]any{}
	}
	return sandbox.AuditEvent{
		ID: sandbox.NewID(sandbox.PrefixAudit), OrgID: c.OrgID, ProjectID: projectID, Actor: c.actor(),
		Action: action, ResourceType: resourceType, ResourceID: resourceID,
		Outcome: sandbox.OutcomeSuccess, RequestID: c.RequestID, CreatedAt: now(), Details: details,
	}
}

// AuditEvents lists audit events that the caller may see.
func (s *Service) AuditEvents(ctx context.Context, c Call, f store.AuditFilter, projectID string) (Page[sandbox.AuditEvent], error) {
	projects, err := s.projectFilter(c, projectID)
	if err != nil {
		return Page[sandbox.AuditEvent]{}, err
	}
	f.OrgID, f.ProjectIDs = c.OrgID, projects
	page, err := paged(f.Page, func(p store.Page) ([]sandbox.AuditEvent, error) {
		f.Page = p
		return s.store.AuditEvents(ctx, f)
	})
	if err != nil {
		return page, fmt.Errorf("listing audit events: %w", err)
	}
	return page, nil
}

// VerifyAudit walks the organisation's chain.
func (s *Service) VerifyAudit(ctx context.Context, c Call) (AuditCheck, error) {
	if len(c.ProjectIDs) > 0 {
		return AuditCheck{}, sandbox.NewError(sandbox.CodeForbidden, "A key that is restricted to projects cannot verify the organisation's audit chain.")
	}
	r, err := audit.Verify(ctx, s.store, c.OrgID)
	if err != nil {
		return AuditCheck{}, fmt.Errorf("verifying the audit chain: %w", err)
	}
	return AuditCheck{OK: r.OK, Checked: int64(r.Checked), FirstID: r.FirstID, LastID: r.LastID, BrokenAtID: r.BrokenAtID}, nil
}

// deniedSampler lets one refusal per credential and code through each minute, so
// that a hostile client cannot fill the audit log.
type deniedSampler struct {
	mu   sync.Mutex
	seen map[string]time.Time
}

const (
	deniedEvery   = time.Minute
	deniedTracked = 10_000
)

func (d *deniedSampler) take(key string, t time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last, ok := d.seen[key]; ok && t.Sub(last) < deniedEvery {
		return false
	}
	if d.seen == nil || len(d.seen) >= deniedTracked {
		d.seen = map[string]time.Time{}
	}
	d.seen[key] = t
	return true
}

// Denied records a refused request, at most one per credential and code a minute.
func (s *Service) Denied(ctx context.Context, c Call, route string, cause error) {
	var e *sandbox.Error
	if c.OrgID == "" || !errors.As(cause, &e) || !s.denied.take(c.ActorID()+" "+string(e.Code), time.Now()) {
		return
	}
	event := s.auditEvent(c, "request.denied", "route", route, "", map[string]any{"code": string(e.Code)})
	event.Outcome = sandbox.OutcomeDenied
	if err := s.store.Update(ctx, func(tx store.Tx) error { return tx.AppendAudit(ctx, event) }); err != nil {
		s.log.Error("recording a denied request failed", "error", err)
	}
}
