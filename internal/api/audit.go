package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"crownest.dev/crownest/internal/audit"
	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

type wireAuditActor struct {
	Kind      string `json:"kind" enum:"human,api_key,agent_credential,system"`
	ID        string `json:"id"`
	IP        string `json:"ip,omitempty"`
	UserAgent string `json:"userAgent,omitempty"`
}

type wireAuditResource struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

type wireAuditEvent struct {
	ID        string            `json:"id"`
	OrgID     string            `json:"orgId"`
	ProjectID string            `json:"projectId,omitempty"`
	Actor     wireAuditActor    `json:"actor"`
	Action    string            `json:"action"`
	Resource  wireAuditResource `json:"resource"`
	Outcome   string            `json:"outcome" enum:"success,denied,error"`
	RequestID string            `json:"requestId,omitempty"`
	CreatedAt string            `json:"createdAt" format:"date-time"`
	Details   map[string]any    `json:"details" doc:"Depends on the action."`
	PrevHash  string            `json:"prevHash"`
	Hash      string            `json:"hash" doc:"SHA-256 of the canonical JSON (RFC 8785) of the event without hash."`
}

// toAuditEvent keeps the shape that was hashed.
func toAuditEvent(e sandbox.AuditEvent) wireAuditEvent {
	w := audit.Wire(e)
	return wireAuditEvent{
		ID: w.ID, OrgID: w.OrgID, ProjectID: w.ProjectID, Actor: wireAuditActor(w.Actor), Action: w.Action,
		Resource: wireAuditResource(w.Resource), Outcome: w.Outcome, RequestID: w.RequestID,
		CreatedAt: w.CreatedAt, Details: w.Details, PrevHash: w.PrevHash, Hash: w.Hash,
	}
}

type wireAuditCheck struct {
	OK         bool   `json:"ok"`
	Checked    int64  `json:"checked"`
	FirstID    string `json:"firstId,omitempty"`
	LastID     string `json:"lastId,omitempty"`
	BrokenAtID string `json:"brokenAtId,omitempty"`
}

// timeParam describes a query parameter that holds a time.
func timeParam(name, doc string) *param {
	return &param{
		name: name, in: "query", doc: doc,
		schema: huma.Schema{Type: huma.TypeString, Format: "date-time"},
		check: func(v string) error {
			if _, err := time.Parse(time.RFC3339, v); err != nil {
				return invalid(name, "%s must be a time like 2026-01-02T15:04:05.000Z.", name)
			}
			return nil
		},
	}
}

// time returns the value of a timeParam, which has been checked.
func (rq *request) time(name string) time.Time {
	t, err := time.Parse(time.RFC3339, rq.query.Get(name))
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

func textParam(name, doc string) *param {
	return &param{name: name, in: "query", doc: doc, schema: stringSchema()}
}

func (s *Server) addAudit() {
	const collection = "/v1/audit-events"
	listing(s, operation{
		id: "listAuditEvents", method: http.MethodGet, path: collection, tag: "Audit",
		summary: "List audit events, newest first", scope: sandbox.ScopeAuditRead,
		params: []*param{
			textParam("action", "Only this action, for instance sandbox.create."),
			textParam("actorId", "Only what this actor did."),
			textParam("resourceId", "Only what was done to this resource."),
			qProjectID,
			timeParam("since", "Only events at or after this time."),
			timeParam("until", "Only events before this time."),
		},
	}, sandbox.PrefixAudit,
		func(ctx context.Context, rq *request, p store.Page) (control.Page[sandbox.AuditEvent], error) {
			return s.control.AuditEvents(ctx, rq.call, store.AuditFilter{
				OrgID: rq.principal().OrgID, Action: rq.query.Get("action"), ActorID: rq.query.Get("actorId"),
				ResourceID: rq.query.Get("resourceId"), Since: rq.time("since"), Until: rq.time("until"), Page: p,
			}, rq.query.Get("projectId"))
		}, toAuditEvent, func(e sandbox.AuditEvent) (time.Time, string) { return e.CreatedAt, e.ID })

	query(s, operation{
		id: "verifyAuditEvents", method: http.MethodGet, path: collection + "/verify", tag: "Audit",
		summary: "Check the audit chain of the organisation", scope: sandbox.ScopeAuditRead,
	}, func(ctx context.Context, rq *request, _ *noBody) (wireAuditCheck, error) {
		c, err := s.control.VerifyAudit(ctx, rq.call)
		if err != nil {
			return wireAuditCheck{}, err
		}
		return wireAuditCheck{c.OK, int64(c.Checked), c.FirstID, c.LastID, c.BrokenAtID}, nil
	})
}
