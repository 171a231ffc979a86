package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
)

func TestDocumentIsCommitted(t *testing.T) {
	r := newRig(t)
	var want bytes.Buffer
	if err := json.Indent(&want, r.api.document, "", "  "); err != nil {
		t.Fatal(err)
	}
	want.WriteByte('\n')
	path := filepath.Join("..", "..", "api", "openapi.json")
	if *update {
		if err := os.WriteFile(path, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("api/openapi.json is out of date; run `go generate ./internal/api`")
	}
}

func TestDocument(t *testing.T) {
	r := newRig(t)
	a := r.do("GET", "/openapi.json", "", "Authorization", "")
	if ct := a.header.Get("Content-Type"); ct != "application/vnd.oai.openapi+json; charset=utf-8" {
		t.Errorf("content type %q", ct)
	}
	doc := a.json(t)
	if doc["openapi"] != "3.1.0" {
		t.Errorf("openapi %v", doc["openapi"])
	}
	if url := doc["servers"].([]any)[0].(map[string]any)["url"]; url != r.http.URL {
		t.Errorf("server %v, want %s", url, r.http.URL)
	}
	seen := map[string]bool{}
	for path, item := range doc["paths"].(map[string]any) {
		for method, o := range item.(map[string]any) {
			op := o.(map[string]any)
			id, _ := op["operationId"].(string)
			if id == "" || seen[id] {
				t.Errorf("%s %s: operationId %q", method, path, id)
			}
			seen[id] = true
			if op["tags"] == nil || op["x-crownest-required-scope"] == nil {
				t.Errorf("%s: no tag or scope", id)
			}
			for _, status := range []string{"400", "401", "403", "404", "429"} {
				if op["responses"].(map[string]any)[status] == nil {
					t.Errorf("%s: no response %s", id, status)
				}
			}
		}
	}
	for _, id := range strings.Fields(`getOpenApi getApiLlmsTxt getApiCatalog getOAuthProtectedResource listProjects createProject
		getUsage listApiKeys getApiKey revokeApiKey listTemplates getTemplate createSandbox listSandboxes getSandbox extendSandbox
		killSandbox runCommand startCommand createCommand listCommands getCommand cancelCommand listCommandLogs streamCommandLogs
		createCommandLogsDownloadUrl downloadCommandLogs listFiles statFile readFile writeFile deleteFile makeDirectory moveFile
		createFileDownloadUrl downloadFile createFileUploadUrl uploadFile createArtifact listArtifacts getArtifact downloadArtifact
		createArtifactDownloadUrl deleteArtifact listAuditEvents verifyAuditEvents`) {
		if !seen[id] {
			t.Errorf("operation %s is missing", id)
		}
		delete(seen, id)
	}
	if len(seen) > 0 {
		t.Errorf("operations beyond the contract: %v", seen)
	}
	if bytes.Contains(a.body, []byte("$schema")) {
		t.Error("the document mentions $schema")
	}
}

func TestDiscovery(t *testing.T) {
	r := newRig(t)
	for path, media := range map[string]string{
		"/llms.txt":                             "text/markdown; charset=utf-8",
		"/.well-known/api-catalog":              "application/linkset+json",
		"/.well-known/oauth-protected-resource": "application/json; charset=utf-8",
		"/healthz":                              "application/json; charset=utf-8", "/readyz": "application/json; charset=utf-8",
	} {
		a := r.do("GET", path, "", "Authorization", "")
		if a.status != 200 || a.header.Get("Content-Type") != media || len(a.body) == 0 {
			t.Errorf("%s: %d %s", path, a.status, a.header.Get("Content-Type"))
		}
		if head := r.do("HEAD", path, "", "Authorization", ""); head.status != 200 || len(head.body) != 0 {
			t.Errorf("HEAD %s: %d", path, head.status)
		}
	}
	meta := r.do("GET", "/.well-known/oauth-protected-resource", "").json(t)
	if meta["resource"] != r.http.URL || meta["authorization_servers"] == nil {
		t.Errorf("metadata %v", meta)
	}
}

func TestNotReady(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Ready = func() bool { return false } })
	if a := r.do("GET", "/readyz", ""); a.status != 503 {
		t.Errorf("readyz %d", a.status)
	}
}

