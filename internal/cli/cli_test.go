package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"crownest.dev/crownest/internal/sandbox"
)

func TestMain(m *testing.M) {
	// Tests must find neither the credential nor the configuration of whoever runs them.
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "CROWNEST_") {
			_ = os.Unsetenv(name)
		}
	}
	goleak.VerifyTestMain(m,
		// The signal package keeps one goroutine for the life of the process.
		goleak.IgnoreTopFunction("os/signal.loop"),
	)
}

// request is what a fake API saw.
type request struct {
	method, path, query, body string
	header                    http.Header
}

// fakeAPI answers by "METHOD /path" and remembers what it was asked.
type fakeAPI struct {
	*httptest.Server
	t      *testing.T
	routes map[string]http.HandlerFunc

	mu   sync.Mutex
	seen []request
}

func newFakeAPI(t *testing.T, routes map[string]http.HandlerFunc) *fakeAPI {
	f := &fakeAPI{t: t, routes: routes}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	t.Setenv("CROWNEST_API_URL", f.URL)
	t.Setenv("CROWNEST_API_KEY", "cn_live_test")
	t.Setenv("CROWNEST_CONFIG_PATH", filepath.Join(t.TempDir(), "none", "config.json"))
	return f
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	f.seen = append(f.seen, request{r.Method, r.URL.Path, r.URL.RawQuery, string(body), r.Header})
	f.mu.Unlock()
	if h := f.routes[r.Method+" "+r.URL.Path]; h != nil {
		h(w, r)
		return
	}
	answer(404, `{"error":{"code":"not_found","message":"nothing here"}}`)(w, r)
}

func (f *fakeAPI) requests() []request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen)
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func events(lines ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		for _, l := range lines {
			_, _ = fmt.Fprintf(w, "data: %s\n\n", l)
		}
	}
}

// run runs a command line.
func run(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return runContext(t, t.Context(), stdin, args...)
}

func runContext(t *testing.T, ctx context.Context, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Run(ctx, args, Stdio{In: strings.NewReader(stdin), Out: &out, Err: &errs})
	return code, out.String(), errs.String()
}

const sandboxJSON = `{"orgId":"org_1","id":"sbx_1","status":"ready","templateSlug":"python","expiresAt":"2026-11-22T10:00:00.120Z",` +
	`"createdAt":"2026-11-22T09:00:00.000Z","ttlMs":3600000,"metadata":{"a":"b c"},"later":[1,{"x":null}]}`

func TestRecord(t *testing.T) {
	newFakeAPI(t, map[string]http.HandlerFunc{"GET /v1/sandboxes/sbx_1": answer(200, `{"sandbox":`+sandboxJSON+`}`)})
	code, out, errs := run(t, "", "sandboxes", "get", "sbx_1")
	want := `id: sbx_1
status: ready
expiresAt: 2026-11-22T10:00:00.120Z
createdAt: 2026-11-22T09:00:00.000Z
orgId: org_1
templateSlug: python
ttlMs: 3600000
metadata: {"a":"b c"}
later: [1,{"x":null}]
`
	if diff := cmp.Diff(want, out); diff != "" || code != 0 || errs != "" {
		t.Errorf("exit %d, stderr %q, stdout (-want +got):\n%s", code, errs, diff)
	}
	code, out, _ = run(t, "", "sandboxes", "get", "sbx_1", "--json")
	if want := `{"data":` + sandboxJSON + "}\n"; code != 0 || out != want {
		t.Errorf("exit %d, stdout %s, want %s", code, out, want)
	}
}

func TestList(t *testing.T) {
	newFakeAPI(t, map[string]http.HandlerFunc{"GET /v1/sandboxes": func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("cursor") == "" {
			answer(200, `{"data":[`+sandboxJSON+`],"hasMore":true,"nextCursor":"x"}`)(w, r)
			return
		}
		answer(200, `{"data":[{"id":"sbx_0","status":"a\tb\nc\u001b[31m"}],"hasMore":false}`)(w, r)
	}})
	code, out, _ := run(t, "", "sandboxes", "list")
	want := "id\tstatus\ttemplate\texpiresAt\n" +
		"sbx_1\tready\tpython\t2026-11-22T10:00:00.120Z\n" +
		"sbx_0\ta\\tb\\nc\\x1b[31m\t\t\n"
	if code != 0 || out != want {
		t.Errorf("exit %d, stdout %q, want %q", code, out, want)
	}
	_, out, _ = run(t, "", "--json", "sandboxes", "list")
	if want := `{"data":[` + sandboxJSON + `,{"id":"sbx_0","status":"a\tb\nc\u001b[31m"}]}` + "\n"; out != want {
		t.Errorf("stdout %s, want %s", out, want)
	}
}

func TestEmptyListIsAList(t *testing.T) {
	newFakeAPI(t, map[string]http.HandlerFunc{"GET /v1/projects": answer(200, `{"data":[],"hasMore":false}`)})
	if _, out, _ := run(t, "", "projects", "list"); out != "id\tname\torgId\n" {
		t.Errorf("stdout %q", out)
	}
	if _, out, _ := run(t, "", "projects", "list", "--json"); out != "{\"data\":[]}\n" {
		t.Errorf("stdout %q", out)
	}
}

func TestAligned(t *testing.T) {
	rows := [][]string{{"id", "status", "size"}, {"a", "réady", "1"}, {"long", "x", ""}}
	want := "id    status  size\na     réady   1\nlong  x\n"
	if diff := cmp.Diff(want, aligned(rows, false)); diff != "" {
		t.Error(diff)
	}
	if got := aligned(rows, true); !strings.HasPrefix(got, "\x1b[1mid    status  size\x1b[0m\n") {
		t.Errorf("coloured header = %q", got)
	}
}

func TestNoColorWithoutTerminal(t *testing.T) {
	a := newApp(Stdio{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}})
	if a.color || a.outTTY || a.errTTY {
		t.Errorf("a buffer counts as a terminal: %+v", a)
	}
}

