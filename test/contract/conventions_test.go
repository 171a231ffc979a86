package contract

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

const suffix = "0123456789abcdefghjkmnpqrs" // well-formed, and nobody's

func (s *suite) conventionRows(t *testing.T) {
	o := s.owner
	anonymous := s.caller(t, "")

	s.row(t, "1.1", "empty POST without a content type", func(t *testing.T) {
		a := o.call(t, "POST", "/v1/sandboxes", nil)
		if a.status != 201 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		id := text(object(a.object(t)["sandbox"])["id"])
		if b := o.call(t, "DELETE", "/v1/sandboxes/"+id, nil); b.status != 200 || len(b.body) == 0 {
			t.Errorf("%d %s", b.status, b.body)
		}
	})
	s.row(t, "1.1", "a body declared otherwise is refused", func(t *testing.T) {
		for _, ct := range []string{"text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", "nonsense"} {
			o.refused(t, 400, "invalid_request", "POST", "/v1/sandboxes", "{}", "Content-Type", ct)
		}
	})
	s.row(t, "1.1", "malformed bodies", func(t *testing.T) {
		for _, body := range []string{"{", "[]", `"x"`, "{}{}", "\xff", "{\"template\":\"\xc3\"}", `{"template":"\ud800"}`, strings.Repeat(`{"a":`, 20000), strings.Repeat("[", 100000), "\x00", "\ufeff{}"} {
			o.refused(t, 400, "invalid_request", "POST", "/v1/sandboxes", body)
		}
	})
	s.row(t, "1.1", "body limit", func(t *testing.T) {
		details := o.refused(t, 413, "request_too_large", "POST", "/v1/sandboxes", `{"x":"`+strings.Repeat("y", 5<<20)+`"}`)
		if details["maxBytes"] != float64(4<<20) {
			t.Errorf("details %v", details)
		}
	})
	s.row(t, "1.1", "content type of answers", func(t *testing.T) {
		a := o.call(t, "GET", "/v1/projects", nil)
		if ct := a.header.Get("Content-Type"); ct != "application/json; charset=utf-8" {
			t.Errorf("%q", ct)
		}
	})
	s.row(t, "1.1", "no redirects, only exact paths", func(t *testing.T) {
		for _, path := range []string{"/v1/sandboxes/", "/v1//sandboxes", "/V1/sandboxes", "/v1/./sandboxes", "/v1/x/../sandboxes", "/v1/%2e%2e/v1/sandboxes", "/v1", "/", "/v1/workspace-runs", "/v1/sandboxes/sbx_" + suffix + "/previews", "/agent/identity"} {
			o.refused(t, 404, "not_found", "GET", path, nil)
		}
	})
	s.row(t, "1.1", "unknown members are ignored, null is absent", func(t *testing.T) {
		sb := object(o.want(t, 201, "POST", "/v1/sandboxes", `{"later":{"x":[null]},"ttlMs":null,"template":null,"metadata":null,"projectId":null,"network":null,"_crownestRequireCommandRead":false}`)["sandbox"])
		o.want(t, 200, "DELETE", "/v1/sandboxes/"+text(sb["id"]), nil)
	})
	s.row(t, "1.1", "a null map value is refused", func(t *testing.T) {
		o.refused(t, 400, "invalid_metadata_value", "POST", "/v1/sandboxes", `{"metadata":{"a":null}}`)
	})
	s.row(t, "1.1", "half-closed connections are answered", func(t *testing.T) {
		head := " HTTP/1.1\r\nHost: x\r\nX-Api-Key: " + o.key + "\r\n"
		if got := s.raw(t, "GET /v1/projects"+head+"\r\n", true); !strings.HasPrefix(got, "HTTP/1.1 200") {
			t.Errorf("%.100q", got)
		}
		if got := s.raw(t, "POST /v1/sandboxes"+head+"Content-Length: 50\r\n\r\n{}", true); !strings.HasPrefix(got, "HTTP/1.1 400") {
			t.Errorf("%.100q", got)
		}
	})
	s.row(t, "1.2", "discovery", func(t *testing.T) {
		doc := anonymous.call(t, "GET", "/openapi.json", nil)
		if doc.status != 200 || doc.header.Get("Content-Type") != "application/vnd.oai.openapi+json; charset=utf-8" {
			t.Errorf("%d %v", doc.status, doc.header)
		}
		servers := items(doc.object(t)["servers"])
		if len(servers) != 1 || object(servers[0])["url"] != s.url {
			t.Errorf("servers %v", servers)
		}
		if a := anonymous.call(t, "GET", "/llms.txt", nil); a.status != 200 || !strings.HasPrefix(a.header.Get("Content-Type"), "text/markdown") {
			t.Errorf("%d", a.status)
		}
		if a := anonymous.call(t, "GET", "/.well-known/api-catalog", nil); a.status != 200 || a.header.Get("Content-Type") != "application/linkset+json" {
			t.Errorf("%d %v", a.status, a.header)
		}
		anonymous.want(t, 200, "GET", "/.well-known/oauth-protected-resource", nil)
		anonymous.want(t, 200, "GET", "/healthz", nil)
	})
	s.row(t, "1.3", "malformed ids and ids of another kind are not there", func(t *testing.T) {
		for _, id := range []string{"x", "sbx_", "sbx_short", "sbx_" + strings.ToUpper(suffix), "cmd_" + suffix, "sbx_" + suffix + "0", "sbx_%00", "sbx_%ff", "..%2f..", strings.Repeat("a", 3000), "sbx_" + suffix} {
			o.refused(t, 404, "not_found", "GET", "/v1/sandboxes/"+id, nil)
		}
	})
	s.row(t, "1.6", "405 with Allow", func(t *testing.T) {
		for path, allow := range map[string]string{
			"/v1/sandboxes": "GET, POST", "/v1/usage": "GET",
			"/v1/sandboxes/sbx_" + suffix: "DELETE, GET", "/v1/sandboxes/sbx_" + suffix + "/files/download": "GET, HEAD",
		} {
			a := anonymous.call(t, "PATCH", path, nil)
			if code, _ := a.envelope(t); a.status != 405 || code != "method_not_allowed" || a.header.Get("Allow") != allow {
				t.Errorf("%s: %d %s %q", path, a.status, code, a.header.Get("Allow"))
			}
		}
		if a := o.call(t, "HEAD", "/v1/sandboxes", nil); a.status != 405 {
			t.Errorf("HEAD: %d", a.status)
		}
	})
	s.row(t, "1.7", "limits and cursors", func(t *testing.T) {
		for _, q := range []string{"limit=0", "limit=-1", "limit=x", "limit=", "limit=1.5", "cursor=x", "cursor=%00", "cursor=MS4xLng", "include=x", "projectId=%00"} {
			o.refused(t, 400, "invalid_request", "GET", "/v1/sandboxes?"+q, nil)
		}
		o.want(t, 200, "GET", "/v1/sandboxes?limit=100000", nil)
	})
	s.row(t, "1.7", "pages hold everything once, newest first", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		var made []string
		for range 5 {
			made = append(made, text(o.run(t, sbx, "true")["id"]))
		}
		var seen []string
		path := sbx + "/commands?limit=2"
		for {
			page := o.want(t, 200, "GET", path, nil)
			for _, c := range items(page["data"]) {
				seen = append(seen, text(object(c)["id"]))
				if _, has := object(c)["stdout"]; has {
					t.Error("a list holds output")
				}
			}
			if page["hasMore"] != true {
				break
			}
			path = sbx + "/commands?limit=2&cursor=" + text(page["nextCursor"])
		}
		if len(seen) != 5 {
			t.Fatalf("%d of 5", len(seen))
		}
		for i := range seen {
			if seen[i] != made[4-i] {
				t.Errorf("place %d holds %s, want %s", i, seen[i], made[4-i])
			}
		}
	})
	s.row(t, "1.8", "rate limit headers", func(t *testing.T) {
		a := o.call(t, "GET", "/v1/projects", nil)
		for _, h := range []string{"RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"} {
			if !regexp.MustCompile(`^\d+$`).MatchString(a.header.Get(h)) {
				t.Errorf("%s: %q", h, a.header.Get(h))
			}
		}
	})
}