// TestOrderOfChecks holds the order of contract section 1.2.
func TestOrderOfChecks(t *testing.T) {
	r := newRig(t)
	reader, _ := r.newKey(sandbox.ScopeSandboxRead)
	other, _ := r.newKey(sandbox.ScopeSandboxRead)
	unknown := "cn_live_" + strings.Repeat("A", 43)
	id := sandbox.NewID("sbx")
	for _, tc := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		code                     string
	}{
		{"unknown route before credential", "GET", "/v1/nothing", "", []string{"Authorization", ""}, 404, "not_found"},
		{"later milestones", "POST", "/v1/workspace-runs", "{}", nil, 404, "not_found"},
		{"double slash", "GET", "/v1//sandboxes", "", nil, 404, "not_found"},
		{"trailing slash", "GET", "/v1/sandboxes/", "", nil, 404, "not_found"},
		{"dots", "GET", "/v1/x/../sandboxes", "", nil, 404, "not_found"},
		{"encoded dots", "GET", "/v1/%2e%2e/v1/sandboxes", "", nil, 404, "not_found"},
		{"method before credential", "PUT", "/v1/sandboxes", "", []string{"Authorization", ""}, 405, "method_not_allowed"},
		{"HEAD only on downloads", "HEAD", "/v1/sandboxes", "", nil, 405, ""},
		{"no credential", "GET", "/v1/sandboxes", "", []string{"Authorization", ""}, 401, "unauthorized"},
		{"malformed key", "GET", "/v1/sandboxes", "", []string{"Authorization", "Bearer nope"}, 401, "invalid_api_key"},
		{"unknown key", "GET", "/v1/sandboxes", "", []string{"Authorization", "Bearer " + unknown}, 401, "invalid_api_key"},
		{"not bearer", "GET", "/v1/sandboxes", "", []string{"Authorization", "Basic eDp5"}, 401, "invalid_api_key"},
		{"other header", "GET", "/v1/sandboxes", "", []string{"Authorization", "", "X-Api-Key", reader}, 200, ""},
		{"both headers", "GET", "/v1/sandboxes", "", []string{"Authorization", "Bearer " + reader, "X-Api-Key", reader}, 200, ""},
		{"different headers", "GET", "/v1/sandboxes", "", []string{"Authorization", "Bearer " + reader, "X-Api-Key", other}, 401, "invalid_api_key"},
		{"bearer in lower case", "GET", "/v1/sandboxes", "", []string{"Authorization", "bearer " + reader}, 200, ""},
		{"scope before validation", "POST", "/v1/sandboxes", "not json", []string{"Authorization", "Bearer " + reader}, 403, "forbidden"},
		{"scope before malformed id", "DELETE", "/v1/sandboxes/nope", "", []string{"Authorization", "Bearer " + reader}, 403, "forbidden"},
		{"validation before visibility", "POST", "/v1/sandboxes/" + id + "/extend", `{"ttlMs":0}`, nil, 400, "invalid_request"},
		{"malformed id", "GET", "/v1/sandboxes/nope", "", nil, 404, "not_found"},
		{"id of another kind", "GET", "/v1/sandboxes/" + sandbox.NewID("cmd"), "", nil, 404, "not_found"},
		{"encoded slash in id", "GET", "/v1/sandboxes/a%2fb", "", nil, 404, "not_found"},
		{"unknown id", "GET", "/v1/sandboxes/" + id, "", nil, 404, "not_found"},
		{"keys make no keys", "POST", "/v1/api-keys", `{"name":"x","scopes":["sandbox:read"]}`, nil, 403, "forbidden"},
		{"keys make no keys, without credential", "POST", "/v1/api-keys", `{}`, []string{"Authorization", ""}, 401, "unauthorized"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := r.do(tc.method, tc.path, tc.body, tc.headers...)
			if a.status != tc.status {
				t.Fatalf("status %d, want %d: %s", a.status, tc.status, a.body)
			}
			if tc.code != "" {
				if code, _ := a.errorOf(t); code != tc.code {
					t.Errorf("code %s, want %s", code, tc.code)
				}
			}
			challenge := a.header.Get("WWW-Authenticate")
			want := `Bearer resource_metadata="` + r.http.URL + `/.well-known/oauth-protected-resource"`
			switch {
			case tc.code == "invalid_api_key" && challenge != want+`, error="invalid_token"`,
				tc.code == "unauthorized" && challenge != want,
				a.status != 401 && challenge != "":
				t.Errorf("WWW-Authenticate %q", challenge)
			}
		})
	}
	if a := r.do("PATCH", "/v1/sandboxes", ""); a.header.Get("Allow") != "GET, POST" {
		t.Errorf("Allow %q", a.header.Get("Allow"))
	}
	a := r.do("POST", "/v1/sandboxes", "{}", "Authorization", "Bearer "+reader)
	if _, details := a.errorOf(t); details["requiredScope"] != "sandbox:create" {
		t.Errorf("details %v", details)
	}
	if len(r.denied) == 0 {
		t.Error("refusals were not reported")
	}
}