func TestErrors(t *testing.T) {
	newFakeAPI(t, map[string]http.HandlerFunc{
		"GET /v1/sandboxes/sbx_1": answer(410, `{"error":{"code":"sandbox_destroyed","message":"It is gone.","details":{"b":{"x":1},"a":"one\nline"}}}`),
		"GET /v1/sandboxes/sbx_2": answer(503, `{"error":{"code":"capacity_exhausted","message":"full"}}`),
		"GET /v1/sandboxes/sbx_3": answer(502, `<html>`),
	})
	for _, tc := range []struct {
		name     string
		args     []string
		wantCode int
		wantText string
		wantJSON string
	}{
		{
			"API error", []string{"sandboxes", "get", "sbx_1"}, 1,
			"error[sandbox_destroyed]: It is gone.\nstatus: 410\n  a: one\\nline\n  b: {\"x\":1}\nhint: create a new sandbox with `crownest sandboxes create`\n",
			`{"error":{"code":"sandbox_destroyed","details":{"a":"one\nline","b":{"x":1}},"message":"It is gone.","remediation":"create a new sandbox with ` + "`crownest sandboxes create`" + `","retryable":false,"status":410}}` + "\n",
		},
		{
			"retryable", []string{"sandboxes", "get", "sbx_2"}, 1,
			"error[capacity_exhausted]: full\nstatus: 503\nhint: try again later, or kill sandboxes that are not needed\n",
			`{"error":{"code":"capacity_exhausted","details":{},"message":"full","remediation":"try again later, or kill sandboxes that are not needed","retryable":true,"status":503}}` + "\n",
		},
		{
			"not an envelope", []string{"sandboxes", "get", "sbx_3"}, 1,
			"error[invalid_error_response]: the server answered 502 without an error envelope: <html>\nstatus: 502\nhint: check that CROWNEST_API_URL names a CrowNest server\n",
			`{"error":{"code":"invalid_error_response","details":{},"message":"the server answered 502 without an error envelope: \u003chtml\u003e","remediation":"check that CROWNEST_API_URL names a CrowNest server","retryable":true,"status":502}}` + "\n",
		},
		{
			"usage", []string{"sandboxes", "get"}, 2,
			"error[usage_error]: crownest sandboxes get takes 1 argument, got 0\nhint: usage: crownest sandboxes get SANDBOX [flags]\n",
			`{"error":{"code":"usage_error","details":{},"message":"crownest sandboxes get takes 1 argument, got 0","remediation":"usage: crownest sandboxes get SANDBOX [flags]","retryable":false,"status":null}}` + "\n",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, out, errs := run(t, "", tc.args...)
			if diff := cmp.Diff(tc.wantText, errs); code != tc.wantCode || out != "" || diff != "" {
				t.Errorf("exit %d, stdout %q, stderr (-want +got):\n%s", code, out, diff)
			}
			code, out, errs = run(t, "", append(tc.args, "--json")...)
			if diff := cmp.Diff(tc.wantJSON, errs); code != tc.wantCode || out != "" || diff != "" {
				t.Errorf("--json: exit %d, stdout %q, stderr (-want +got):\n%s", code, out, diff)
			}
		})
	}
}

func TestUsageErrors(t *testing.T) {
	api := newFakeAPI(t, nil)
	for _, line := range []string{
		"frobnicate", "sandboxes", "sandboxes frobnicate", "sandboxes get", "sandboxes get a b", "sandboxes list extra",
		"sandboxes get --nonsense x", "sandboxes create --ttl-ms soon", "sandboxes create --ttl-ms 0", "sandboxes create --metadata novalue",
		"sandboxes create --network some", "sandboxes create --allow host", "sandboxes extend sbx_1", "sandboxes extend sbx_1 --ttl-ms -5",
		"commands run sbx_1", "commands run sbx_1 --", "commands run -- ls", "commands run sbx_1 sbx_2 -- ls", "commands run sbx_1 ls",
		"commands run sbx_1 --collect-on never -- ls", "commands run sbx_1 --collect-as path -- ls", "commands run sbx_1 --env UNSET_VARIABLE -- ls",
		"commands run sbx_1 --timeout-ms 0 -- ls", "commands start sbx_1 --collect a -- ls",
		"logs", "logs sbx_1", "logs cmd_1 --stream other", "logs cmd_1 --after-seq -1", "logs cmd_1 --output x --after-seq 1",
		"files read sbx_1", "files upload sbx_1 -", "files upload sbx_1 a b --to c", "files move sbx_1 a",
		"audit list --since yesterday", "audit list --limit 0",
		"help frobnicate", "admin keys create", "admin keys create --name x --scope nonsense", "admin keys create --name x --preset other",
		"projects create",
	} {
		code, out, errs := run(t, "", strings.Fields(line)...)
		if code != 2 || out != "" || !(strings.HasPrefix(errs, "error[usage_error]: ") || strings.HasPrefix(errs, "error[unknown_command]: ")) || !strings.Contains(errs, "\nhint: ") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", line, code, out, errs)
		}
	}
	if code, _, errs := run(t, "", "sandboxes", "get", ""); code != 2 {
		t.Errorf("empty argument: exit %d, stderr %q", code, errs)
	}
	if code, out, errs := run(t, "", "artifacts", "download", "art_1", "--json"); code != 2 || out != "" || !strings.Contains(errs, "needs --output") {
		t.Errorf("bytes and envelope: exit %d, stdout %q, stderr %q", code, out, errs)
	}
	if got := api.requests(); len(got) != 0 {
		t.Errorf("the API was asked: %v", got)
	}
}

