package cli

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A key made where the server does not look for it must not look like success.
func TestAdminKeysWithoutADatabase(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	for _, line := range []string{"admin keys list", "admin keys revoke key_1"} {
		code, out, errs := run(t, "", append(strings.Fields(line), "--data", data)...)
		if code != 1 || out != "" || !strings.Contains(errs, "there is no database in "+data) || !strings.Contains(errs, "--data") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", line, code, out, errs)
		}
		if _, err := os.Stat(data); err == nil {
			t.Fatalf("%s made the data directory", line)
		}
	}
	code, out, errs := run(t, "", "admin", "keys", "create", "--name", "x", "--project", "nowhere", "--data", data)
	if code != 1 || out != "" || strings.Contains(errs, "WARNING") {
		t.Errorf("failed create: exit %d, stdout %q, stderr %q", code, out, errs)
	}
	data = filepath.Join(t.TempDir(), "first")
	for i, want := range []string{"crownest: WARNING: there was no database in " + data, ""} {
		code, out, errs := run(t, "", "admin", "keys", "create", "--name", "x", "--data", data)
		if code != 0 || !strings.HasPrefix(out, "cn_live_") || strings.Count(out, "\n") != 1 || !strings.HasPrefix(errs, want) || (want == "" && errs != "") {
			t.Errorf("create %d: exit %d, stdout %q, stderr %q", i, code, out, errs)
		}
	}
}

func TestHints(t *testing.T) {
	newFakeAPI(t, map[string]http.HandlerFunc{
		"POST /v1/sandboxes":     answer(404, `{"error":{"code":"not_found","message":"No such template: x."}}`),
		"GET /v1/usage":          answer(401, `{"error":{"code":"invalid_api_key","message":"no"}}`),
		"GET /v1/templates/odd":  answer(418, `{"error":{"code":"teapot","message":"no"}}`),
		"GET /v1/artifacts/none": answer(404, `{"error":{"code":"not_found","message":"nothing"}}`),
	})
	for _, tc := range []struct {
		line, want string
	}{
		{"sandboxes create --template x", "see `crownest templates list`"},
		{"artifacts get none", "see `crownest artifacts list SANDBOX`"},
		{"sandboxes get none", "see `crownest sandboxes list --historical`"},
		{"templates get none", "see `crownest templates list`"},
		{"keys revoke none", "see `crownest keys list`"},
		{"usage", "was the key made with the server's --data?"},
		{"templates get odd", "see `crownest templates get --help`"},
		{"sandboxes create --ttl-ms 0", "see `crownest sandboxes create --help`"},
		{"sandboxes create --ttl-ms abc", `--ttl-ms wants a whole number of milliseconds, not "abc"`},
		{"commands run sbx_1 --timeout-ms 5s -- ls", `--timeout-ms wants a whole number of milliseconds, not "5s"`},
		{"serve --pool x", `--pool wants a whole number, not "x"`},
		{"serve --dev=perhaps", `--dev wants true or false, not "perhaps"`},
		{"doctor --config missing.yaml", "name a file that exists"},
	} {
		code, out, errs := run(t, "", strings.Fields(tc.line)...)
		if code == 0 || out != "" || !strings.Contains(errs, tc.want) || strings.Contains(errs, "strconv") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q, want %q", tc.line, code, out, errs, tc.want)
		}
	}
}

// Who named no server learns which one was asked, and the keys commands do not
// send anybody to a login that they do not use.
func TestUnreachableHints(t *testing.T) {
	t.Setenv("CROWNEST_CONFIG_PATH", filepath.Join(t.TempDir(), "none"))
	t.Setenv("CROWNEST_API_KEY", "cn_live_test")
	a := newApp(Stdio{})
	if _, err := a.client(); err != nil || !strings.Contains(a.unreachable, "CROWNEST_API_URL="+localURL) {
		t.Errorf("hint %q, %v", a.unreachable, err)
	}
	t.Setenv("CROWNEST_API_URL", "http://127.0.0.1:1")
	if code, _, errs := run(t, "", "usage"); code != 1 || !strings.Contains(errs, "login --api-url") {
		t.Errorf("exit %d, stderr %q", code, errs)
	}
	if code, _, errs := run(t, "", "keys", "list"); code != 1 || strings.Contains(errs, "login --api-url") || !strings.Contains(errs, "that --api-url or CROWNEST_API_URL names it") {
		t.Errorf("exit %d, stderr %q", code, errs)
	}
}

func TestTemplateForPeople(t *testing.T) {
	const template = `{"id":"tpl_1","slug":"python","versions":[{"id":"tplv_1","version":"1","imageSizeBytes":5,` +
		`"createdAt":"2026-11-22T10:00:00.000Z","contents":{"os":"debian","runtimes":{"python":"3.11"},"packages":["a=1","b=2"]}}]}`
	newFakeAPI(t, map[string]http.HandlerFunc{"GET /v1/templates/python": answer(200, `{"template":`+template+`}`)})
	want := "id: tpl_1\nslug: python\n\nid\tversion\tsize\tcreatedAt\truntimes\ntplv_1\t1\t5\t2026-11-22T10:00:00.000Z\t{\"python\":\"3.11\"}\n"
	if code, out, errs := run(t, "", "templates", "get", "python"); code != 0 || out != want {
		t.Errorf("exit %d, stderr %q, stdout %q", code, errs, out)
	}
	if _, out, _ := run(t, "", "templates", "get", "python", "--json"); out != `{"data":`+template+"}\n" {
		t.Errorf("stdout %q", out)
	}
}
