package crownest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const testKey = "cn_live_0123456789012345678901234567890123456789"

// testClient returns a client of a server with quick reconnects.
func testClient(t *testing.T, h http.Handler, opts ...Option) (*Client, *httptest.Server) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := NewClient(append([]Option{WithAPIKey(testKey), WithBaseURL(srv.URL + "/")}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.http.CloseIdleConnections)
	c.reconnect = []time.Duration{1, 1, 1, 1, 1}
	c.poll = time.Millisecond
	return c, srv
}

func writeJSON(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// cut ends the connection without a proper end of the response.
func cut(w http.ResponseWriter) {
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	panic(http.ErrAbortHandler)
}

func TestNewClient(t *testing.T) {
	for _, tc := range []struct {
		name     string
		env      map[string]string
		opts     []Option
		wantBase string
		wantKey  string
		wantErr  string
	}{
		{name: "nothing given", wantErr: "no API key"},
		{name: "API key variable", env: map[string]string{"CROWNEST_API_KEY": "k1"}, wantKey: "k1", wantBase: DefaultBaseURL},
		{name: "bearer token first", env: map[string]string{"CROWNEST_API_KEY": "k1", "CROWNEST_BEARER_TOKEN": "k2"}, wantKey: "k2", wantBase: DefaultBaseURL},
		{name: "option first", env: map[string]string{"CROWNEST_BEARER_TOKEN": "k2"}, opts: []Option{WithAPIKey("k3")}, wantKey: "k3", wantBase: DefaultBaseURL},
		{name: "without credential", env: map[string]string{"CROWNEST_API_KEY": "k1"}, opts: []Option{WithoutCredential()}, wantBase: DefaultBaseURL},
		{name: "base variable", env: map[string]string{"CROWNEST_API_KEY": "k", "CROWNEST_API_URL": "http://h:1/p//"}, wantKey: "k", wantBase: "http://h:1/p"},
		{name: "base option first", env: map[string]string{"CROWNEST_API_KEY": "k", "CROWNEST_API_URL": "http://h:1"}, opts: []Option{WithBaseURL("http://g")}, wantKey: "k", wantBase: "http://g"},
		{name: "not a URL", opts: []Option{WithAPIKey("k"), WithBaseURL("localhost:8787")}, wantErr: "not an http or https URL"},
		{name: "URL with a user", opts: []Option{WithAPIKey("k"), WithBaseURL("http://u:p@h")}, wantErr: "must not hold"},
		{name: "key with a line end", opts: []Option{WithAPIKey("secret\n")}, wantErr: "white space"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, name := range []string{"CROWNEST_API_KEY", "CROWNEST_BEARER_TOKEN", "CROWNEST_API_URL"} {
				t.Setenv(name, tc.env[name])
			}
			c, err := NewClient(tc.opts...)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("error = %v, want one that says %q", err, tc.wantErr)
				}
				if strings.Contains(err.Error(), "secret") {
					t.Fatalf("error %q repeats the key", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.apiKey != tc.wantKey || c.BaseURL() != tc.wantBase {
				t.Errorf("key, base = %q, %q, want %q, %q", c.apiKey, c.BaseURL(), tc.wantKey, tc.wantBase)
			}
		})
	}
}

func TestRetries(t *testing.T) {
	const unavailable = `{"error":{"code":"capacity_exhausted","message":"full","details":{"max":3}}}`
	for _, tc := range []struct {
		name      string
		fail      func(w http.ResponseWriter)
		failTimes int
		wantCalls int
		wantCode  string // "" = success
	}{
		{"503 with Retry-After", func(w http.ResponseWriter) { w.Header().Set("Retry-After", "0"); writeJSON(w, 503, unavailable) }, 2, 3, ""},
		{"429 with Retry-After", func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "0")
			writeJSON(w, 429, `{"error":{"code":"rate_limited","message":"slow"}}`)
		}, 1, 2, ""},
		{"at most twice", func(w http.ResponseWriter) { w.Header().Set("Retry-After", "0"); writeJSON(w, 503, unavailable) }, 9, 3, "capacity_exhausted"},
		{"503 without Retry-After", func(w http.ResponseWriter) { writeJSON(w, 503, unavailable) }, 9, 1, "capacity_exhausted"},
		{"a wait too long", func(w http.ResponseWriter) { w.Header().Set("Retry-After", "3600"); writeJSON(w, 503, unavailable) }, 9, 1, "capacity_exhausted"},
		{"500", func(w http.ResponseWriter) { writeJSON(w, 500, `{"error":{"code":"internal_error","message":"x"}}`) }, 9, 1, "internal_error"},
		{"409", func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "1")
			writeJSON(w, 409, `{"error":{"code":"idempotency_request_in_progress","message":"x"}}`)
		}, 9, 1, "idempotency_request_in_progress"},
		{"connection cut before the answer", func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, 2, 3, ""},
		{"connection cut within the answer", func(w http.ResponseWriter) { writeJSON(w, 201, `{"sandbox":`); cut(w) }, 2, 3, ""},
		{"not an envelope", func(w http.ResponseWriter) { writeJSON(w, 502, `<html>bad gateway`) }, 9, 1, CodeInvalidErrorResponse},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var mu sync.Mutex
			keys := map[string]bool{}
			calls := 0
			c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				calls++
				n := calls
				keys[r.Header.Get("Idempotency-Key")] = true
				mu.Unlock()
				if n <= tc.failTimes {
					tc.fail(w)
					return
				}
				writeJSON(w, 201, `{"sandbox":{"id":"sbx_1","status":"ready"}}`)
			}))
			sb, err := c.Sandboxes.Create(t.Context(), CreateSandboxParams{})
			mu.Lock()
			defer mu.Unlock()
			if calls != tc.wantCalls {
				t.Errorf("calls = %d, want %d", calls, tc.wantCalls)
			}
			if got := ErrorCode(err); got != tc.wantCode {
				t.Fatalf("error = %v, want code %q", err, tc.wantCode)
			}
			if tc.wantCode == "" && (err != nil || sb.ID != "sbx_1") {
				t.Fatalf("sandbox, error = %v, %v", sb, err)
			}
			if len(keys) != 1 {
				t.Errorf("idempotency keys = %v, want one for all attempts", keys)
			}
			for key := range keys {
				if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(key) {
					t.Errorf("idempotency key %q is no UUID of version 4", key)
				}
			}
		})
	}
}