func TestUnknownCommand(t *testing.T) {
	code, _, errs := run(t, "", "--json", "sandboxs")
	want := `{"error":{"code":"unknown_command","details":{},"message":"unknown command \"sandboxs\" for \"crownest\"","remediation":"did you mean ` + "`crownest sandboxes`" + `?","retryable":false,"status":null}}` + "\n"
	if code != 2 || errs != want {
		t.Errorf("exit %d, stderr %s, want %s", code, errs, want)
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"help", "files", "upload"}, {"files", "upload", "--help"}, {"files", "upload", "-h"}} {
		code, out, errs := run(t, "", args...)
		if code != 0 || errs != "" || !strings.Contains(out, "Examples:\n  crownest files upload sbx_... data.csv\n") {
			t.Errorf("%v: exit %d, stderr %q, stdout %q", args, code, errs, out)
		}
	}
	for _, flag := range []string{"--version", "-V"} {
		if code, out, _ := run(t, "", flag); code != 0 || out != "dev\n" {
			t.Errorf("%s: exit %d, stdout %q", flag, code, out)
		}
	}
	if code, out, _ := run(t, ""); code != 0 || !strings.Contains(out, "Client commands:") {
		t.Errorf("no arguments: exit %d, stdout %q", code, out)
	}
}

// Every command says what it does, checks its arguments and shows an example;
// every flag has a description and a name for its value.
func TestEveryCommandIsFinished(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no description", c.CommandPath())
		}
		if c.Runnable() && !c.HasSubCommands() {
			if !strings.Contains(c.Example, c.CommandPath()) && c.Name() != "help" {
				t.Errorf("%s has no example of itself", c.CommandPath())
			}
			if c.Args == nil && c.Name() != "help" {
				t.Errorf("%s takes any arguments", c.CommandPath())
			}
		}
		for _, line := range strings.Split(c.LocalFlags().FlagUsages(), "\n") {
			if strings.Contains(line, " string ") || strings.Contains(line, " stringArray ") || strings.Contains(line, " int ") {
				t.Errorf("%s: a flag's value has no name: %s", c.CommandPath(), line)
			}
		}
		for _, child := range c.Commands() {
			walk(child)
		}
	}
	walk(newApp(Stdio{}).root())
}

func TestJoinWords(t *testing.T) {
	for _, tc := range []struct {
		words []string
		want  string
	}{
		{[]string{"ls", "-la", "/tmp/a.b_c:d=e@f%g+h"}, "ls -la /tmp/a.b_c:d=e@f%g+h"},
		{[]string{"echo", "a b"}, "echo 'a b'"},
		{[]string{"echo", ""}, "echo ''"},
		{[]string{"echo", "it's"}, `echo 'it'\''s'`},
		{[]string{"bash", "-c", "echo $HOME | wc"}, "bash -c 'echo $HOME | wc'"},
		{[]string{"echo", "~", "*", "ä", "a,b", "\n"}, "echo '~' '*' 'ä' 'a,b' '\n'"},
	} {
		if got := joinWords(tc.words); got != tc.want {
			t.Errorf("joinWords(%q) = %s, want %s", tc.words, got, tc.want)
		}
	}
}

// Whatever the words are, a shell sees the very same ones.
func TestJoinWordsThroughAShell(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.StringMatching(`[^\x00]{0,12}`), 1, 8).Draw(t, "words")
		out, err := exec.Command("bash", "-c", "printf '%s\\0' "+joinWords(words)).Output()
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
		if !slices.Equal(got, words) {
			t.Fatalf("the shell saw %q, want %q", got, words)
		}
	})
}

func TestCredentialOrder(t *testing.T) {
	for _, tc := range []struct {
		name, bearer, key, config string
		want                      string
	}{
		{"bearer token first", "b", "k", `{"apiKey":"c","credential":"d"}`, "Bearer b"},
		{"then the API key", "", "k", `{"apiKey":"c","credential":"d"}`, "Bearer k"},
		{"then the config's credential", "", "", `{"apiKey":"c","credential":"d"}`, "Bearer d"},
		{"then the config's key", "", "", `{"apiKey":"c"}`, "Bearer c"},
		{"a broken config counts as none", "", "k", `{"apiKey":`, "Bearer k"},
		{"none", "", "", `{}`, ""},
		{"none in a broken config", "", "", `[1]`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api := newFakeAPI(t, map[string]http.HandlerFunc{"GET /v1/projects": answer(200, `{"data":[]}`)})
			path := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(path, []byte(tc.config), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("CROWNEST_CONFIG_PATH", path)
			t.Setenv("CROWNEST_BEARER_TOKEN", tc.bearer)
			t.Setenv("CROWNEST_API_KEY", tc.key)
			code, _, errs := run(t, "", "projects", "list")
			if tc.want == "" {
				if code != 1 || !strings.HasPrefix(errs, "error[runtime_error]: no API key\nhint: run `crownest login") || len(api.requests()) != 0 {
					t.Errorf("exit %d, stderr %q, requests %v", code, errs, api.requests())
				}
				return
			}
			if got := api.requests(); code != 0 || len(got) != 1 || got[0].header.Get("Authorization") != tc.want {
				t.Errorf("exit %d, stderr %q, requests %v, want %q", code, errs, got, tc.want)
			}
		})
	}
}

