package api

import (
	"context"
	"net/http"
	"time"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

type wireApiKeyAnswer struct {
	APIKey wireApiKey `json:"apiKey"`
}

func (s *Server) addKeys() {
	const collection, item = "/v1/api-keys", "/v1/api-keys/{apiKeyId}"
	tag := "API Keys"

	listing(s, operation{
		id: "listApiKeys", method: http.MethodGet, path: collection, tag: tag,
		summary: "List API keys, without their secrets", scope: sandbox.ScopeAPIKeyRead,
	}, sandbox.PrefixKey,
		func(ctx context.Context, rq *request, p store.Page) (control.Page[sandbox.Key], error) {
			return s.control.Keys(ctx, rq.call, p)
		}, toKey, func(k sandbox.Key) (time.Time, string) { return k.CreatedAt, k.ID })

	query(s, operation{
		id: "getApiKey", method: http.MethodGet, path: item, tag: tag,
		summary: "Get an API key", scope: sandbox.ScopeAPIKeyRead, params: []*param{pKey},
	}, func(ctx context.Context, rq *request, _ *noBody) (wireApiKeyAnswer, error) {
		return keyAnswer(s.control.Key(ctx, rq.call, rq.path(pKey)))
	})

	mutation(s, operation{
		id: "revokeApiKey", method: http.MethodDelete, path: item, tag: tag,
		summary: "Revoke an API key at once; repeatable", scope: sandbox.ScopeAPIKeyRevoke, params: []*param{pKey}, errors: []int{409},
	}, func(ctx context.Context, rq *request, _ *noBody) (wireApiKeyAnswer, error) {
		return keyAnswer(s.control.RevokeKey(ctx, rq.call, rq.path(pKey)))
	})

	// No key makes keys, whatever its scopes. They come from the operator on the
	// server's machine or from a person who is signed in.
	mutation(s, operation{
		method: http.MethodPost, path: collection, status: http.StatusCreated, human: true, secret: true,
		makes: sandbox.PrefixKey,
	}, func(ctx context.Context, rq *request, in *wireCreateApiKey) (wireCreatedApiKey, error) {
		secret, k, err := s.control.CreateKey(ctx, rq.call, in.Name, in.Scopes, in.ProjectIDs)
		if err != nil {
			return wireCreatedApiKey{}, err
		}
		return wireCreatedApiKey{APIKey: toKey(k), Secret: secret}, nil
	})
}

type wireCreateApiKey struct {
	Name       string   `json:"name" minLength:"1" maxLength:"128"`
	Scopes     []string `json:"scopes" minItems:"1" maxItems:"64"`
	ProjectIDs []string `json:"projectIds,omitempty" maxItems:"100"`
}

type wireCreatedApiKey struct {
	APIKey wireApiKey `json:"apiKey"`
	Secret string     `json:"secret"`
}

func keyAnswer(k sandbox.Key, err error) (wireApiKeyAnswer, error) {
	if err != nil {
		return wireApiKeyAnswer{}, err
	}
	return wireApiKeyAnswer{toKey(k)}, nil
}
