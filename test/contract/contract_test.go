// Package contract walks the wire contract over HTTP against the real binary with
// real sandboxes, row by row, with good and bad input. It shares no code with the
// server; what it expects is written down in the contract and in api/openapi.json.
package contract

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"crownest.dev/crownest/test/testserver"
)

// What the server of the suite can hold.
const (
	capacity  = 14
	diskBytes = 256 << 20
)

// suite is one server that all rows share.
type suite struct {
	server *testserver.Server
	doc    *document
	url    string

	owner *caller // every scope, all projects

	mu   sync.Mutex
	rows []row
}

// row is one line of the table at the end.
type row struct {
	section, name string
	failed        bool
	took          time.Duration
}

// caller speaks HTTP with one key.
type caller struct {
	s    *suite
	key  string
	http *http.Client
}

// answer is a response read to its end.
type answer struct {
	method, path string
	status       int
	header       http.Header
	body         []byte
}

func TestContract(t *testing.T) {
	if why := testserver.Cannot(); why != "" {
		t.Skip(why)
	}
	s := &suite{doc: loadDocument(t)}
	s.server = testserver.New(t, testserver.Options{
		Template: "base", Args: []string{"--pool", "4"},
		Env: []string{
			// High enough not to be in the way, on to see the headers.
			"CROWNEST_RATE_LIMIT_PER_MINUTE=600000", "CROWNEST_RATE_LIMIT_BURST=100000",
			// Small enough to be filled.
			fmt.Sprintf("CROWNEST_MAX_SANDBOXES=%d", capacity), fmt.Sprintf("CROWNEST_DISK_BYTES=%d", diskBytes),
		},
	})
	s.url = s.server.URL
	s.owner = s.caller(t, s.newKey(t, ""))
	t.Cleanup(func() { s.print() })

	t.Run("rows", func(t *testing.T) {
		s.slowRows(t) // in parallel with each other, after the rest
		s.conventionRows(t)
		s.credentialRows(t)
		s.idempotencyRows(t)
		s.sandboxRows(t)
		s.commandRows(t)
		s.streamRows(t)
		s.fileRows(t)
		s.transferRows(t)
		s.artifactRows(t)
		s.accountRows(t)
		s.badInputRows(t)
	})
	s.restartRows(t)
	s.row(t, "1.6", "no answer was a 500 and nothing panicked", func(t *testing.T) {
		for _, line := range strings.Split(s.server.Log(), "\n") {
			if strings.Contains(line, "request failed") || strings.Contains(line, "panic") {
				t.Error(line)
			}
		}
	})
}

// row runs one row and remembers how it went.
func (s *suite) row(t *testing.T, section, name string, fn func(t *testing.T)) {
	t.Helper()
	s.do(t, section, name, false, fn)
}

// slowRow is a row that mostly waits; it runs beside other slow ones.
func (s *suite) slowRow(t *testing.T, section, name string, fn func(t *testing.T)) {
	t.Helper()
	s.do(t, section, name, true, fn)
}

func (s *suite) do(t *testing.T, section, name string, parallel bool, fn func(t *testing.T)) {
	t.Helper()
	t.Run(section+" "+name, func(t *testing.T) {
		if parallel {
			t.Parallel()
		}
		began := time.Now()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.rows = append(s.rows, row{section, name, t.Failed(), time.Since(began)})
		}()
		fn(t)
	})
}

// print shows the table.
func (s *suite) print() {
	failed := 0
	fmt.Printf("\n%-8s %-72s %-5s %8s\n", "section", "row", "", "took")
	for _, r := range s.rows {
		result := "pass"
		if r.failed {
			result = "FAIL"
			failed++
		}
		fmt.Printf("%-8s %-72s %-5s %7.2fs\n", r.section, r.name, result, r.took.Seconds())
	}
	fmt.Printf("%d rows, %d failed\n\n", len(s.rows), failed)
}

var allScopes = strings.Fields(`sandbox:create sandbox:read sandbox:kill sandbox:extend command:run command:read command:cancel
	file:read file:write artifact:create artifact:read artifact:delete usage:read api_key:read api_key:revoke project:create audit:read`)