func TestConfiguredURL(t *testing.T) {
	api := newFakeAPI(t, map[string]http.HandlerFunc{"GET /v1/projects": answer(200, `{"data":[]}`)})
	home := t.TempDir()
	t.Setenv("CROWNEST_API_URL", "")
	t.Setenv("CROWNEST_API_KEY", "")
	t.Setenv("CROWNEST_CONFIG_PATH", "")
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("HOME", home)
	if code, _, errs := run(t, "", "login", "--api-key=cn_live_abc", "--api-url", api.URL+"/"); code != 0 {
		t.Fatal(errs)
	}
	if code, _, errs := run(t, "", "projects", "list"); code != 0 {
		t.Fatal(errs)
	}
	info, err := os.Stat(filepath.Join(home, ".config", "crownest", "config.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("config file = %v, %v, want mode 0600", info, err)
	}
}

func TestLogin(t *testing.T) {
	api := newFakeAPI(t, nil)
	dir := filepath.Join(t.TempDir(), "deep", "er")
	path := filepath.Join(dir, "config.json")
	t.Setenv("CROWNEST_CONFIG_PATH", path)

	t.Run("without a key", func(t *testing.T) {
		t.Setenv("CROWNEST_API_KEY", "")
		code, out, errs := run(t, "", "login")
		if code != 0 || errs != "" || !strings.Contains(out, "crownest login --api-key KEY") {
			t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
		}
		if _, err := os.Stat(path); err == nil {
			t.Error("a file was written")
		}
	})
	t.Run("key of the environment", func(t *testing.T) {
		code, out, errs := run(t, "", "login", "--api-url=https://one.example/x/")
		if code != 0 || strings.Contains(out+errs, "cn_live_test") || !strings.Contains(out, "path: "+path+"\n") {
			t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
		}
		assertFile(t, path, `{"apiKey":"cn_live_test","apiUrl":"https://one.example/x/"}`)
	})
	t.Run("replaces key and credential, keeps the URL", func(t *testing.T) {
		t.Setenv("CROWNEST_API_URL", "")
		if err := os.WriteFile(path, []byte(`{"apiKey":"old","credential":"old","apiUrl":"http://kept"}`), 0o644); err != nil {
			t.Fatal(err)
		}
		code, out, errs := run(t, "", "login", "--api-key", "cn_live_new", "--json")
		if want := fmt.Sprintf("{\"data\":{\"status\":\"saved\",\"path\":%q,\"apiUrl\":\"http://kept\"}}\n", path); code != 0 || out != want {
			t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
		}
		assertFile(t, path, `{"apiKey":"cn_live_new","apiUrl":"http://kept"}`)
	})
	t.Run("refuses what could not be used", func(t *testing.T) {
		if code, _, errs := run(t, "", "login", "--api-url", "ftp://x"); code != 1 || !strings.Contains(errs, "the URL cannot be used: ") || !strings.Contains(errs, "not an http or https URL") {
			t.Errorf("exit %d, stderr %q", code, errs)
		}
		if code, _, errs := run(t, "", "login", "--api-key", "two words"); code != 1 || !strings.Contains(errs, "the API key cannot be used: ") || strings.Contains(errs, "two words") {
			t.Errorf("exit %d, stderr %q", code, errs)
		}
		assertFile(t, path, `{"apiKey":"cn_live_new","apiUrl":"http://kept"}`)
	})
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if got := api.requests(); len(got) != 0 {
		t.Errorf("login asked the API: %v", got)
	}
}

func assertFile(t *testing.T, path, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got, wanted any
	if json.Unmarshal(b, &got) != nil || json.Unmarshal([]byte(want), &wanted) != nil || !cmp.Equal(got, wanted) {
		t.Errorf("%s holds %s, want %s", path, b, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of %s = %v, %v, want 0600", path, info.Mode(), err)
	}
}

func TestKeysCommands(t *testing.T) {
	api := newFakeAPI(t, map[string]http.HandlerFunc{
		"POST /v1/api-keys":         answer(201, `{"apiKey":{"id":"key_1","name":"CLI key"},"secret":"cn_live_secret"}`),
		"GET /v1/api-keys":          answer(200, `{"data":[{"id":"key_1","name":"n","prefix":"cn_live_abcd","last4":"wxyz","createdAt":"2026-11-22T10:00:00.000Z"}]}`),
		"DELETE /v1/api-keys/key_1": answer(200, `{"apiKey":{"id":"key_1","name":"n","revokedAt":"2026-11-22T10:00:00.000Z"}}`),
	})
	t.Setenv("CROWNEST_ORG_ID", "org_1")
	t.Setenv("CROWNEST_USER_ID", "usr_1")
	t.Setenv("CROWNEST_ROLE", "owner")
	for _, tc := range []struct{ line, want string }{
		{"keys create", "cn_live_secret\n"},
		{"keys create --json", `{"data":{"apiKey":{"id":"key_1","name":"CLI key"},"secret":"cn_live_secret"}}` + "\n"},
		{"keys list", "id\tname\tprefix\tlast4\tcreatedAt\nkey_1\tn\tcn_live_abcd\twxyz\t2026-11-22T10:00:00.000Z\n"},
		{"keys revoke key_1", "id: key_1\nstatus: revoked\nname: n\nrevokedAt: 2026-11-22T10:00:00.000Z\n"},
	} {
		if code, out, errs := run(t, "", strings.Fields(tc.line)...); code != 0 || out != tc.want {
			t.Errorf("%s: exit %d, stderr %q, stdout %q, want %q", tc.line, code, errs, out, tc.want)
		}
	}
	requests := api.requests()
	for _, r := range requests {
		if r.header.Get("Authorization") != "" || r.header.Get("X-Api-Key") != "" {
			t.Errorf("%s %s carried a credential", r.method, r.path)
		}
		if got := r.header.Get("X-Crownest-Org-Id") + r.header.Get("X-Crownest-User-Id") + r.header.Get("X-Crownest-Role"); got != "org_1usr_1owner" {
			t.Errorf("%s %s carried %q", r.method, r.path, got)
		}
	}
	var body struct {
		Name   string
		Scopes []string
	}
	if err := json.Unmarshal([]byte(requests[0].body), &body); err != nil || body.Name != "CLI key" || !slices.Equal(body.Scopes, sandbox.DefaultScopes) {
		t.Errorf("body = %s, %v", requests[0].body, err)
	}
}

const started = `{"type":"command","command":{"id":"cmd_1","status":"running"}}`

func TestRunExitCodes(t *testing.T) {
	for _, tc := range []struct {
		name     string
		command  string
		wantCode int
		wantErr  string
	}{
		{"success", `{"id":"cmd_1","status":"exited","exitCode":0}`, 0, "e"},
		{"own code", `{"id":"cmd_1","status":"exited","exitCode":42}`, 42, "e"},
		{"timed out", `{"id":"cmd_1","status":"timed_out","terminationSignal":"SIGTERM"}`, 124, "ecrownest: the command ran out of time (--timeout-ms) and was ended\n"},
		{"canceled", `{"id":"cmd_1","status":"canceled"}`, 130, "ecrownest: the command was canceled\n"},
		{"killed", `{"id":"cmd_1","status":"killed","killedReason":"sandbox_destroyed"}`, 137, "ecrownest: the command was killed: its sandbox ended\n"},
		{"failed", `{"id":"cmd_1","status":"failed"}`, 1, "ecrownest: the command failed\n"},
		{"failed by a signal", `{"id":"cmd_1","status":"failed","exitCode":137}`, 137, "ecrownest: the command was ended by SIGKILL\n"},
		{"failed by a named signal", `{"id":"cmd_1","status":"failed","exitCode":139,"terminationSignal":"SIGSEGV"}`, 139, "ecrownest: the command was ended by SIGSEGV\n"},
		{
			"collected", `{"id":"cmd_1","status":"exited","exitCode":0,"artifactIds":["art_1"],"collectErrors":[{"code":"file_not_found","message":"no such file","path":"/workspace/b"}]}`, 0,
			"ecrownest: collected art_1\ncrownest: not collected: /workspace/b: no such file\n",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newFakeAPI(t, map[string]http.HandlerFunc{"POST /v1/sandboxes/sbx_1/commands": events(started,
				`{"type":"log","seq":1,"stream":"stdout","data":"o\u001b[0m\n"}`, `{"type":"log","seq":2,"stream":"stderr","data":"e"}`,
				`{"type":"terminal","command":`+tc.command+`}`)})
			code, out, errs := run(t, "", "commands", "run", "sbx_1", "--", "x")
			if code != tc.wantCode || out != "o\x1b[0m\n" || errs != tc.wantErr {
				t.Errorf("exit %d, stdout %q, stderr %q, want exit %d, stderr %q", code, out, errs, tc.wantCode, tc.wantErr)
			}
			code, out, errs = run(t, "", "commands", "run", "sbx_1", "--json", "--", "x")
			if want := `{"data":` + tc.command + "}\n"; code != tc.wantCode || out != want || errs != "" {
				t.Errorf("--json: exit %d, stdout %q, stderr %q", code, out, errs)
			}
		})
	}
}

func TestRunRefused(t *testing.T) {
	newFakeAPI(t, map[string]http.HandlerFunc{"POST /v1/sandboxes/sbx_1/commands": answer(410, `{"error":{"code":"sandbox_destroyed","message":"gone"}}`)})
	code, out, errs := run(t, "", "commands", "run", "sbx_1", "--json", "--", "x")
	if code != 1 || out != "" || !strings.HasPrefix(errs, `{"error":{"code":"sandbox_destroyed",`) {
		t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
	}
}

func TestRunSendsEveryField(t *testing.T) {
	t.Setenv("LOCAL_VALUE", "here")
	api := newFakeAPI(t, map[string]http.HandlerFunc{
		"POST /v1/sandboxes/sbx_1/commands": events(started, `{"type":"terminal","command":{"id":"cmd_1","status":"exited","exitCode":0}}`),
	})
	code, _, errs := run(t, "", "commands", "run", "sbx_1", "--cwd=/workspace/a", "--env", "A=1=2", "--env", "LOCAL_VALUE",
		"--timeout-ms", "5000", "--collect", "a=b.txt", "--collect-as", "n=c.txt", "--collect-on", "always", "--idempotency-key", "k1", "--", "echo", "--json", "a b")
	if code != 0 {
		t.Fatal(errs)
	}
	r := api.requests()[0]
	want := `{"command":"echo --json 'a b'","cwd":"/workspace/a","env":{"A":"1=2","LOCAL_VALUE":"here"},"timeoutMs":5000,"collect":[{"path":"a=b.txt"},{"path":"c.txt","name":"n"}],"collectOn":"always"}`
	if r.body != want || r.header.Get("Idempotency-Key") != "k1" {
		t.Errorf("body = %s\nwant   %s\nkey %q", r.body, want, r.header.Get("Idempotency-Key"))
	}
}

// An interrupt cancels the remote command and waits for its end.
func TestInterruptedRunCancelsTheCommand(t *testing.T) {
	for _, mode := range []string{"", "--json"} {
		ctx, interrupt := context.WithCancel(t.Context())
		canceled := make(chan struct{})
		api := newFakeAPI(t, map[string]http.HandlerFunc{
			"POST /v1/sandboxes/sbx_1/commands": func(w http.ResponseWriter, r *http.Request) {
				events(started)(w, r)
				w.(http.Flusher).Flush()
				interrupt()
				select {
				case <-canceled:
				case <-r.Context().Done():
					t.Error("the stream was left before the command ended")
				}
				events(`{"type":"log","seq":1,"stream":"stdout","data":"last words\n"}`, `{"type":"terminal","command":{"id":"cmd_1","status":"canceled"}}`)(w, r)
			},
			"POST /v1/commands/cmd_1/cancel": func(w http.ResponseWriter, r *http.Request) {
				close(canceled)
				answer(200, `{"command":{"id":"cmd_1","status":"canceled"}}`)(w, r)
			},
		})
		args := []string{"commands", "run", "sbx_1", "--", "sleep", "100"}
		if mode != "" {
			args = append([]string{mode}, args...)
		}
		code, out, errs := runContext(t, ctx, "", args...)
		if code != 130 {
			t.Errorf("exit %d, stderr %q, want 130", code, errs)
		}
		if want := map[string]string{"": "last words\n", "--json": `{"data":{"id":"cmd_1","status":"canceled"}}` + "\n"}[mode]; out != want {
			t.Errorf("stdout %q, want %q", out, want)
		}
		if got := api.requests(); len(got) != 2 || got[1].body != "{}" {
			t.Errorf("requests = %v, want a graceful cancel", got)
		}
	}
}

func TestInterruptedCall(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	newFakeAPI(t, map[string]http.HandlerFunc{"GET /v1/usage": func(_ http.ResponseWriter, r *http.Request) {
		interrupt()
		<-r.Context().Done()
	}})
	code, _, errs := runContext(t, ctx, "", "usage")
	if code != 130 || !strings.HasPrefix(errs, "error[runtime_error]: interrupted\n") {
		t.Errorf("exit %d, stderr %q", code, errs)
	}
}

func TestServerThatIsNotThere(t *testing.T) {
	api := newFakeAPI(t, nil)
	api.Close()
	code, _, errs := run(t, "", "usage", "--json")
	if code != 1 || !strings.Contains(errs, `"code":"runtime_error"`) || !strings.Contains(errs, `"retryable":true`) || !strings.Contains(errs, "CROWNEST_API_URL") {
		t.Errorf("exit %d, stderr %q", code, errs)
	}
}

func TestLogs(t *testing.T) {
	api := newFakeAPI(t, map[string]http.HandlerFunc{
		"GET /v1/commands/cmd_1/stream": events(`{"type":"log","seq":1,"stream":"stdout","data":"out"}`, `{"type":"log","seq":2,"stream":"stderr","data":"err"}`,
			`{"type":"terminal","command":{"id":"cmd_1","status":"exited","exitCode":9}}`),
		"GET /v1/commands/cmd_1/logs": answer(200, `{"data":[{"seq":1,"stream":"stdout","data":"old"}],"hasMore":false,"nextSeq":1}`),
		"GET /v1/commands/cmd_2/stream": events(`{"type":"log","seq":1,"stream":"stdout","data":"out"}`,
			`{"type":"error","code":"stream_gap","message":"overtaken"}`),
	})
	for _, tc := range []struct {
		line, wantOut, wantErr string
		wantCode               int
	}{
		{"logs cmd_1", "out", "err", 0},
		{"logs cmd_1 --json", "out", "err", 0},
		{"logs sbx_1 --command cmd_1 --stream stderr", "", "err", 0},
		{"logs cmd_1 --no-follow", "old", "", 0},
		{"logs cmd_1 --after-seq 0", "out", "err", 0},
		{"logs cmd_2", "out", "error[stream_gap]: overtaken\nhint: output before the oldest retained chunk is gone: leave out --after-seq\n", 1},
	} {
		code, out, errs := run(t, "", strings.Fields(tc.line)...)
		if code != tc.wantCode || out != tc.wantOut || errs != tc.wantErr {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", tc.line, code, out, errs)
		}
	}
	if got := api.requests()[4].query; got != "afterSeq=0" {
		t.Errorf("query = %q, want afterSeq=0", got)
	}
}

func TestUploadChoosesTheWay(t *testing.T) {
	const file = `{"file":{"path":"/workspace/x","sizeBytes":1,"type":"file"}}`
	var api *fakeAPI
	api = newFakeAPI(t, map[string]http.HandlerFunc{
		"PUT /v1/sandboxes/sbx_1/files": answer(200, file),
		"POST /v1/sandboxes/sbx_1/files/upload-url": func(w http.ResponseWriter, r *http.Request) {
			answer(201, fmt.Sprintf(`{"uploadId":"upl_1","method":"PUT","url":%q,"headers":{}}`, api.URL+"/up"))(w, r)
		},
		"PUT /up": answer(201, file),
	})
	dir := t.TempDir()
	small, large := filepath.Join(dir, "small"), filepath.Join(dir, "large.bin")
	for name, size := range map[string]int{small: 256 << 10, large: 256<<10 + 1} {
		if err := os.WriteFile(name, bytes.Repeat([]byte{0xff}, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	big := strings.Repeat("z", 300<<10)
	for _, tc := range []struct {
		args      []string
		stdin     string
		wantCalls string
		wantBody  string // beginning of the first body
		wantSize  int
	}{
		{[]string{small}, "", "PUT /v1/sandboxes/sbx_1/files", `{"path":"small","content":"//`, 0},
		{[]string{large, "d/r.bin", "--create-parents"}, "", "POST /v1/sandboxes/sbx_1/files/upload-url, PUT /up", `{"path":"d/r.bin","sizeBytes":262145,"sha256":"`, 256<<10 + 1},
		{[]string{large, "--to", "t"}, "", "POST /v1/sandboxes/sbx_1/files/upload-url, PUT /up", `{"path":"t",`, 256<<10 + 1},
		{[]string{"-", "in"}, "few", "PUT /v1/sandboxes/sbx_1/files", `{"path":"in","content":"ZmV3","encoding":"base64","createParents":false,"overwrite":true}`, 0},
		{[]string{"-", "in"}, big, "POST /v1/sandboxes/sbx_1/files/upload-url, PUT /up", `{"path":"in","createParents"`, len(big)},
	} {
		before := len(api.requests())
		code, out, errs := run(t, tc.stdin, append([]string{"files", "upload", "sbx_1"}, tc.args...)...)
		if code != 0 || !strings.HasPrefix(out, "path: /workspace/x\n") {
			t.Errorf("%v: exit %d, stdout %q, stderr %q", tc.args, code, out, errs)
			continue
		}
		var calls []string
		got := api.requests()[before:]
		for _, r := range got {
			calls = append(calls, r.method+" "+r.path)
		}
		if s := strings.Join(calls, ", "); s != tc.wantCalls || !strings.HasPrefix(got[0].body, tc.wantBody) {
			t.Errorf("%v: calls %s, first body %.120s", tc.args, s, got[0].body)
		}
		if last := got[len(got)-1]; last.path == "/up" && len(last.body) != tc.wantSize {
			t.Errorf("%v: uploaded %d bytes, want %d", tc.args, len(last.body), tc.wantSize)
		}
	}
	if code, _, errs := run(t, "", "files", "upload", "sbx_1", dir); code != 1 || !strings.Contains(errs, "is a directory") || !strings.Contains(errs, "tar cz") {
		t.Errorf("directory: exit %d, stderr %q", code, errs)
	}
	if code, _, errs := run(t, "", "files", "upload", "sbx_1", filepath.Join(dir, "none")); code != 1 || !strings.Contains(errs, "no such file") {
		t.Errorf("missing file: exit %d, stderr %q", code, errs)
	}
}

func TestFilesRead(t *testing.T) {
	var api *fakeAPI
	api = newFakeAPI(t, map[string]http.HandlerFunc{
		"GET /v1/sandboxes/sbx_1/files/read": func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			switch {
			case q.Get("path") == "large":
				answer(413, `{"error":{"code":"file_too_large","message":"too big","details":{"maxBytes":1}}}`)(w, r)
			case q.Get("encoding") == "base64":
				answer(200, `{"content":"/wAK","encoding":"base64","path":"/workspace/b","sizeBytes":3}`)(w, r)
			case q.Get("path") == "text":
				answer(200, `{"content":"hi","encoding":"utf8","path":"/workspace/text","sizeBytes":2}`)(w, r)
			default:
				answer(400, `{"error":{"code":"invalid_file_encoding","message":"not text"}}`)(w, r)
			}
		},
		"POST /v1/sandboxes/sbx_1/files/download-url": func(w http.ResponseWriter, r *http.Request) {
			answer(200, fmt.Sprintf(`{"method":"GET","url":%q,"headers":{}}`, api.URL+"/down"))(w, r)
		},
		"GET /down": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "all the bytes") },
	})
	target := filepath.Join(t.TempDir(), "sub.txt")
	for _, tc := range []struct{ line, want string }{
		{"files read sbx_1 b", "\xff\x00\n"},
		{"files read sbx_1 b --json", `{"data":{"content":"/wAK","encoding":"base64","path":"/workspace/b","sizeBytes":3}}` + "\n"},
		{"files read sbx_1 text --json", `{"data":{"content":"hi","encoding":"utf8","path":"/workspace/text","sizeBytes":2}}` + "\n"},
		{"files read sbx_1 large", "all the bytes"},
		{"files read sbx_1 large --json --output " + target, fmt.Sprintf("{\"data\":{\"path\":%q,\"sandboxId\":\"sbx_1\",\"source\":\"large\",\"sizeBytes\":13}}\n", target)},
	} {
		if code, out, errs := run(t, "", strings.Fields(tc.line)...); code != 0 || out != tc.want {
			t.Errorf("%s: exit %d, stderr %q, stdout %q, want %q", tc.line, code, errs, out, tc.want)
		}
	}
	if b, err := os.ReadFile(target); err != nil || string(b) != "all the bytes" {
		t.Errorf("saved %q, %v", b, err)
	}
}

func TestFilesWrite(t *testing.T) {
	api := newFakeAPI(t, map[string]http.HandlerFunc{"PUT /v1/sandboxes/sbx_1/files": answer(200, `{"file":{"path":"/workspace/a","sizeBytes":1,"type":"file"}}`)})
	if code, _, errs := run(t, "from stdin", "files", "write", "sbx_1", "a", "--overwrite=false"); code != 0 {
		t.Fatal(errs)
	}
	if code, _, errs := run(t, "", "files", "write", "sbx_1", "a", "arg", "--create-parents"); code != 0 {
		t.Fatal(errs)
	}
	if code, _, errs := run(t, "", "files", "write", "sbx_1", "a", ""); code != 0 {
		t.Fatal(errs)
	}
	want := []string{
		`{"path":"a","content":"ZnJvbSBzdGRpbg==","encoding":"base64","createParents":false,"overwrite":false}`,
		`{"path":"a","content":"YXJn","encoding":"base64","createParents":true,"overwrite":true}`,
		`{"path":"a","content":"","encoding":"base64","createParents":false,"overwrite":true}`,
	}
	for i, r := range api.requests() {
		if r.body != want[i] {
			t.Errorf("body %d = %s, want %s", i, r.body, want[i])
		}
	}
	code, _, errs := run(t, strings.Repeat("x", directLimit+1), "files", "write", "sbx_1", "a")
	if code != 1 || !strings.Contains(errs, "crownest files upload sbx_1 - a") {
		t.Errorf("too much: exit %d, stderr %q", code, errs)
	}
}

func TestArtifactDownload(t *testing.T) {
	var api *fakeAPI
	urlOf := func(path string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			answer(200, fmt.Sprintf(`{"method":"GET","url":%q,"headers":{}}`, api.URL+path))(w, r)
		}
	}
	const digest = "185f8db32271fe25f561a6fc938b2e264306ec304eda518007d1764826381969" // of Hello
	api = newFakeAPI(t, map[string]http.HandlerFunc{
		"GET /v1/artifacts/art_1":               answer(200, `{"artifact":{"id":"art_1","name":"hi.txt","sizeBytes":5,"sha256":"`+digest+`"}}`),
		"GET /v1/artifacts/art_2":               answer(200, `{"artifact":{"id":"art_2","name":"../evil","sizeBytes":5,"sha256":"00"}}`),
		"POST /v1/artifacts/art_1/download-url": urlOf("/one"),
		"POST /v1/artifacts/art_2/download-url": urlOf("/one"),
		"GET /one":                              func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "Hello") },
		"DELETE /v1/artifacts/art_1":            answer(200, `{"artifact":{"id":"art_1","name":"hi.txt"}}`),
	})
	dir := t.TempDir()
	if code, out, errs := run(t, "", "artifacts", "download", "art_1"); code != 0 || out != "Hello" {
		t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
	}
	code, out, errs := run(t, "", "artifacts", "download", "art_1", "--output", dir)
	if want := "id: art_1\npath: " + dir + "/hi.txt\nname: hi.txt\nsizeBytes: 5\nsha256: " + digest + "\n"; code != 0 || out != want {
		t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "hi.txt")); err != nil || string(b) != "Hello" {
		t.Errorf("saved %q, %v", b, err)
	}
	code, out, errs = run(t, "", "artifacts", "download", "art_2", "--output", dir)
	if code != 1 || out != "" || !strings.Contains(errs, "checksum") {
		t.Errorf("damaged: exit %d, stdout %q, stderr %q", code, out, errs)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "evil")); err == nil {
		t.Error("a name led out of the directory")
	}
	if code, out, _ := run(t, "", "artifacts", "delete", "art_1"); code != 0 || out != "id: art_1\nstatus: deleted\nname: hi.txt\n" {
		t.Errorf("delete: exit %d, stdout %q", code, out)
	}
}