func (s *suite) credentialRows(t *testing.T) {
	o := s.owner
	anonymous := s.caller(t, "")
	challenge := `Bearer resource_metadata="` + s.url + `/.well-known/oauth-protected-resource"`

	s.row(t, "1.2", "missing, malformed, unknown and differing keys", func(t *testing.T) {
		for _, tc := range []struct {
			headers []string
			code    string
		}{
			{nil, "unauthorized"},
			{[]string{"Authorization", "Bearer x"}, "invalid_api_key"},
			{[]string{"Authorization", "Basic eDp5"}, "invalid_api_key"},
			{[]string{"X-Api-Key", "cn_live_" + strings.Repeat("A", 43)}, "invalid_api_key"},
			{[]string{"X-Api-Key", strings.Repeat("A", 5000)}, "invalid_api_key"},
			{[]string{"Authorization", "Bearer " + o.key, "X-Api-Key", o.key + "x"}, "invalid_api_key"},
		} {
			a := anonymous.call(t, "GET", "/v1/projects", nil, tc.headers...)
			code, _ := a.envelope(t)
			want := challenge
			if tc.code == "invalid_api_key" {
				want += `, error="invalid_token"`
			}
			if a.status != 401 || code != tc.code || a.header.Get("WWW-Authenticate") != want {
				t.Errorf("%v: %d %s %q", tc.headers, a.status, code, a.header.Get("WWW-Authenticate"))
			}
		}
		anonymous.want(t, 200, "GET", "/v1/projects", nil, "X-Api-Key", o.key)
		anonymous.want(t, 200, "GET", "/v1/projects", nil, "X-Api-Key", o.key, "Authorization", "Bearer "+o.key)
	})
	s.row(t, "1.2", "every operation refuses a request without a credential, then without its scope", func(t *testing.T) {
		// A key that may nearly nothing: its one scope is of no route below.
		poor := s.caller(t, s.newKey(t, "", "backup:read"))
		for _, op := range s.doc.operations {
			scope := text(op.def["x-crownest-required-scope"])
			if scope == "-" {
				continue
			}
			path := op.sample()
			a := anonymous.call(t, op.method, path, nil)
			if code, _ := a.envelope(t); a.status != 401 || code != "unauthorized" {
				t.Errorf("%s without a key: %d %s", op.id, a.status, code)
			}
			if scope == "any key" {
				continue
			}
			a = poor.call(t, op.method, path, "junk")
			code, details := a.envelope(t)
			if a.status != 403 || code != "forbidden" || details["requiredScope"] != scope {
				t.Errorf("%s without %s: %d %s %v", op.id, scope, a.status, code, details)
			}
		}
	})
	s.row(t, "1.2", "other projects are not there, for every operation on them", func(t *testing.T) {
		project := text(object(o.want(t, 201, "POST", "/v1/projects", map[string]any{"name": "fenced " + time.Now().Format("150405.000")})["project"])["id"])
		fenced := s.caller(t, s.newKey(t, project))
		sbx, id := o.sandbox(t)
		cmd := text(o.run(t, sbx, "echo x > f")["id"])
		art := text(object(o.want(t, 201, "POST", sbx+"/artifacts", map[string]any{"path": "f"})["artifact"])["id"])
		for _, op := range s.doc.operations {
			if !strings.Contains(op.path, "{sandboxId}") && !strings.Contains(op.path, "{commandId}") && !strings.Contains(op.path, "{artifactId}") {
				continue
			}
			path := strings.NewReplacer("{sandboxId}", id, "{commandId}", cmd, "{artifactId}", art, "{uploadId}", "upl_"+suffix).Replace(op.path) + op.query()
			a := fenced.call(t, op.method, path, op.body())
			code, _ := a.envelope(t)
			if a.status != 404 || code != "not_found" && code != "upload_not_found" {
				t.Errorf("%s: %d %s", op.id, a.status, code)
			}
		}
		fenced.refused(t, 404, "not_found", "POST", "/v1/sandboxes", map[string]any{"projectId": text(object(o.want(t, 200, "GET", sbx, nil)["sandbox"])["projectId"])})
		fenced.refused(t, 403, "forbidden", "POST", "/v1/projects", map[string]any{"name": "x"})
		fenced.refused(t, 403, "forbidden", "GET", "/v1/audit-events/verify", nil)
		if n := len(items(fenced.want(t, 200, "GET", "/v1/sandboxes?include=historical", nil)["data"])); n != 0 {
			t.Errorf("sees %d sandboxes", n)
		}
		if n := len(items(fenced.want(t, 200, "GET", "/v1/projects", nil)["data"])); n != 1 {
			t.Errorf("sees %d projects", n)
		}
		own, _ := fenced.sandbox(t)
		if got := object(fenced.want(t, 200, "GET", own, nil)["sandbox"])["projectId"]; got != project {
			t.Errorf("made in %v", got)
		}
	})
	s.row(t, "1.2", "keys make no keys", func(t *testing.T) {
		o.refused(t, 403, "forbidden", "POST", "/v1/api-keys", map[string]any{"name": "x", "scopes": []string{"sandbox:read"}})
	})
	s.row(t, "1.2", "revocation is immediate, repeatable and ends open streams", func(t *testing.T) {
		victim := s.caller(t, s.newKey(t, ""))
		sbx, _ := o.sandbox(t)
		cmd := text(object(o.want(t, 202, "POST", sbx+"/commands/start", map[string]any{"command": "sleep 60"})["command"])["id"])
		res, err := victim.http.Do(victim.request(t, "GET", "/v1/commands/"+cmd+"/stream", nil))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var id string
		for _, k := range items(o.want(t, 200, "GET", "/v1/api-keys", nil)["data"]) {
			if strings.HasSuffix(victim.key, text(object(k)["last4"])) && strings.HasPrefix(victim.key, text(object(k)["prefix"])) {
				id = text(object(k)["id"])
			}
		}
		o.want(t, 200, "GET", "/v1/api-keys/"+id, nil)
		first := object(o.want(t, 200, "DELETE", "/v1/api-keys/"+id, nil)["apiKey"])
		again := object(o.want(t, 200, "DELETE", "/v1/api-keys/"+id, nil)["apiKey"])
		if first["revokedAt"] == nil || first["revokedAt"] != again["revokedAt"] {
			t.Errorf("%v, then %v", first["revokedAt"], again["revokedAt"])
		}
		victim.refused(t, 401, "invalid_api_key", "GET", "/v1/projects", nil)
		began := time.Now()
		drain(res)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("the stream went on for %s", took)
		}
	})
}