func TestRequestBodies(t *testing.T) {
	r := newRig(t)
	sbx := "/v1/sandboxes/" + r.sandbox()
	keys := func(n int) string {
		var b strings.Builder
		for i := range n {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(`"k` + itoa(i) + `":"v"`)
		}
		return b.String()
	}
	for _, tc := range []struct {
		name, method, path, body, contentType string
		status                                int
		code                                  string
	}{
		{"empty", "POST", "/v1/sandboxes", "", "", 201, ""},
		{"null", "POST", "/v1/sandboxes", "null", "", 201, ""},
		{"null members", "POST", "/v1/sandboxes", `{"ttlMs":null,"metadata":null,"network":null,"template":null}`, "", 201, ""},
		{"unknown members", "POST", "/v1/sandboxes", `{"futureThing":{"a":[1,2]},"_crownestRequireCommandRead":false}`, "", 201, ""},
		{"other case is unknown", "POST", "/v1/sandboxes", `{"TTLMS":-5}`, "", 201, ""},
		{"charset", "POST", "/v1/sandboxes", `{}`, "application/json; charset=UTF-8", 201, ""},
		{"other charset", "POST", "/v1/sandboxes", `{}`, "application/json; charset=latin1", 400, "invalid_request"},
		{"text", "POST", "/v1/sandboxes", `{}`, "text/plain", 400, "invalid_request"},
		{"form", "POST", "/v1/sandboxes", `a=b`, "application/x-www-form-urlencoded", 400, "invalid_request"},
		{"not json", "POST", "/v1/sandboxes", `{`, "", 400, "invalid_request"},
		{"two values", "POST", "/v1/sandboxes", `{}{}`, "", 400, "invalid_request"},
		{"array", "POST", "/v1/sandboxes", `[]`, "", 400, "invalid_request"},
		{"string", "POST", "/v1/sandboxes", `"x"`, "", 400, "invalid_request"},
		{"bad utf-8", "POST", "/v1/sandboxes", "{\"template\":\"\xff\"}", "", 400, "invalid_request"},
		{"lone surrogate", "POST", "/v1/sandboxes", `{"template":"\ud800"}`, "", 400, "invalid_request"},
		{"doubled member", "POST", "/v1/sandboxes", `{"ttlMs":1000,"ttlMs":2000}`, "", 400, "invalid_request"},
		{"deep", "POST", "/v1/sandboxes", strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000), "", 400, "invalid_request"},
		{"ttl text", "POST", "/v1/sandboxes", `{"ttlMs":"1000"}`, "", 400, "invalid_request"},
		{"ttl fraction", "POST", "/v1/sandboxes", `{"ttlMs":1.5}`, "", 400, "invalid_request"},
		{"ttl zero", "POST", "/v1/sandboxes", `{"ttlMs":0}`, "", 400, "invalid_request"},
		{"ttl huge", "POST", "/v1/sandboxes", `{"ttlMs":1e300}`, "", 400, "invalid_request"},
		{"ttl whole float", "POST", "/v1/sandboxes", `{"ttlMs":1000.0}`, "", 201, ""},
		{"template type", "POST", "/v1/sandboxes", `{"template":7}`, "", 400, "invalid_request"},
		{"NUL", "POST", "/v1/sandboxes", `{"template":"a\u0000"}`, "", 400, "invalid_request"},
		{"metadata null value", "POST", "/v1/sandboxes", `{"metadata":{"a":null}}`, "", 400, "invalid_metadata_value"},
		{"metadata number", "POST", "/v1/sandboxes", `{"metadata":{"a":1}}`, "", 400, "invalid_metadata_value"},
		{"metadata key", "POST", "/v1/sandboxes", `{"metadata":{"a b":"1"}}`, "", 400, "invalid_metadata_key"},
		{"metadata long", "POST", "/v1/sandboxes", `{"metadata":{"a":"` + strings.Repeat("x", 513) + `"}}`, "", 400, "invalid_metadata_value"},
		{"metadata many", "POST", "/v1/sandboxes", `{"metadata":{` + keys(17) + `}}`, "", 400, "metadata_too_many_keys"},
		{"metadata array", "POST", "/v1/sandboxes", `{"metadata":[]}`, "", 400, "invalid_request"},
		{"allow without allowlist", "POST", "/v1/sandboxes", `{"network":{"egress":"none","allow":["a.example"]}}`, "", 400, "invalid_request"},
		{"egress unknown", "POST", "/v1/sandboxes", `{"network":{"egress":"some"}}`, "", 400, "invalid_request"},
		{"egress null in list", "POST", "/v1/sandboxes", `{"network":{"egress":"allowlist","allow":[null]}}`, "", 400, "invalid_request"},
		{"project name empty", "POST", "/v1/projects", `{"name":""}`, "", 400, "invalid_request"},
		{"project name missing", "POST", "/v1/projects", ``, "", 400, "invalid_request"},
		{"project name long", "POST", "/v1/projects", `{"name":"` + strings.Repeat("x", 129) + `"}`, "", 400, "invalid_request"},
		{"project", "POST", "/v1/projects", `{"name":"` + strings.Repeat("ä", 128) + `"}`, "", 201, ""},
		{"command missing", "POST", sbx + "/commands/run", `{}`, "", 400, "invalid_request"},
		{"command empty", "POST", sbx + "/commands/run", `{"command":""}`, "", 400, "invalid_request"},
		{"command NUL", "POST", sbx + "/commands/run", `{"command":"a\u0000b"}`, "", 400, "invalid_request"},
		{"command long", "POST", sbx + "/commands/run", `{"command":"` + strings.Repeat("x", 256<<10+1) + `"}`, "", 400, "invalid_request"},
		{"command longest", "POST", sbx + "/commands/run", `{"command":"` + strings.Repeat("x", 256<<10) + `"}`, "", 200, ""},
		{"command long in bytes", "POST", sbx + "/commands/run", `{"command":"` + strings.Repeat("ä", 200<<10) + `"}`, "", 400, "invalid_request"},
		{"run timeout", "POST", sbx + "/commands/run", `{"command":"x","timeoutMs":600001}`, "", 400, "invalid_request"},
		{"start timeout", "POST", sbx + "/commands/start", `{"command":"x","timeoutMs":600001}`, "", 202, ""},
		{"env reserved", "POST", sbx + "/commands/run", `{"command":"x","env":{"CROWNEST_X":"1"}}`, "", 400, "reserved_env_key"},
		{"env name", "POST", sbx + "/commands/run", `{"command":"x","env":{"1A":"1"}}`, "", 400, "invalid_request"},
		{"env null", "POST", sbx + "/commands/run", `{"command":"x","env":{"A":null}}`, "", 400, "invalid_request"},
		{"env large", "POST", sbx + "/commands/run", `{"command":"x","env":{"A":"` + strings.Repeat("x", 64<<10) + `"}}`, "", 400, "invalid_request"},
		{"collect on start", "POST", sbx + "/commands/start", `{"command":"x","collect":[{"path":"a"}]}`, "", 400, "invalid_request"},
		{"collectOn on start", "POST", sbx + "/commands/start", `{"command":"x","collectOn":"always"}`, "", 400, "invalid_request"},
		{"flags on start", "POST", sbx + "/commands/start", `{"command":"x","collect":[],"_crownestRequireCommandRead":false}`, "", 202, ""},
		{"collect name", "POST", sbx + "/commands/run", `{"command":"x","collect":[{"path":"a","name":"b/c"}]}`, "", 400, "invalid_request"},
		{"collect many", "POST", sbx + "/commands/run", `{"command":"x","collect":[` + strings.Repeat(`{"path":"a"},`, 50) + `{"path":"a"}]}`, "", 400, "invalid_request"},
		{"collectOn", "POST", sbx + "/commands/run", `{"command":"x","collectOn":"never"}`, "", 400, "invalid_request"},
		{"cancel mode", "POST", "/v1/commands/" + sandbox.NewID("cmd") + "/cancel", `{"mode":"x"}`, "", 400, "invalid_request"},
		{"file encoding", "PUT", sbx + "/files", `{"path":"a","content":"x","encoding":"hex"}`, "", 400, "invalid_file_encoding"},
		{"file encoding type", "PUT", sbx + "/files", `{"path":"a","content":"x","encoding":1}`, "", 400, "invalid_file_encoding"},
		{"file bad base64", "PUT", sbx + "/files", `{"path":"a","content":"abc","encoding":"base64"}`, "", 400, "invalid_file_encoding"},
		{"file base64 with newline", "PUT", sbx + "/files", `{"path":"a","content":"YW\nJj","encoding":"base64"}`, "", 400, "invalid_file_encoding"},
		{"file base64", "PUT", sbx + "/files", `{"path":"/workspace/b","content":"YWJj","encoding":"base64","createParents":false,"overwrite":false}`, "", 200, ""},
		{"file content missing", "PUT", sbx + "/files", `{"path":"a"}`, "", 400, "invalid_request"},
		{"file path NUL", "PUT", sbx + "/files", `{"path":"a\u0000","content":"x"}`, "", 400, "invalid_request"},
		{"file path long", "PUT", sbx + "/files", `{"path":"` + strings.Repeat("a", 4097) + `","content":"x"}`, "", 400, "invalid_request"},
		{"upload digest", "POST", sbx + "/files/upload-url", `{"path":"a","sha256":"xyz"}`, "", 400, "invalid_request"},
		{"upload size", "POST", sbx + "/files/upload-url", `{"path":"a","sizeBytes":-1}`, "", 400, "invalid_request"},
		{"download of a directory", "POST", sbx + "/files/download-url", `{"path":"/workspace"}`, "", 400, "path_is_directory"},
		{"artifact name", "POST", sbx + "/artifacts", `{"path":"a","name":"b\u0007"}`, "", 400, "invalid_request"},
		{"delete with junk", "DELETE", sbx + "/files?path=/workspace/hello.txt", `junk`, "", 400, "invalid_request"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var headers []string
			if tc.contentType != "" {
				headers = []string{"Content-Type", tc.contentType}
			}
			a := r.do(tc.method, tc.path, tc.body, headers...)
			if a.status != tc.status {
				t.Fatalf("status %d, want %d: %.300s", a.status, tc.status, a.body)
			}
			if tc.code != "" {
				if code, _ := a.errorOf(t); code != tc.code {
					t.Errorf("code %s, want %s: %s", code, tc.code, a.body)
				}
			}
		})
	}
}

