package auth

import (
	"slices"

	"crownest.dev/crownest/internal/sandbox"
)

// Kind says what sort of actor a principal is, in the words of the audit trail.
type Kind string

// The kinds of contract section 10.4.
const (
	KindHuman  Kind = "human"
	KindAPIKey Kind = "api_key"
	KindAgent  Kind = "agent_credential"
	KindSystem Kind = "system"
)

// Principal is who asks, and what they may do.
type Principal struct {
	OrgID      string
	KeyID      string // the key that was presented; empty for other kinds
	UserID     string // the person, or the one who made the key
	Kind       Kind
	ProjectIDs []string // empty = all projects of the organisation
	Scopes     []string
}

// Has reports whether the principal holds a scope.
func (p Principal) Has(scope string) bool { return slices.Contains(p.Scopes, scope) }

// Restricted reports whether the principal is held to some projects.
func (p Principal) Restricted() bool { return len(p.ProjectIDs) > 0 }

// CanSeeProject reports whether a project of the principal's own organisation is
// visible to it.
func (p Principal) CanSeeProject(id string) bool {
	return !p.Restricted() || slices.Contains(p.ProjectIDs, id)
}

// VisibleProjects returns the projects to filter a list by, in the form the store
// takes it: nil = all.
func (p Principal) VisibleProjects() []string {
	if !p.Restricted() {
		return nil
	}
	return p.ProjectIDs
}

// Actor returns the principal as the audit trail names it.
func (p Principal) Actor(ip, userAgent string) sandbox.AuditActor {
	id := p.KeyID
	if id == "" {
		id = p.UserID
	}
	return sandbox.AuditActor{Kind: string(p.Kind), ID: id, IP: ip, UserAgent: userAgent}
}

func principalOf(k sandbox.Key) Principal {
	return Principal{
		OrgID:      k.OrgID,
		KeyID:      k.ID,
		UserID:     k.CreatedByUserID,
		Kind:       KindAPIKey,
		ProjectIDs: slices.Clone(k.ProjectIDs),
		Scopes:     slices.Clone(k.Scopes),
	}
}