func TestConnectionFailureIsReported(t *testing.T) {
	c, srv := testClient(t, http.NotFoundHandler())
	srv.Close()
	_, err := c.Sandboxes.Get(t.Context(), "sbx_1")
	if !IsConnectionError(err) {
		t.Fatalf("error = %v, want a connection error", err)
	}
}

func TestErrorCarriesEverything(t *testing.T) {
	c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Request-Id", "req_7")
		writeJSON(w, 413, `{"error":{"code":"file_too_large","message":"too big","details":{"maxBytes":5}}}`)
	}))
	_, err := c.Files.Write(t.Context(), "sbx_1", "a", "b", nil)
	var e *APIError
	if !errors.As(err, &e) {
		t.Fatalf("error = %v, want *APIError", err)
	}
	if e.Status != 413 || e.Code != "file_too_large" || e.Message != "too big" || e.Details["maxBytes"] != 5.0 || e.RequestID != "req_7" || e.Retryable() {
		t.Errorf("error = %+v", e)
	}
}

func TestContextEndsACall(t *testing.T) {
	release := make(chan struct{})
	c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-release:
		}
	}))
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := c.Usage.Get(ctx, UsageParams{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("error = %v, want context.Canceled", err)
	}
}

// The key must reach the base's own origin and nothing else, whatever a server
// names in its answers.
func TestKeyStaysAtItsOrigin(t *testing.T) {
	var leaked atomic.Bool
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, values := range r.Header {
			if strings.Contains(strings.Join(values, " "), testKey) || name == "X-Crownest-Org-Id" {
				leaked.Store(true)
			}
		}
		if r.Method == http.MethodPut {
			writeJSON(w, 201, `{"file":{"path":"/workspace/a","sizeBytes":1,"type":"file"}}`)
			return
		}
		_, _ = io.WriteString(w, "foreign bytes")
	}))
	defer foreign.Close()
	// The same server under its other name is another origin.
	u, _ := url.Parse(foreign.URL)
	otherName := "http://localhost:" + u.Port()

	for _, place := range []string{foreign.URL, otherName} {
		var own *httptest.Server
		var ownAuthorized atomic.Int32
		c, own := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "Bearer "+testKey && r.Header.Get("X-Crownest-Org-Id") == "org_1" {
				ownAuthorized.Add(1)
			}
			switch r.URL.Path {
			case "/v1/sandboxes/sbx_1/files/upload-url":
				writeJSON(w, 201, fmt.Sprintf(`{"uploadId":"upl_1","method":"PUT","url":%q,"headers":{}}`, place+"/up?sig=1"))
			case "/v1/sandboxes/sbx_1/files/download-url":
				writeJSON(w, 200, fmt.Sprintf(`{"method":"GET","url":%q,"headers":{}}`, place+"/down?sig=1"))
			case "/v1/usage":
				http.Redirect(w, r, place+"/v1/usage", http.StatusTemporaryRedirect)
			}
		}), WithHeader("X-Crownest-Org-Id", "org_1"))
		_ = own
		if _, err := c.Files.Upload(t.Context(), "sbx_1", "a", strings.NewReader("x"), nil); err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if _, err := c.Files.Download(t.Context(), "sbx_1", "a", &b, nil); err != nil || b.String() != "foreign bytes" {
			t.Fatalf("download = %q, %v", b.String(), err)
		}
		if _, err := c.Usage.Get(t.Context(), UsageParams{}); ErrorCode(err) != CodeInvalidErrorResponse {
			t.Fatalf("a redirect gave %v, want it refused", err)
		}
		if got := ownAuthorized.Load(); got != 3 {
			t.Errorf("the own server saw the key %d times, want 3", got)
		}
	}
	if leaked.Load() {
		t.Error("the key went to a foreign origin")
	}
}