// drain reads a body to its end, however it ends.
func drain(res *http.Response) {
	buf := make([]byte, 4096)
	for {
		if _, err := res.Body.Read(buf); err != nil {
			return
		}
	}
}

// sample is a path of the operation with well-formed ids of nothing.
func (op *operation) sample() string {
	return strings.NewReplacer("{sandboxId}", "sbx_"+suffix, "{commandId}", "cmd_"+suffix, "{artifactId}", "art_"+suffix,
		"{apiKeyId}", "key_"+suffix, "{uploadId}", "upl_"+suffix, "{templateSlug}", "base").Replace(op.path)
}

// query holds the required query parameters.
func (op *operation) query() string {
	for _, p := range items(op.def["parameters"]) {
		if object(p)["in"] == "query" && object(p)["required"] == true {
			return "?" + text(object(p)["name"]) + "=f"
		}
	}
	return ""
}

// body is a valid body for the operation, nil if it takes none.
func (op *operation) body() any {
	switch op.id {
	case "createSandbox":
		return map[string]any{}
	case "createProject":
		return map[string]any{"name": "contract"}
	case "extendSandbox":
		return map[string]any{"ttlMs": 1000}
	case "runCommand", "startCommand", "createCommand":
		return map[string]any{"command": "true"}
	case "writeFile":
		return map[string]any{"path": "f", "content": "x"}
	case "makeDirectory", "createFileDownloadUrl", "createFileUploadUrl", "createArtifact":
		return map[string]any{"path": "f"}
	case "moveFile":
		return map[string]any{"from": "f", "to": "g"}
	}
	if op.def["requestBody"] != nil {
		return map[string]any{}
	}
	return nil
}
