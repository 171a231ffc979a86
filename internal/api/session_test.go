package api

import (
	"strings"
	"testing"

	"crownest.dev/crownest/internal/sandbox"
)

// TestDevSession tells who is believed to be signed in, and that only they make keys.
func TestDevSession(t *testing.T) {
	const body = `{"name":"ci","scopes":["sandbox:read"]}`
	closed := newRig(t)
	r := newRig(t, func(o *Options) { o.Dev = &DevSessions{} })
	r.api.opts.Dev.OrgID, r.api.opts.Dev.UserID = r.org.ID, r.org.OperatorUserID
	owner := []string{"Authorization", "", headerOrgID, r.org.ID, headerRole, "owner"}
	with := func(pairs ...string) []string { return append(append([]string{}, owner...), pairs...) }

	for _, tc := range []struct {
		name    string
		rig     *rig
		headers []string
		status  int
	}{
		{"owner", r, owner, 201},
		{"admin who is named", r, with(headerRole, "admin", headerUserID, sandbox.NewID(sandbox.PrefixUser)), 201},
		{"member", r, with(headerRole, "member"), 401},
		{"other organisation", r, with(headerOrgID, sandbox.NewID(sandbox.PrefixOrg)), 401},
		{"malformed user", r, with(headerUserID, "root"), 401},
		{"key beside the headers", r, with("Authorization", "Bearer "+r.key), 403},
		{"server without dev", closed, []string{"Authorization", "", headerOrgID, closed.org.ID, headerRole, "owner"}, 401},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if a := tc.rig.do("POST", "/v1/api-keys", body, tc.headers...); a.status != tc.status {
				t.Errorf("got %d, want %d: %s", a.status, tc.status, a.body)
			}
		})
	}

	retry := with("Idempotency-Key", "k1")
	first, second := r.do("POST", "/v1/api-keys", body, retry...), r.do("POST", "/v1/api-keys", body, retry...)
	if string(first.body) != string(second.body) || second.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("a retry did not get the first answer: %s, then %s", first.body, second.body)
	}
	if !strings.Contains(string(first.body), `"secret"`) {
		t.Errorf("no secret in %s", first.body)
	}
}

func TestLoopbackName(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1:8787": true, "localhost": true, "[::1]:80": true, "LOCALHOST:1": true,
		"evil.example:8787": false, "10.0.0.1": false, "": false, "localhost.evil.example": false,
	} {
		if got := loopbackName(host); got != want {
			t.Errorf("loopbackName(%q) = %v", host, got)
		}
	}
}