func TestBodyLimit(t *testing.T) {
	r := newRig(t)
	for _, size := range []int{4<<20 + 1, 40 << 20} {
		a := r.do("POST", "/v1/sandboxes", `{"template":"`+strings.Repeat("x", size)+`"}`)
		code, details := a.errorOf(t)
		if a.status != 413 || code != "request_too_large" || details["maxBytes"] != float64(4<<20) {
			t.Errorf("%d: %d %s %v", size, a.status, code, details)
		}
	}
	if r.called("CreateSandbox") != 0 {
		t.Error("something was made")
	}
}

func TestQueryParameters(t *testing.T) {
	r := newRig(t)
	sbx := "/v1/sandboxes/" + r.sandbox()
	cmd := "/v1/commands/" + sandbox.NewID("cmd")
	for query, want := range map[string]int{
		"/v1/sandboxes?limit=1": 200, "/v1/sandboxes?limit=9999": 200, "/v1/sandboxes?limit=99999999999999999999": 200,
		"/v1/sandboxes?limit=0": 400, "/v1/sandboxes?limit=-1": 400, "/v1/sandboxes?limit=x": 400, "/v1/sandboxes?limit=": 400, "/v1/sandboxes?limit=1.5": 400,
		"/v1/sandboxes?cursor=x": 400, "/v1/sandboxes?cursor=" + (cursor{time.Now(), sandbox.NewID("cmd")}).encode(): 400,
		"/v1/sandboxes?include=historical": 200, "/v1/sandboxes?include=all": 400,
		"/v1/sandboxes?metadata.a.b=1&metadata.c=2": 200, "/v1/sandboxes?metadata.a%20b=1": 400, "/v1/sandboxes?metadata.=1": 400,
		"/v1/sandboxes?unknown=1": 200, "/v1/sandboxes?a=%zz": 400, "/v1/sandboxes?projectId=%00": 400, "/v1/sandboxes?projectId=%ff": 400,
		"/v1/usage?include=events": 200, "/v1/usage?include=x": 400,
		"/v1/templates?limit=1": 200, "/v1/templates/base": 200, "/v1/templates/nope": 404, "/v1/templates/..%2f": 404,
		"/v1/projects": 200, "/v1/api-keys": 200, "/v1/audit-events?since=2026-01-01T00:00:00Z": 200, "/v1/audit-events?since=yesterday": 400,
		"/v1/audit-events/verify": 200,
		cmd + "/logs?afterSeq=-1": 400, cmd + "/logs?afterSeq=x": 400, cmd + "/logs?afterSeq=0": 404, cmd + "/stream?afterSeq=x": 400,
		sbx + "/files": 200, sbx + "/files?path=%2Fworkspace": 200, sbx + "/files?path=": 200, sbx + "/files/stat": 400, sbx + "/files/stat?path=": 400,
		sbx + "/files/read?path=/workspace/hello.txt":            200,
		sbx + "/files/read?path=/workspace/hello.txt&encoding=x": 400,
		sbx + "/files/read?path=/workspace/bin":                  400,
		sbx + "/files/read?path=/workspace/bin&encoding=base64":  200,
		sbx + "/files/stat?path=" + strings.Repeat("a", 5000):    400,
		sbx + "/files/stat?path=a%00b":                           400,
		cmd + "/logs/download?stream=x":                          400,
	} {
		if a := r.do("GET", query, ""); a.status != want {
			t.Errorf("%s: %d, want %d: %.200s", query, a.status, want, a.body)
		}
	}
	code, _ := r.do("GET", sbx+"/files/read?path=/workspace/bin", "").errorOf(t)
	if code != "invalid_file_encoding" {
		t.Errorf("code %s", code)
	}
	if code, _ := r.do("GET", sbx+"/files/read?path=a&encoding=x", "").errorOf(t); code != "invalid_file_encoding" {
		t.Errorf("code %s", code)
	}
}