func TestSaveFileIntoAPipe(t *testing.T) {
	n, err := saveFile(os.DevNull, func(w io.Writer) (int64, error) { return io.Copy(w, strings.NewReader("abc")) })
	if n != 3 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode().IsRegular() {
		t.Errorf("%s = %v, %v", os.DevNull, info, err)
	}
}

func TestAuditVerify(t *testing.T) {
	for _, tc := range []struct {
		body     string
		wantCode int
	}{{`{"ok":true,"checked":3}`, 0}, {`{"ok":false,"checked":2,"brokenAtId":"aud_2"}`, 1}} {
		newFakeAPI(t, map[string]http.HandlerFunc{"GET /v1/audit-events/verify": answer(200, tc.body)})
		if code, out, errs := run(t, "", "audit", "verify"); code != tc.wantCode || !strings.HasPrefix(out, "ok: ") || errs != "" {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", tc.body, code, out, errs)
		}
	}
}

func TestAuditListFilters(t *testing.T) {
	api := newFakeAPI(t, map[string]http.HandlerFunc{"GET /v1/audit-events": answer(200,
		`{"data":[{"id":"aud_3"},{"id":"aud_2","createdAt":"2026-11-22T10:00:00.000Z","action":"a","outcome":"success","actor":{"id":"key_1"},"resource":{"id":"sbx_1"}},{"id":"aud_1"}],"hasMore":true,"nextCursor":"c"}`)})
	code, out, errs := run(t, "", "audit", "list", "--limit=2", "--action", "a", "--actor", "key_1", "--resource", "sbx_1", "--project", "prj_1", "--since", "2026-11-01T00:00:00+01:00", "--until", "2026-11-02T00:00:00Z")
	if want := "id\tcreatedAt\taction\toutcome\tactor\tresource\naud_3\t\t\t\t\t\naud_2\t2026-11-22T10:00:00.000Z\ta\tsuccess\tkey_1\tsbx_1\n"; code != 0 || out != want {
		t.Errorf("exit %d, stderr %q, stdout %q", code, errs, out)
	}
	want := "action=a&actorId=key_1&limit=2&projectId=prj_1&resourceId=sbx_1&since=2026-10-31T23%3A00%3A00.000Z&until=2026-11-02T00%3A00%3A00.000Z"
	if got := api.requests(); len(got) != 1 || got[0].query != want {
		t.Errorf("requests = %v, want one with %s", got, want)
	}
}

