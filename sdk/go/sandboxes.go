package crownest

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
)

// SandboxesService makes and ends sandboxes.
type SandboxesService struct{ c *Client }

// CreateSandboxParams says what sandbox is wanted. The zero value is valid: the
// server's default template in the default project.
type CreateSandboxParams struct {
	ProjectID         string            `json:"projectId,omitempty"`
	Template          string            `json:"template,omitempty"`
	TemplateVersionID string            `json:"templateVersionId,omitempty"`
	TTLMs             int64             `json:"ttlMs,omitempty"`
	Metadata          map[string]string `json:"metadata,omitempty"`
	Network           *Network          `json:"network,omitempty"`

	// IdempotencyKey makes a repeated call return the first one's sandbox.
	IdempotencyKey string `json:"-"`
}

// ExtendSandboxParams sets a new time to live, counted from now.
type ExtendSandboxParams struct {
	TTLMs          int64  `json:"ttlMs"`
	IdempotencyKey string `json:"-"`
}

// ListSandboxesParams selects sandboxes.
type ListSandboxesParams struct {
	ProjectID string
	// Metadata selects sandboxes that have all of these values.
	Metadata map[string]string
	// Historical includes destroyed and failed sandboxes.
	Historical bool
	// PageSize is how many are asked for at a time; 0 = the server's default.
	PageSize int
}

// Sandbox is the record of a sandbox together with the calls on it. The record
// is a snapshot.
type Sandbox struct {
	SandboxInfo

	Commands  *SandboxCommands
	Files     *SandboxFiles
	Artifacts *SandboxArtifacts

	c *Client
}

func (c *Client) handle(info SandboxInfo) *Sandbox {
	return &Sandbox{
		SandboxInfo: info, c: c,
		Commands:  &SandboxCommands{c.Commands, info.ID},
		Files:     &SandboxFiles{c.Files, info.ID},
		Artifacts: &SandboxArtifacts{c.Artifacts, info.ID},
	}
}

func sandboxPath(id string) string { return "/v1/sandboxes/" + url.PathEscape(id) }

// Create makes a sandbox and returns once it is usable.
func (s *SandboxesService) Create(ctx context.Context, p CreateSandboxParams) (*Sandbox, error) {
	return s.one(ctx, call{method: http.MethodPost, path: "/v1/sandboxes", body: p, key: p.IdempotencyKey})
}

// Get returns a sandbox, also one that has ended.
func (s *SandboxesService) Get(ctx context.Context, id string) (*Sandbox, error) {
	return s.one(ctx, call{method: http.MethodGet, path: sandboxPath(id)})
}

// Extend moves the end of a sandbox.
func (s *SandboxesService) Extend(ctx context.Context, id string, p ExtendSandboxParams) (*Sandbox, error) {
	return s.one(ctx, call{method: http.MethodPost, path: sandboxPath(id) + "/extend", body: p, key: p.IdempotencyKey})
}

// Kill ends a sandbox. When it returns, no process of it is left.
func (s *SandboxesService) Kill(ctx context.Context, id string) (*SandboxInfo, error) {
	info := new(SandboxInfo)
	if err := s.c.do(ctx, call{method: http.MethodDelete, path: sandboxPath(id)}, "sandbox", info); err != nil {
		return nil, err
	}
	return info, nil
}

// List returns every matching sandbox, newest first.
func (s *SandboxesService) List(ctx context.Context, p ListSandboxesParams) ([]SandboxInfo, error) {
	return collect(s.All(ctx, p))
}

// All yields every matching sandbox, newest first, page by page.
func (s *SandboxesService) All(ctx context.Context, p ListSandboxesParams) iter.Seq2[SandboxInfo, error] {
	q := pageQuery(p.PageSize)
	if p.ProjectID != "" {
		q.Set("projectId", p.ProjectID)
	}
	if p.Historical {
		q.Set("include", "historical")
	}
	for k, v := range p.Metadata {
		q.Set("metadata."+k, v)
	}
	return all[SandboxInfo](ctx, s.c, "/v1/sandboxes", q)
}

func (s *SandboxesService) one(ctx context.Context, rq call) (*Sandbox, error) {
	var info SandboxInfo
	if err := s.c.do(ctx, rq, "sandbox", &info); err != nil {
		return nil, err
	}
	return s.c.handle(info), nil
}

// Extend moves the end of this sandbox and returns a new snapshot.
func (s *Sandbox) Extend(ctx context.Context, p ExtendSandboxParams) (*Sandbox, error) {
	return s.c.Sandboxes.Extend(ctx, s.ID, p)
}

// Kill ends this sandbox.
func (s *Sandbox) Kill(ctx context.Context) (*SandboxInfo, error) {
	return s.c.Sandboxes.Kill(ctx, s.ID)
}

func pageQuery(size int) url.Values {
	q := url.Values{}
	if size > 0 {
		q.Set("limit", strconv.Itoa(size))
	}
	return q
}