func TestPages(t *testing.T) {
	r := newRig(t)
	for range 7 {
		r.sandbox()
	}
	seen := map[string]bool{}
	path := "/v1/sandboxes?limit=3"
	for pages := 1; ; pages++ {
		page := r.do("GET", path, "").json(t)
		for _, item := range page["data"].([]any) {
			id := item.(map[string]any)["id"].(string)
			if seen[id] {
				t.Errorf("%s came twice", id)
			}
			seen[id] = true
		}
		next, more := page["nextCursor"].(string)
		if more != page["hasMore"].(bool) {
			t.Errorf("hasMore %v with cursor %q", page["hasMore"], next)
		}
		if !more {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		r.sandbox() // does not shift the pages to come
		path = "/v1/sandboxes?limit=3&cursor=" + next
	}
	if len(seen) != 7 {
		t.Errorf("saw %d of 7", len(seen))
	}
	slugs := 0
	for path := "/v1/templates?limit=3"; path != ""; {
		page := r.do("GET", path, "").json(t)
		slugs += len(page["data"].([]any))
		path = ""
		if next, ok := page["nextCursor"].(string); ok {
			path = "/v1/templates?limit=3&cursor=" + next
		}
	}
	if slugs != 4 {
		t.Errorf("%d templates", slugs)
	}
}

func TestConditionalScopes(t *testing.T) {
	r := newRig(t)
	sbx := "/v1/sandboxes/" + r.sandbox()
	runner, _ := r.newKey(sandbox.ScopeCommandRun)
	as := []string{"Authorization", "Bearer " + runner}
	for _, tc := range []struct {
		path, body string
		headers    []string
		status     int
		scope      string
	}{
		{"/commands/run", `{"command":"x"}`, as, 200, ""},
		{"/commands/run", `{"command":"x","collect":[]}`, as, 200, ""},
		{"/commands/run", `{"command":"x","collect":[{"path":"a"}]}`, as, 403, "artifact:create"},
		{"/commands/run", `{"command":"x","_crownestRequireCommandRead":true}`, as, 403, "command:read"},
		{"/commands/start", `{"command":"x","_crownestRequireCommandRead":true}`, as, 403, "command:read"},
		{"/commands", `{"command":"x"}`, as, 200, ""},
		{"/commands", `{"command":"x"}`, append([]string{"Accept", "text/event-stream"}, as...), 403, "command:read"},
		{"/commands", `{"command":"x"}`, append([]string{"Accept", "text/event-stream;q=0"}, as...), 200, ""},
	} {
		before := r.called("started")
		a := r.do("POST", sbx+tc.path, tc.body, tc.headers...)
		if a.status != tc.status {
			t.Errorf("%s %s: %d %s", tc.path, tc.body, a.status, a.body)
			continue
		}
		if tc.scope != "" {
			if _, details := a.errorOf(t); details["requiredScope"] != tc.scope {
				t.Errorf("%s %s: %v", tc.path, tc.body, details)
			}
			if r.called("started") != before {
				t.Errorf("%s %s: something was started", tc.path, tc.body)
			}
		}
	}
}

func TestInternalErrors(t *testing.T) {
	r := newRig(t)
	r.getSandbox = func(_ context.Context, _ control.Call, id string) (sandbox.Sandbox, error) {
		if strings.HasSuffix(id, "p") {
			panic("secret cause")
		}
		return sandbox.Sandbox{}, errors.New("secret cause")
	}
	for _, last := range []string{"p", "q"} {
		id := "sbx_" + strings.Repeat("0", 25) + last
		a := r.do("GET", "/v1/sandboxes/"+id, "")
		code, details := a.errorOf(t)
		if a.status != 500 || code != "internal_error" || details["requestId"] != a.header.Get("X-Request-Id") {
			t.Errorf("%d %s %v", a.status, code, details)
		}
		if strings.Contains(string(a.body), "secret") {
			t.Errorf("the cause leaked: %s", a.body)
		}
		if n := strings.Count(r.logged.String(), a.header.Get("X-Request-Id")); n != 1 {
			t.Errorf("logged %d times", n)
		}
	}
}

func TestRateLimit(t *testing.T) {
	r := newRig(t, func(o *Options) { o.RateLimit = RateLimit{PerMinute: 60, Burst: 3} })
	now := time.Now()
	r.api.limiter.now = func() time.Time { return now }
	for i, want := range []int{200, 200, 200, 429} {
		a := r.do("GET", "/v1/projects", "")
		if a.status != want || a.header.Get("RateLimit-Limit") != "60" || a.header.Get("RateLimit-Remaining") != itoa(max(0, 2-i)) || a.header.Get("RateLimit-Reset") == "" {
			t.Errorf("request %d: %d %v", i, a.status, a.header)
		}
		if want == 429 {
			if code, _ := a.errorOf(t); code != "rate_limited" || a.header.Get("Retry-After") != "1" {
				t.Errorf("%s %v", code, a.header)
			}
		}
	}
	now = now.Add(time.Second)
	for i := range 10 {
		if a := r.do("GET", "/v1/commands/"+sandbox.NewID("cmd"), ""); a.status != 404 {
			t.Errorf("cheap request %d: %d", i, a.status)
		}
	}
	if a := r.do("GET", "/v1/projects", ""); a.status != 429 {
		t.Errorf("%d", a.status)
	}
	if a := r.do("GET", "/healthz", ""); a.status != 200 {
		t.Errorf("%d", a.status)
	}
	l := newLimiter(RateLimit{PerMinute: 60, Burst: 1})
	for i := range 2*maxBuckets + 1 {
		l.take(itoa(i), 1)
	}
	if len(l.buckets) > maxBuckets {
		t.Errorf("%d buckets", len(l.buckets))
	}
}

func TestCORS(t *testing.T) {
	r := newRig(t, func(o *Options) { o.CORSOrigins = []string{"https://app.example"} })
	a := r.do("OPTIONS", "/v1/sandboxes", "", "Origin", "https://app.example", "Access-Control-Request-Method", "POST", "Authorization", "")
	if a.status != 204 || a.header.Get("Access-Control-Allow-Origin") != "https://app.example" {
		t.Errorf("%d %v", a.status, a.header)
	}
	if a := r.do("GET", "/v1/sandboxes", "", "Origin", "https://evil.example"); a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("%v", a.header)
	}
	if a := r.do("OPTIONS", "/v1/sandboxes", "", "Origin", "https://evil.example", "Access-Control-Request-Method", "POST"); a.status != 405 {
		t.Errorf("%d", a.status)
	}
}