func TestSignedURLOnOwnOriginGetsTheKey(t *testing.T) {
	var got atomic.Value
	var base string
	c, srv := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/up" {
			got.Store(r.Header.Get("Authorization") + "|" + r.Header.Get("Content-Type") + "|" + r.Header.Get("Idempotency-Key"))
			b, _ := io.ReadAll(r.Body)
			writeJSON(w, 201, fmt.Sprintf(`{"file":{"path":"/workspace/a","sizeBytes":%d,"type":"file"}}`, len(b)))
			return
		}
		writeJSON(w, 201, fmt.Sprintf(`{"uploadId":"u","method":"PUT","url":%q,"headers":{"content-type":"application/x-test"}}`, base+"/up"))
	}))
	base = srv.URL
	size := int64(5)
	f, err := c.Files.Upload(t.Context(), "sbx_1", "a", strings.NewReader("hello"), &UploadOptions{SizeBytes: &size})
	if err != nil || f.SizeBytes != 5 {
		t.Fatalf("file, error = %v, %v", f, err)
	}
	if want := "Bearer " + testKey + "|application/x-test|"; got.Load() != want {
		t.Errorf("upload request = %q, want %q", got.Load(), want)
	}
}

func TestListFollowsCursors(t *testing.T) {
	var queries []string
	c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		queries = append(queries, r.URL.RawQuery)
		if r.URL.Query().Get("cursor") == "" {
			writeJSON(w, 200, `{"data":[{"id":"sbx_2"},{"id":"sbx_1"}],"hasMore":true,"nextCursor":"c1"}`)
			return
		}
		writeJSON(w, 200, `{"data":[{"id":"sbx_0","newField":[1,2]}],"hasMore":false}`)
	}))
	list, err := c.Sandboxes.List(t.Context(), ListSandboxesParams{Historical: true, Metadata: map[string]string{"a.b": "c d"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 3 || list[2].ID != "sbx_0" {
		t.Fatalf("list = %v", list)
	}
	if got := string(list[2].RawJSON()); got != `{"id":"sbx_0","newField":[1,2]}` {
		t.Errorf("RawJSON = %s", got)
	}
	if want := "include=historical&metadata.a.b=c+d"; queries[0] != want {
		t.Errorf("first query = %q, want %q", queries[0], want)
	}
	if want := "cursor=c1&include=historical&metadata.a.b=c+d"; queries[1] != want {
		t.Errorf("second query = %q, want %q", queries[1], want)
	}
}

// A blocking answer may begin with spaces that keep the connection alive.
func TestLateAnswerAfterSpaces(t *testing.T) {
	var body map[string]any
	c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewDecoder(r.Body).Decode(&body)
		w.WriteHeader(200)
		for range 3 {
			_, _ = io.WriteString(w, " ")
			w.(http.Flusher).Flush()
		}
		_, _ = io.WriteString(w, `{"command":{"id":"cmd_1","status":"exited","exitCode":3,"stdout":"a"}}`)
	}))
	cmd, err := c.Commands.Run(t.Context(), "sbx_1", "exit 3", &RunOptions{Env: map[string]string{"A": "1"}, TimeoutMs: 5})
	if err != nil || *cmd.ExitCode != 3 || cmd.Stdout != "a" {
		t.Fatalf("command, error = %+v, %v", cmd, err)
	}
	if string(cmd.RawJSON()) != `{"id":"cmd_1","status":"exited","exitCode":3,"stdout":"a"}` {
		t.Errorf("RawJSON = %s", cmd.RawJSON())
	}
	want := map[string]any{"command": "exit 3", "env": map[string]any{"A": "1"}, "timeoutMs": 5.0}
	if fmt.Sprint(body) != fmt.Sprint(want) {
		t.Errorf("body = %v, want %v", body, want)
	}
}

