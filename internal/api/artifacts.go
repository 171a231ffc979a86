package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

type wireCreateArtifactRequest struct {
	Path string `json:"path" minLength:"1" maxLength:"4096"`
	Name string `json:"name,omitempty" minLength:"1" maxLength:"255" doc:"Omitted: the last element of the path."`
}

func (in *wireCreateArtifactRequest) validate() error {
	return errors.Join(noNUL("path", in.Path), checkName("name", in.Name))
}

type wireArtifactAnswer struct {
	Artifact wireArtifact `json:"artifact"`
}

func (s *Server) addArtifacts() {
	const inSandbox, item = "/v1/sandboxes/{sandboxId}/artifacts", "/v1/artifacts/{artifactId}"
	tag := "Artifacts"

	mutation(s, operation{
		id: "createArtifact", method: http.MethodPost, path: inSandbox, tag: tag, status: http.StatusCreated,
		summary: "Keep a file of a sandbox as an artifact", scope: sandbox.ScopeArtifactCreate, params: []*param{pSandbox},
		makes: sandbox.PrefixArtifact, errors: []int{402, 409, 410, 413, 503},
	}, func(ctx context.Context, rq *request, in *wireCreateArtifactRequest) (wireArtifactAnswer, error) {
		return artifactAnswer(s.control.CreateArtifact(ctx, rq.call, rq.path(pSandbox), sandbox.CollectItem{Path: in.Path, Name: in.Name}))
	})

	listing(s, operation{
		id: "listArtifacts", method: http.MethodGet, path: inSandbox, tag: tag,
		summary: "List the artifacts of a sandbox, also after its end", scope: sandbox.ScopeArtifactRead, params: []*param{pSandbox},
	}, sandbox.PrefixArtifact,
		func(ctx context.Context, rq *request, p store.Page) (control.Page[sandbox.Artifact], error) {
			return s.control.Artifacts(ctx, rq.call, rq.path(pSandbox), p)
		}, toArtifact, func(a sandbox.Artifact) (time.Time, string) { return a.CreatedAt, a.ID })

	query(s, operation{
		id: "getArtifact", method: http.MethodGet, path: item, tag: tag,
		summary: "Get an artifact", scope: sandbox.ScopeArtifactRead, params: []*param{pArtifact},
	}, func(ctx context.Context, rq *request, _ *noBody) (wireArtifactAnswer, error) {
		return artifactAnswer(s.control.Artifact(ctx, rq.call, rq.path(pArtifact)))
	})

	stream(s, operation{
		id: "downloadArtifact", method: http.MethodGet, path: item + "/download", tag: tag,
		summary: "Download an artifact", scope: sandbox.ScopeArtifactRead, params: []*param{pArtifact},
		signed: true, grant: func(rq *request) grant { return artifactGrant(rq.path(pArtifact)) },
		responses: typedAnswer, errors: []int{206, 416, 502},
	}, func(ctx context.Context, rq *request) error {
		return s.download(ctx, rq, func(ctx context.Context) (control.Content, error) {
			return s.control.ArtifactContent(ctx, rq.call, rq.path(pArtifact))
		})
	})

	mutation(s, operation{
		id: "createArtifactDownloadUrl", method: http.MethodPost, path: item + "/download-url", tag: tag,
		summary: "Get a URL that downloads an artifact", scope: sandbox.ScopeArtifactRead, params: []*param{pArtifact},
		secret: true, errors: []int{409},
	}, func(ctx context.Context, rq *request, _ *noBody) (wireDownloadUrl, error) {
		a, err := s.control.Artifact(ctx, rq.call, rq.path(pArtifact))
		if err != nil {
			return wireDownloadUrl{}, err
		}
		return s.downloadURL(rq, "/v1/artifacts/"+a.ID+"/download", nil, artifactGrant(a.ID)), nil
	})

	mutation(s, operation{
		id: "deleteArtifact", method: http.MethodDelete, path: item, tag: tag,
		summary: "Delete an artifact", scope: sandbox.ScopeArtifactDelete, params: []*param{pArtifact}, errors: []int{409},
	}, func(ctx context.Context, rq *request, _ *noBody) (wireArtifactAnswer, error) {
		return artifactAnswer(s.control.DeleteArtifact(ctx, rq.call, rq.path(pArtifact)))
	})
}

func artifactGrant(id string) grant { return grant{id, "artifact"} }

func artifactAnswer(a sandbox.Artifact, err error) (wireArtifactAnswer, error) {
	if err != nil {
		return wireArtifactAnswer{}, err
	}
	return wireArtifactAnswer{toArtifact(a)}, nil
}