func TestBaseURL(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	forwarded := []string{"X-Forwarded-Proto", "https", "X-Forwarded-Host", "api.example", "X-Forwarded-For", "203.0.113.9"}
	for _, tc := range []struct {
		name    string
		change  func(*Options)
		prefix  string
		headers []string
		want    string
	}{
		{"request", func(*Options) {}, "", forwarded, ""},
		{"trusted proxy", func(o *Options) { o.TrustedProxies = loopback }, "", forwarded, "https://api.example"},
		{"public URL", func(o *Options) { o.PublicURL = "https://p.example/x/" }, "", nil, "https://p.example/x"},
		{"prefix", func(o *Options) { o.PathPrefix = "/crow/" }, "/crow", nil, "+/crow"},
		{"bad forwarded host", func(o *Options) { o.TrustedProxies = loopback }, "", []string{"X-Forwarded-Host", `a"b`}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, tc.change)
			want := tc.want
			if want == "" || want[0] == '+' {
				want = r.http.URL + strings.TrimPrefix(want, "+")
			}
			got := r.do("GET", tc.prefix+"/.well-known/oauth-protected-resource", "", tc.headers...).json(t)["resource"]
			if got != want {
				t.Errorf("base %v, want %s", got, want)
			}
			if tc.prefix != "" {
				if a := r.do("GET", "/v1/projects", ""); a.status != 404 {
					t.Errorf("without prefix %d", a.status)
				}
				if a := r.do("GET", tc.prefix+"/v1/projects", ""); a.status != 200 {
					t.Errorf("with prefix %d", a.status)
				}
			}
		})
	}
	s := &Server{opts: Options{TrustedProxies: loopback}}
	req := &http.Request{RemoteAddr: "127.0.0.1:5", Header: http.Header{"X-Forwarded-For": {"198.51.100.1, 203.0.113.9", "127.0.0.2"}}}
	if ip := s.clientIP(req); ip != "203.0.113.9" {
		t.Errorf("client %s", ip)
	}
}

func TestTimes(t *testing.T) {
	r := newRig(t)
	sb := r.do("POST", "/v1/sandboxes", "").json(t)["sandbox"].(map[string]any)
	for _, name := range []string{"createdAt", "expiresAt"} {
		if _, err := time.Parse("2006-01-02T15:04:05.000Z", sb[name].(string)); err != nil || len(sb[name].(string)) != 24 {
			t.Errorf("%s: %v", name, sb[name])
		}
	}
	if sb["metadata"] == nil || sb["destroyedAt"] != nil {
		t.Errorf("%v", sb)
	}
	usage := r.do("GET", "/v1/usage?include=events", "")
	if !bytes.Contains(usage.body, []byte(`"resetAt":null`)) || !bytes.Contains(usage.body, []byte(`"used":1.235`)) {
		t.Errorf("%s", usage.body)
	}
}
