package crownest

import (
	"bytes"
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"
)

// ArtifactsService keeps files beyond the life of their sandbox.
type ArtifactsService struct{ c *Client }

// SandboxArtifacts is ArtifactsService for one sandbox.
type SandboxArtifacts struct {
	s         *ArtifactsService
	sandboxID string
}

// CreateArtifactParams names the file to keep. Name defaults to the last element
// of Path.
type CreateArtifactParams struct {
	Path           string `json:"path"`
	Name           string `json:"name,omitempty"`
	IdempotencyKey string `json:"-"`
}

func artifactPath(id string) string { return "/v1/artifacts/" + url.PathEscape(id) }

// Create keeps a file of a live sandbox.
func (s *ArtifactsService) Create(ctx context.Context, sandboxID string, p CreateArtifactParams) (*Artifact, error) {
	return s.one(ctx, call{method: http.MethodPost, path: sandboxPath(sandboxID) + "/artifacts", body: p, key: p.IdempotencyKey})
}

// List returns the artifacts of a sandbox, newest first, also after its end.
func (s *ArtifactsService) List(ctx context.Context, sandboxID string) ([]Artifact, error) {
	return collect(s.All(ctx, sandboxID))
}

// All yields the artifacts of a sandbox, newest first.
func (s *ArtifactsService) All(ctx context.Context, sandboxID string) iter.Seq2[Artifact, error] {
	return all[Artifact](ctx, s.c, sandboxPath(sandboxID)+"/artifacts", nil)
}

// Get returns an artifact's record.
func (s *ArtifactsService) Get(ctx context.Context, id string) (*Artifact, error) {
	return s.one(ctx, call{method: http.MethodGet, path: artifactPath(id)})
}

// Delete removes an artifact.
func (s *ArtifactsService) Delete(ctx context.Context, id string) (*Artifact, error) {
	return s.one(ctx, call{method: http.MethodDelete, path: artifactPath(id)})
}

// DownloadURL returns a short-lived URL for an artifact.
func (s *ArtifactsService) DownloadURL(ctx context.Context, id string) (*DownloadURL, error) {
	u := new(DownloadURL)
	if err := s.c.do(ctx, call{method: http.MethodPost, path: artifactPath(id) + "/download-url"}, "", u); err != nil {
		return nil, err
	}
	return u, nil
}

// Download returns the bytes of an artifact.
func (s *ArtifactsService) Download(ctx context.Context, id string) ([]byte, error) {
	var b bytes.Buffer
	if _, err := s.DownloadTo(ctx, id, &b, nil); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// DownloadTo copies the bytes of an artifact to w and takes a broken connection
// up again. size, if not nil, is told the number of bytes before the first one.
func (s *ArtifactsService) DownloadTo(ctx context.Context, id string, w io.Writer, size func(total int64)) (int64, error) {
	fetch := func() (*DownloadURL, error) { return s.DownloadURL(ctx, id) }
	return s.c.downloadImmutable(ctx, fetch, w, size)
}

func (s *ArtifactsService) one(ctx context.Context, rq call) (*Artifact, error) {
	a := new(Artifact)
	if err := s.c.do(ctx, rq, "artifact", a); err != nil {
		return nil, err
	}
	return a, nil
}

// Create keeps a file of this sandbox.
func (h *SandboxArtifacts) Create(ctx context.Context, p CreateArtifactParams) (*Artifact, error) {
	return h.s.Create(ctx, h.sandboxID, p)
}

// List returns the artifacts of this sandbox, newest first.
func (h *SandboxArtifacts) List(ctx context.Context) ([]Artifact, error) {
	return h.s.List(ctx, h.sandboxID)
}
