package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/sandbox"
)

const (
	// urlLifetime is how long a signed URL is good to begin a transfer.
	urlLifetime = 15 * time.Minute
	// signatureParam is the query parameter that makes a URL a signed one.
	signatureParam = "signature"
)

// authenticate finds out who asks. On signed routes a good signature stands in
// for the credential; a bad one is judged by the credential if one is sent.
func (s *Server) authenticate(rq *request) error {
	var refused error
	if rq.op.signed && rq.query.Has(signatureParam) {
		if refused = s.authenticateURL(rq); refused == nil {
			return nil
		}
	}
	secret, err := presented(rq.r.Header)
	if err != nil {
		return s.challenge(rq, err)
	}
	if secret == "" && refused != nil {
		return refused
	}
	if secret == "" {
		if p, ok := s.devSession(rq.r); ok {
			rq.call.Principal, rq.secret = p, processSecret
			return nil
		}
	}
	p, err := s.auth.Authenticate(s.base, secret)
	if err != nil {
		return s.challenge(rq, err)
	}
	rq.call.Principal, rq.secret = p, secret
	return nil
}

// challenge tells a client without a good credential how to get one.
func (s *Server) challenge(rq *request, err error) error {
	value := `Bearer resource_metadata="` + s.baseURL(rq.r) + `/.well-known/oauth-protected-resource"`
	switch {
	case sandbox.CodeUnauthorized.Is(err):
	case sandbox.CodeInvalidAPIKey.Is(err):
		value += `, error="invalid_token"`
	default:
		return err
	}
	rq.w.Header().Set("WWW-Authenticate", value)
	return err
}

// presented returns the key of a request, empty if there is none.
func presented(h http.Header) (string, error) {
	var secret string
	take := func(v string) bool {
		if v = strings.TrimSpace(v); v == "" {
			return true
		}
		if secret != "" && secret != v {
			return false
		}
		secret = v
		return true
	}
	for _, v := range h.Values("Authorization") {
		scheme, token, _ := strings.Cut(v, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return "", sandbox.NewError(sandbox.CodeInvalidAPIKey, "The Authorization header must be of the form: Bearer <key>.")
		}
		if !take(token) {
			return "", errTwoKeys()
		}
	}
	for _, v := range h.Values("X-Api-Key") {
		if !take(v) {
			return "", errTwoKeys()
		}
	}
	return secret, nil
}

func errTwoKeys() error {
	return sandbox.NewError(sandbox.CodeInvalidAPIKey, "The request carries different keys.")
}

// grant says what a signed URL of an operation must have been signed for.
type grant struct {
	resource string
	path     string
}

// authenticateURL accepts a request by the signature of its URL.
func (s *Server) authenticateURL(rq *request) error {
	want := rq.op.grant(rq)
	g, err := s.signer.Verify(rq.query.Get(signatureParam), rq.op.method, want.resource, want.path, time.Now())
	if err != nil {
		if rq.op.method == http.MethodPut && errors.Is(err, auth.ErrSignatureExpired) {
			return sandbox.NewError(sandbox.CodeUploadExpired, "This upload URL has expired; ask for a new one.")
		}
		return err
	}
	p, live, err := s.auth.Live(s.base, g.KeyID)
	if err != nil {
		return err
	}
	if !live {
		return auth.Refuse(auth.ErrKeyRevoked)
	}
	rq.call.Principal = p
	rq.viaURL = true
	return nil
}

// signURL returns a URL that does what op does in the name of the caller's key,
// and when it stops to work. path has its parameters filled in.
func (s *Server) signURL(rq *request, method, path string, query url.Values, want grant, expires time.Time) string {
	if query == nil {
		query = url.Values{}
	}
	query.Set(signatureParam, s.signer.Sign(auth.Grant{
		Method: method, Resource: want.resource, Path: want.path,
		Expires: expires, KeyID: rq.principal().KeyID,
	}))
	return s.baseURL(rq.r) + path + "?" + query.Encode()
}

// downloadURL is the answer for a signed download.
func (s *Server) downloadURL(rq *request, path string, query url.Values, want grant) wireDownloadUrl {
	expires := time.Now().Add(urlLifetime)
	return wireDownloadUrl{
		AuthMode: "api_key", Headers: noStrings, Method: http.MethodGet,
		URL: s.signURL(rq, http.MethodGet, path, query, want, expires), ExpiresAt: timestamp(expires),
	}
}

// stillLive reports whether the key behind a request may go on with a stream. If
// the store cannot be asked, the stream goes on until it can.
func (s *Server) stillLive(ctx context.Context, rq *request) bool {
	id := rq.principal().KeyID
	if id == "" {
		return true
	}
	_, live, err := s.auth.Live(ctx, id)
	return live || err != nil
}
