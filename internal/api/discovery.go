package api

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"crownest.dev/crownest/internal/sandbox"
)

const (
	mediaOpenAPI  = "application/vnd.oai.openapi+json"
	mediaMarkdown = "text/markdown"
	mediaLinkset  = "application/linkset+json"
)

// wireOpenAPI is the outline of an OpenAPI document.
type wireOpenAPI struct {
	OpenAPI    string         `json:"openapi" enum:"3.1.0"`
	Info       wireAPIInfo    `json:"info"`
	Paths      map[string]any `json:"paths"`
	Components map[string]any `json:"components"`
}

type wireAPIInfo struct {
	Title   string `json:"title"`
	Version string `json:"version"`
}

type wireLink struct {
	Href string `json:"href" format:"uri"`
	Type string `json:"type,omitempty"`
}

type wireLinkContext struct {
	Anchor      string     `json:"anchor" format:"uri"`
	ServiceDesc []wireLink `json:"service-desc"`
	ServiceDoc  []wireLink `json:"service-doc"`
	Status      []wireLink `json:"status"`
}

type wireLinkset struct {
	Linkset []wireLinkContext `json:"linkset"`
}

type wireProtectedResource struct {
	Resource               string   `json:"resource" format:"uri"`
	ResourceName           string   `json:"resource_name"`
	AuthorizationServers   []string `json:"authorization_servers"`
	BearerMethodsSupported []string `json:"bearer_methods_supported"`
	ScopesSupported        []string `json:"scopes_supported"`
}

type wireHealth struct {
	Status  string `json:"status" enum:"ok,starting,draining"`
	Version string `json:"version"`
}

func (s *Server) addDiscovery() {
	document := func(id, path, tag, summary, media string, t reflect.Type, body func(rq *request) []byte) {
		op := operation{
			id: id, method: http.MethodGet, path: path, tag: tag, summary: summary, public: true,
			responses: map[int]*content{http.StatusOK: {description: "The document", media: map[string]reflect.Type{media: t}}},
		}
		contentType := media
		if media != mediaLinkset {
			contentType += "; charset=utf-8"
		}
		op.handle = func(rq *request) {
			rq.w.Header().Set("Content-Type", contentType)
			writeBody(rq, http.StatusOK, body(rq))
		}
		s.add(op)
	}
	document("getOpenApi", "/openapi.json", "Discovery", "This document", mediaOpenAPI, reflect.TypeFor[wireOpenAPI](),
		func(rq *request) []byte { return s.documentFor(s.baseURL(rq.r)) })
	document("getApiLlmsTxt", "/llms.txt", "Discovery", "An index for language models", mediaMarkdown, reflect.TypeFor[string](),
		func(rq *request) []byte { return s.llms(s.baseURL(rq.r)) })
	document("getApiCatalog", "/.well-known/api-catalog", "Discovery", "The API catalog of RFC 9727", mediaLinkset, reflect.TypeFor[wireLinkset](),
		func(rq *request) []byte {
			base := s.baseURL(rq.r)
			return encodeJSON(wireLinkset{[]wireLinkContext{{
				Anchor:      base + "/v1",
				ServiceDesc: []wireLink{{base + "/openapi.json", mediaOpenAPI}},
				ServiceDoc:  []wireLink{{base + "/llms.txt", mediaMarkdown}},
				Status:      []wireLink{{base + "/healthz", mediaJSON}},
			}}})
		})
	document("getOAuthProtectedResource", "/.well-known/oauth-protected-resource", "Auth", "The protected resource metadata of RFC 9728",
		mediaJSON, reflect.TypeFor[wireProtectedResource](),
		func(rq *request) []byte {
			return encodeJSON(wireProtectedResource{
				Resource: s.baseURL(rq.r), ResourceName: "CrowNest API", AuthorizationServers: []string{},
				BearerMethodsSupported: []string{"header"}, ScopesSupported: sandbox.AllScopes,
			})
		})

	// For load balancers and supervisors; no part of the documented API.
	s.add(operation{method: http.MethodGet, path: "/healthz", public: true, handle: func(rq *request) {
		s.writeJSON(rq, http.StatusOK, encodeJSON(wireHealth{"ok", s.opts.Version}))
	}})
	s.add(operation{method: http.MethodGet, path: "/readyz", public: true, handle: func(rq *request) {
		health, status := wireHealth{"ok", s.opts.Version}, http.StatusOK
		switch {
		case s.draining.Load():
			health.Status, status = "draining", http.StatusServiceUnavailable
		case !s.opts.Ready():
			health.Status, status = "starting", http.StatusServiceUnavailable
		}
		if status != http.StatusOK {
			rq.w.Header().Set("Retry-After", "1")
		}
		s.writeJSON(rq, status, encodeJSON(health))
	}})
}

// llms is the index of the API for language models.
func (s *Server) llms(base string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `# CrowNest API

> Isolated Linux sandboxes for untrusted code: create one, run commands, move files, keep artifacts.

Base URL: %[1]s
Authentication: Authorization: Bearer <key>, or x-api-key: <key>
Errors: {"error":{"code","message","details"}}; branch on code, retry 429 and 5xx

- [OpenAPI document](%[1]s/openapi.json)
- [API catalog](%[1]s/.well-known/api-catalog)
- [Protected resource metadata](%[1]s/.well-known/oauth-protected-resource)
`, base)
	for _, tag := range tags {
		if tag.Name == "Discovery" || tag.Name == "Auth" {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n", tag.Name)
		for _, op := range s.operations {
			if op.tag == tag.Name && op.id != "" {
				fmt.Fprintf(&b, "- `%s %s`: %s\n", op.method, op.path, op.summary)
			}
		}
	}
	return []byte(b.String())
}
