package crownest

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// ProjectsService makes and lists projects.
type ProjectsService struct{ c *Client }

// CreateProjectParams names a new project.
type CreateProjectParams struct {
	Name           string `json:"name"`
	IdempotencyKey string `json:"-"`
}

// Create makes a project.
func (s *ProjectsService) Create(ctx context.Context, p CreateProjectParams) (*Project, error) {
	project := new(Project)
	rq := call{method: http.MethodPost, path: "/v1/projects", body: p, key: p.IdempotencyKey}
	if err := s.c.do(ctx, rq, "project", project); err != nil {
		return nil, err
	}
	return project, nil
}

// List returns the projects that the credential may see, newest first.
func (s *ProjectsService) List(ctx context.Context) ([]Project, error) { return collect(s.All(ctx)) }

// All yields the projects that the credential may see, newest first.
func (s *ProjectsService) All(ctx context.Context) iter.Seq2[Project, error] {
	return all[Project](ctx, s.c, "/v1/projects", nil)
}

// APIKeysService lists and revokes keys. Making one needs a human session.
type APIKeysService struct{ c *Client }

// CreateAPIKeyParams says what a new key may do. No API key may make another one.
type CreateAPIKeyParams struct {
	Name           string   `json:"name"`
	Scopes         []string `json:"scopes"`
	ProjectIDs     []string `json:"projectIds,omitempty"`
	IdempotencyKey string   `json:"-"`
}

// CreatedAPIKey is a new key. The secret is shown this once.
type CreatedAPIKey struct {
	APIKey APIKey `json:"apiKey"`
	Secret string `json:"secret"`

	raw
}

func keyPath(id string) string { return "/v1/api-keys/" + url.PathEscape(id) }

// Create makes a key, for an owner's or admin's session only.
func (s *APIKeysService) Create(ctx context.Context, p CreateAPIKeyParams) (*CreatedAPIKey, error) {
	created := new(CreatedAPIKey)
	rq := call{method: http.MethodPost, path: "/v1/api-keys", body: p, key: p.IdempotencyKey}
	if err := s.c.do(ctx, rq, "", created); err != nil {
		return nil, err
	}
	// The member's own JSON, so that the nested record is complete as well.
	var members struct {
		APIKey json.RawMessage `json:"apiKey"`
	}
	if err := json.Unmarshal(created.RawJSON(), &members); err == nil {
		created.APIKey.setRaw(members.APIKey)
	}
	return created, nil
}

// Get returns a key's record.
func (s *APIKeysService) Get(ctx context.Context, id string) (*APIKey, error) {
	return s.one(ctx, call{method: http.MethodGet, path: keyPath(id)})
}

// List returns the keys that the credential may see, newest first.
func (s *APIKeysService) List(ctx context.Context) ([]APIKey, error) { return collect(s.All(ctx)) }

// All yields the keys that the credential may see, newest first.
func (s *APIKeysService) All(ctx context.Context) iter.Seq2[APIKey, error] {
	return all[APIKey](ctx, s.c, "/v1/api-keys", nil)
}

// Revoke ends a key at once.
func (s *APIKeysService) Revoke(ctx context.Context, id string) (*APIKey, error) {
	return s.one(ctx, call{method: http.MethodDelete, path: keyPath(id)})
}

func (s *APIKeysService) one(ctx context.Context, rq call) (*APIKey, error) {
	key := new(APIKey)
	if err := s.c.do(ctx, rq, "apiKey", key); err != nil {
		return nil, err
	}
	return key, nil
}

// TemplatesService lists what sandboxes can be made of.
type TemplatesService struct{ c *Client }

// List returns every template.
func (s *TemplatesService) List(ctx context.Context) ([]Template, error) {
	return collect(all[Template](ctx, s.c, "/v1/templates", nil))
}

// Get returns a template.
func (s *TemplatesService) Get(ctx context.Context, slug string) (*Template, error) {
	t := new(Template)
	rq := call{method: http.MethodGet, path: "/v1/templates/" + url.PathEscape(slug)}
	if err := s.c.do(ctx, rq, "template", t); err != nil {
		return nil, err
	}
	return t, nil
}

// UsageService tells what was used.
type UsageService struct{ c *Client }

// UsageParams says how much detail is wanted.
type UsageParams struct {
	// Events includes the latest 100 metered events.
	Events bool
}

// Get returns the use of the current period.
func (s *UsageService) Get(ctx context.Context, p UsageParams) (*UsageSummary, error) {
	q := url.Values{}
	if p.Events {
		q.Set("include", "events")
	}
	u := new(UsageSummary)
	if err := s.c.do(ctx, call{method: http.MethodGet, path: "/v1/usage", query: q}, "", u); err != nil {
		return nil, err
	}
	return u, nil
}

// AuditService reads the audit chain.
type AuditService struct{ c *Client }

// ListAuditEventsParams selects audit events. Zero values select everything.
type ListAuditEventsParams struct {
	Action, ActorID, ResourceID, ProjectID string
	Since, Until                           time.Time
	// PageSize is how many are asked for at a time; 0 = the server's default.
	PageSize int
}

// All yields matching events, newest first.
func (s *AuditService) All(ctx context.Context, p ListAuditEventsParams) iter.Seq2[AuditEvent, error] {
	q := pageQuery(p.PageSize)
	for name, value := range map[string]string{
		"action": p.Action, "actorId": p.ActorID, "resourceId": p.ResourceID, "projectId": p.ProjectID,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	for name, t := range map[string]time.Time{"since": p.Since, "until": p.Until} {
		if !t.IsZero() {
			q.Set(name, t.UTC().Format("2006-01-02T15:04:05.000Z"))
		}
	}
	return all[AuditEvent](ctx, s.c, "/v1/audit-events", q)
}

// List returns every matching event, newest first.
func (s *AuditService) List(ctx context.Context, p ListAuditEventsParams) ([]AuditEvent, error) {
	return collect(s.All(ctx, p))
}

// Verify walks the organisation's chain on the server.
func (s *AuditService) Verify(ctx context.Context) (*AuditVerification, error) {
	v := new(AuditVerification)
	if err := s.c.do(ctx, call{method: http.MethodGet, path: "/v1/audit-events/verify"}, "", v); err != nil {
		return nil, err
	}
	return v, nil
}