func TestSandboxesCreateSendsEveryField(t *testing.T) {
	api := newFakeAPI(t, map[string]http.HandlerFunc{"POST /v1/sandboxes": answer(201, `{"sandbox":`+sandboxJSON+`}`)})
	if code, _, errs := run(t, "", "sandboxes", "create"); code != 0 {
		t.Fatal(errs)
	}
	if code, _, errs := run(t, "", "sandboxes", "create", "--project", "prj_1", "--template=node", "--template-version", "tplv_1", "--ttl-ms", "5",
		"--metadata", "k=v=w", "--metadata", "e=", "--network", "allowlist", "--allow", "a.example", "--allow", "10.0.0.0/8:443"); code != 0 {
		t.Fatal(errs)
	}
	want := []string{"{}", `{"projectId":"prj_1","template":"node","templateVersionId":"tplv_1","ttlMs":5,"metadata":{"e":"","k":"v=w"},"network":{"egress":"allowlist","allow":["a.example","10.0.0.0/8:443"]}}`}
	for i, r := range api.requests() {
		if r.body != want[i] {
			t.Errorf("body %d = %s, want %s", i, r.body, want[i])
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain äöü 🙂":        "plain äöü 🙂",
		"a\tb\nc":            `a\tb\nc`,
		"\x1b]0;title\a":     `\x1b]0;title\a`,
		"right\u202eto left": `right\u202eto left`,
		"line\u2028break":    `line\u2028break`,
		"bad \xff":           `bad \ufffd`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestProgressBar(t *testing.T) {
	var w bytes.Buffer
	now := time.Unix(0, 0)
	p := &progressBar{w: &w, label: "uploading x", width: 200, now: func() time.Time { return now }, started: now, all: -1}
	p.total(4 << 20)
	p.add(1 << 20)
	if w.Len() != 0 {
		t.Errorf("a short transfer shows %q", w.String())
	}
	now = now.Add(time.Second)
	p.add(1 << 20)
	now = now.Add(progressEvery / 2)
	p.add(1 << 20) // too soon to be drawn
	if want := "\ruploading x  [############------------]  50%  2.0 MiB of 4.0 MiB  2.0 MiB/s  1s left\x1b[K"; w.String() != want {
		t.Errorf("drawn %q, want %q", w.String(), want)
	}
	p.width, now = 20, now.Add(time.Second)
	w.Reset()
	p.add(1)
	if want := "\ruploading x  [#####\x1b[K"; w.String() != want {
		t.Errorf("on a narrow terminal %q, want %q", w.String(), want)
	}
	p.end()
	if !strings.HasSuffix(w.String(), "\r\x1b[K") {
		t.Errorf("the bar stays: %q", w.String())
	}
	w.Reset()
	silent := (&app{Stdio: Stdio{Err: &w}}).progress("x")
	silent.started = silent.started.Add(-time.Hour)
	silent.add(1)
	silent.end()
	if w.Len() != 0 {
		t.Errorf("drawn without a terminal: %q", w.String())
	}
}

// An --json behind the words for the remote command is the command's.
func TestWantsJSON(t *testing.T) {
	for line, want := range map[string]bool{
		"--json x": true, "x --json=true": true, "x": false, "run s -- ls --json": false, "--json=false": false,
	} {
		if got := wantsJSON(strings.Fields(line)); got != want {
			t.Errorf("wantsJSON(%q) = %v", line, got)
		}
	}
}