// newKey makes a key by the operator's command; project "" = all, no scope = all
// of them.
func (s *suite) newKey(t *testing.T, project string, scopes ...string) string {
	t.Helper()
	if len(scopes) == 0 {
		scopes = allScopes
	}
	args := []string{"admin", "keys", "create", "--data", s.server.Data, "--name", "contract"}
	for _, scope := range scopes {
		args = append(args, "--scope", scope)
	}
	if project != "" {
		args = append(args, "--project", project)
	}
	bin, err := testserver.Binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("making a key: %v: %s", err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

func (s *suite) caller(t *testing.T, key string) *caller {
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(tr.CloseIdleConnections)
	return &caller{s: s, key: key, http: &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// request prepares a request. body is nil, a string that is sent as it is, or a
// value that is sent as JSON. headers are pairs; an empty value removes one.
func (c *caller) request(t *testing.T, method, path string, body any, headers ...string) *http.Request {
	t.Helper()
	var rd io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		rd = strings.NewReader(b)
	case io.Reader:
		rd = b
	default:
		j, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		rd = bytes.NewReader(j)
	}
	if !strings.HasPrefix(path, "http") {
		path = c.s.url + path
	}
	req, err := http.NewRequestWithContext(t.Context(), method, path, rd)
	if err != nil {
		t.Fatal(err)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i+1] == "" {
			req.Header.Del(headers[i])
		} else {
			req.Header.Set(headers[i], headers[i+1])
		}
	}
	return req
}

// call sends a request, reads the answer and holds it against the document.
func (c *caller) call(t *testing.T, method, path string, body any, headers ...string) answer {
	t.Helper()
	req := c.request(t, method, path, body, headers...)
	res, err := c.http.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: reading the answer: %v", method, path, err)
	}
	a := answer{method, req.URL.EscapedPath(), res.StatusCode, res.Header, b}
	c.s.common(t, a)
	return a
}

var requestID = regexp.MustCompile(`^req_[0-9a-z]{26}$`)

// common holds every answer against what is the same for all of them.
func (s *suite) common(t *testing.T, a answer) {
	t.Helper()
	if !requestID.MatchString(a.header.Get("X-Request-Id")) {
		t.Errorf("%s %s: x-request-id %q", a.method, a.path, a.header.Get("X-Request-Id"))
	}
	if a.header.Get("Cache-Control") != "no-store" || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s %s: headers %v", a.method, a.path, a.header)
	}
	if a.status >= 500 && a.status != http.StatusServiceUnavailable {
		t.Errorf("%s %s: status %d: %s", a.method, a.path, a.status, a.body)
	}
	if a.status >= 300 && a.status < 400 {
		t.Errorf("%s %s: redirected to %s", a.method, a.path, a.header.Get("Location"))
	}
	if err := s.doc.check(a); err != nil {
		t.Errorf("%s %s: %v: %.400s", a.method, a.path, err, a.body)
	}
}

// want calls and demands a status; it returns the decoded object.
func (c *caller) want(t *testing.T, status int, method, path string, body any, headers ...string) map[string]any {
	t.Helper()
	a := c.call(t, method, path, body, headers...)
	if a.status != status {
		t.Fatalf("%s %s: status %d, want %d: %.500s", method, path, a.status, status, a.body)
	}
	return a.object(t)
}

// refused calls and demands an error; it returns its details.
func (c *caller) refused(t *testing.T, status int, code, method, path string, body any, headers ...string) map[string]any {
	t.Helper()
	a := c.call(t, method, path, body, headers...)
	got, details := a.envelope(t)
	if a.status != status || got != code {
		t.Errorf("%s %s: %d %s, want %d %s: %.500s", method, path, a.status, got, status, code, a.body)
	}
	return details
}

func (a answer) object(t *testing.T) map[string]any {
	t.Helper()
	if len(a.body) == 0 {
		return nil
	}
	var v map[string]any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%s %s: %d is not JSON: %.200q", a.method, a.path, a.status, a.body)
	}
	return v
}

func (a answer) envelope(t *testing.T) (code string, details map[string]any) {
	t.Helper()
	e := object(a.object(t)["error"])
	code, _ = e["code"].(string)
	return code, object(e["details"])
}

func object(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

func items(v any) []any {
	l, _ := v.([]any)
	return l
}

// sandbox makes a sandbox that ends with the row and returns its path.
func (c *caller) sandbox(t *testing.T, fields ...any) (path, id string) {
	t.Helper()
	in := map[string]any{}
	for i := 0; i < len(fields); i += 2 {
		in[fields[i].(string)] = fields[i+1]
	}
	id = text(object(c.want(t, 201, "POST", "/v1/sandboxes", in)["sandbox"])["id"])
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "DELETE", c.s.url+"/v1/sandboxes/"+id, nil)
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("X-Api-Key", c.s.owner.key)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		_ = res.Body.Close()
	})
	return "/v1/sandboxes/" + id, id
}

// run runs a command to its end and returns its record.
func (c *caller) run(t *testing.T, sbx, command string, fields ...any) map[string]any {
	t.Helper()
	in := map[string]any{"command": command}
	for i := 0; i < len(fields); i += 2 {
		in[fields[i].(string)] = fields[i+1]
	}
	return object(c.want(t, 200, "POST", sbx+"/commands/run", in)["command"])
}

// raw sends bytes over a fresh connection, closes the sending half and returns
// what comes back.
func (s *suite) raw(t *testing.T, request string, halfClose bool) string {
	t.Helper()
	u, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	if halfClose {
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, _ := io.ReadAll(conn)
	return string(b)
}

// until polls for something that happens by itself.
func until(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func repository(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(filepath.Dir(dir))
}
