package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// EnsureOrg returns the organisation of this server and its default project, and
// makes both at the first start. Processes may call it at the same time.
func EnsureOrg(ctx context.Context, s store.Store) (store.Org, sandbox.Project, error) {
	org, project, err := findOrg(ctx, s)
	if err == nil || !errors.Is(err, store.ErrNotFound) {
		return org, project, err
	}
	err = s.Update(ctx, func(tx store.Tx) error {
		org, project, err = findOrg(ctx, tx)
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		now := time.Now()
		if org.ID == "" {
			org = store.Org{
				ID:             sandbox.NewID(sandbox.PrefixOrg),
				Name:           "default",
				OperatorUserID: sandbox.NewID(sandbox.PrefixUser),
				CreatedAt:      now,
			}
			if err := tx.InsertOrg(ctx, org); err != nil {
				return err
			}
		}
		project = sandbox.Project{
			ID:        sandbox.NewID(sandbox.PrefixProject),
			OrgID:     org.ID,
			Name:      sandbox.DefaultProjectName,
			CreatedAt: now,
		}
		return tx.InsertProject(ctx, project)
	})
	if err != nil {
		return store.Org{}, sandbox.Project{}, fmt.Errorf("making the organisation: %w", err)
	}
	return findOrg(ctx, s) // with the precision the store keeps
}

func findOrg(ctx context.Context, r store.Reader) (org store.Org, project sandbox.Project, err error) {
	if org, err = r.Org(ctx); err != nil {
		return store.Org{}, sandbox.Project{}, err
	}
	project, err = r.ProjectByName(ctx, org.ID, sandbox.DefaultProjectName)
	return org, project, err
}

// maxKeyName bounds the name of a key, in characters.
const maxKeyName = 128

// KeyParams says what key to make.
type KeyParams struct {
	OrgID           string
	Name            string
	Scopes          []string // at least one
	ProjectIDs      []string // empty = all projects of the organisation
	CreatedByUserID string
	Actor           sandbox.AuditActor // zero = the operator who made it, on the server machine
	RequestID       string
}

// CreateKey makes a key and records that in the audit trail. The secret is
// returned here and nowhere else.
func CreateKey(ctx context.Context, s store.Store, p KeyParams) (secret string, key sandbox.Key, err error) {
	if n := utf8.RuneCountInString(p.Name); n < 1 || n > maxKeyName || !utf8.ValidString(p.Name) {
		return "", key, sandbox.NewError(sandbox.CodeInvalidRequest, "name must have 1 to %d characters", maxKeyName)
	}
	if len(p.Scopes) == 0 {
		return "", key, sandbox.NewError(sandbox.CodeInvalidRequest, "at least one scope is required")
	}
	for _, scope := range p.Scopes {
		if !sandbox.ValidScope(scope) {
			return "", key, sandbox.NewError(sandbox.CodeInvalidRequest, "unknown scope %q", scope)
		}
	}
	actor := p.Actor
	if actor.Kind == "" {
		actor = sandbox.AuditActor{Kind: string(KindHuman), ID: p.CreatedByUserID}
	}
	secret = GenerateKey()
	key = sandbox.Key{
		ID:              sandbox.NewID(sandbox.PrefixKey),
		OrgID:           p.OrgID,
		Name:            p.Name,
		Prefix:          DisplayPrefix(secret),
		Last4:           Last4(secret),
		Hash:            Hash(secret),
		ProjectIDs:      unique(p.ProjectIDs),
		Scopes:          unique(p.Scopes),
		CreatedByUserID: p.CreatedByUserID,
		CreatedAt:       time.Now().UTC().Truncate(time.Millisecond),
	}
	err = s.Update(ctx, func(tx store.Tx) error {
		for _, id := range key.ProjectIDs {
			project, err := tx.Project(ctx, id)
			if errors.Is(err, store.ErrNotFound) || err == nil && project.OrgID != p.OrgID {
				return sandbox.NewError(sandbox.CodeNotFound, "project %q not found", id)
			}
			if err != nil {
				return err
			}
		}
		if err := tx.InsertKey(ctx, key); err != nil {
			return err
		}
		return tx.AppendAudit(ctx, sandbox.AuditEvent{
			ID:           sandbox.NewID(sandbox.PrefixAudit),
			OrgID:        key.OrgID,
			Actor:        actor,
			Action:       "api_key.create",
			ResourceType: "api_key",
			ResourceID:   key.ID,
			Outcome:      sandbox.OutcomeSuccess,
			RequestID:    p.RequestID,
			CreatedAt:    key.CreatedAt,
			Details:      map[string]any{"name": key.Name, "scopes": key.Scopes, "projectIds": key.ProjectIDs},
		})
	})
	if err != nil {
		return "", sandbox.Key{}, fmt.Errorf("making a key: %w", err)
	}
	return secret, key, nil
}

// RevokeKey ends a key from the server machine and records that in the audit
// trail. A running server notices within a second. Revoking again changes nothing.
func RevokeKey(ctx context.Context, s store.Store, org store.Org, id string) (sandbox.Key, error) {
	at := time.Now().UTC().Truncate(time.Millisecond)
	err := s.Update(ctx, func(tx store.Tx) error {
		key, err := tx.Key(ctx, id)
		if errors.Is(err, store.ErrNotFound) || err == nil && key.OrgID != org.ID {
			return sandbox.NewError(sandbox.CodeNotFound, "there is no key %q", id)
		}
		if err != nil || !key.RevokedAt.IsZero() {
			return err
		}
		if err := tx.RevokeKey(ctx, id, at); err != nil {
			return err
		}
		return tx.AppendAudit(ctx, sandbox.AuditEvent{
			ID:           sandbox.NewID(sandbox.PrefixAudit),
			OrgID:        org.ID,
			Actor:        sandbox.AuditActor{Kind: string(KindHuman), ID: org.OperatorUserID},
			Action:       "api_key.revoke",
			ResourceType: "api_key",
			ResourceID:   id,
			Outcome:      sandbox.OutcomeSuccess,
			CreatedAt:    at,
			Details:      map[string]any{},
		})
	})
	if err != nil {
		return sandbox.Key{}, fmt.Errorf("revoking a key: %w", err)
	}
	return s.Key(ctx, id)
}

// unique returns the values of list once each, in their first order; never nil.
func unique(list []string) []string {
	out := make([]string, 0, len(list))
	for _, v := range list {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}
