// Package audit links audit events into a chain that shows every later change:
// each event carries the hash of the one before it. It knows the event as the
// wire shows it, because that is what is hashed, so that anybody who holds the
// events can check them. It does not know how they are kept.
package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"crownest.dev/crownest/internal/canonicaljson"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// FirstPrevHash stands before the first event of a chain.
var FirstPrevHash = strings.Repeat("0", 2*sha256.Size)

// Event is an audit event on the wire.
type Event struct {
	ID        string         `json:"id"`
	OrgID     string         `json:"orgId"`
	ProjectID string         `json:"projectId,omitempty"`
	Actor     Actor          `json:"actor"`
	Action    string         `json:"action"`
	Resource  Resource       `json:"resource"`
	Outcome   string         `json:"outcome"`
	RequestID string         `json:"requestId,omitempty"`
	CreatedAt string         `json:"createdAt"`
	Details   map[string]any `json:"details"`
	PrevHash  string         `json:"prevHash"`
	Hash      string         `json:"hash,omitempty"` // absent while it is computed
}

// Actor says who did it.
type Actor struct {
	Kind      string `json:"kind"`
	ID        string `json:"id"`
	IP        string `json:"ip,omitempty"`
	UserAgent string `json:"userAgent,omitempty"`
}

// Resource says to what it was done.
type Resource struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

// Wire returns the event as clients see it.
func Wire(e sandbox.AuditEvent) Event {
	details := e.Details
	if details == nil {
		details = map[string]any{}
	}
	return Event{
		ID:        e.ID,
		OrgID:     e.OrgID,
		ProjectID: e.ProjectID,
		Actor:     Actor{Kind: e.Actor.Kind, ID: e.Actor.ID, IP: e.Actor.IP, UserAgent: e.Actor.UserAgent},
		Action:    e.Action,
		Resource:  Resource{Type: e.ResourceType, ID: e.ResourceID},
		Outcome:   e.Outcome,
		RequestID: e.RequestID,
		CreatedAt: e.CreatedAt.UTC().Truncate(time.Millisecond).Format("2006-01-02T15:04:05.000Z"),
		Details:   details,
		PrevHash:  e.PrevHash,
		Hash:      e.Hash,
	}
}

// Hash returns the lower-case hex SHA-256 of the event's canonical JSON without
// its hash.
func Hash(e sandbox.AuditEvent) (string, error) {
	w := Wire(e)
	w.Hash = ""
	text, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("encoding an audit event: %w", err)
	}
	canonical, err := canonicaljson.Transform(text)
	if err != nil {
		return "", fmt.Errorf("encoding an audit event: %w", err)
	}
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:]), nil
}

// Link completes e as the event that follows the one with the hash prev.
func Link(e *sandbox.AuditEvent, prev string) error {
	e.PrevHash = prev
	hash, err := Hash(*e)
	if err != nil {
		return err
	}
	e.Hash = hash
	return nil
}

// Result is what a check of a chain found.
type Result struct {
	OK              bool
	Checked         int
	FirstID, LastID string
	BrokenAtID      string // the first event that does not fit
}

// errBroken ends the walk at the first event that does not fit.
var errBroken = errors.New("audit chain is broken")

// Walker is the part of a store that Verify needs.
type Walker interface {
	WalkAudit(ctx context.Context, orgID string, fn func(sandbox.AuditEvent) error) error
}

// Verify walks the chain of an organisation and recomputes every hash. If events
// are missing at its end, BrokenAtID is the last one that is left.
func Verify(ctx context.Context, w Walker, orgID string) (Result, error) {
	var r Result
	prev := FirstPrevHash
	err := w.WalkAudit(ctx, orgID, func(e sandbox.AuditEvent) error {
		hash, err := Hash(e)
		if err != nil || e.PrevHash != prev || e.Hash != hash {
			r.BrokenAtID = e.ID
			return errBroken
		}
		if r.Checked == 0 {
			r.FirstID = e.ID
		}
		r.Checked++
		r.LastID, prev = e.ID, e.Hash
		return nil
	})
	switch {
	case err == nil:
		r.OK = true
	case errors.Is(err, errBroken):
	case errors.Is(err, store.ErrAuditTruncated):
		r.BrokenAtID = r.LastID
	default:
		return Result{}, fmt.Errorf("checking the audit chain: %w", err)
	}
	return r, nil
}