func TestDownloadContinuesWhereItBroke(t *testing.T) {
	content := strings.Repeat("0123456789", 5000)
	var ranges []string
	var base string
	c, srv := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			writeJSON(w, 200, fmt.Sprintf(`{"method":"GET","url":%q}`, base+"/bytes"))
			return
		}
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) <= 2 {
			var from int
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
				w.WriteHeader(http.StatusPartialContent)
			} else {
				w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			}
			_, _ = io.WriteString(w, content[from:from+20000])
			cut(w)
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(content))
	}))
	base = srv.URL
	b, err := c.Artifacts.Download(t.Context(), "art_1")
	if err != nil || string(b) != content {
		t.Fatalf("downloaded %d bytes, error %v, want %d", len(b), err, len(content))
	}
	if fmt.Sprint(ranges) != "[ bytes=20000- bytes=40000-]" {
		t.Errorf("ranges = %q", ranges)
	}
}

func TestDownloadEndsAtTheWritersError(t *testing.T) {
	var gets atomic.Int32
	var base string
	c, srv := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			writeJSON(w, 200, fmt.Sprintf(`{"method":"GET","url":%q}`, base+"/bytes"))
			return
		}
		gets.Add(1)
		_, _ = io.WriteString(w, "content")
	}))
	base = srv.URL
	full := errors.New("disk full")
	if _, err := c.Artifacts.DownloadTo(t.Context(), "art_1", failingWriter{full}, nil); !errors.Is(err, full) {
		t.Fatalf("error = %v, want %v", err, full)
	}
	if gets.Load() != 1 {
		t.Errorf("downloads = %d, want 1", gets.Load())
	}
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }
