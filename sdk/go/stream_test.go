package crownest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func sse(w http.ResponseWriter, lines ...string) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	for _, l := range lines {
		_, _ = io.WriteString(w, l)
	}
	w.(http.Flusher).Flush()
}

func logEvent(seq int, stream, data string) string {
	return fmt.Sprintf("id: %d\ndata: {\"type\":\"log\",\"seq\":%d,\"stream\":%q,\"data\":%q}\n\n", seq, seq, stream, data)
}

const (
	heartbeat     = "data: {\"type\":\"heartbeat\"}\n\n: comment\n\n"
	commandEvent  = "data: {\"type\":\"command\",\"command\":{\"id\":\"cmd_1\",\"status\":\"running\"}}\n\n"
	terminalEvent = "data: {\"type\":\"terminal\",\"command\":{\"id\":\"cmd_1\",\"status\":\"exited\",\"exitCode\":0,\"stdout\":\"abc\"}}\n\n"
)

func TestStreamLogsReconnects(t *testing.T) {
	var queries []string
	c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		queries = append(queries, r.URL.RawQuery)
		switch len(queries) {
		case 1:
			panic(http.ErrAbortHandler)
		case 2:
			sse(w, heartbeat, logEvent(1, "stdout", "a"), logEvent(2, "stderr", "b"))
			cut(w)
		case 3:
			sse(w, heartbeat)
			cut(w)
		case 4: // closed in good order, but without a final event
			sse(w, logEvent(2, "stderr", "b"), logEvent(3, "stdout", "c"), "data: {\"type\":\"from the future\"}\n\n")
		default:
			sse(w, terminalEvent)
		}
	}))
	var got []string
	for ev, err := range c.Commands.StreamLogs(t.Context(), "cmd_1", nil) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Type == EventTerminal {
			got = append(got, string(ev.Command.Status))
			continue
		}
		got = append(got, fmt.Sprintf("%d%s%s", ev.Seq, ev.Stream, ev.Data))
	}
	if want := "[1stdouta 2stderrb 3stdoutc exited]"; fmt.Sprint(got) != want {
		t.Errorf("events = %v, want %s", got, want)
	}
	// The cut before the headers was an ordinary retry.
	if want := "[  afterSeq=2 afterSeq=2 afterSeq=3]"; fmt.Sprint(queries) != want {
		t.Errorf("queries = %q, want %s", queries, want)
	}
}

func TestStreamLogsGivesUp(t *testing.T) {
	for _, tc := range []struct {
		name      string
		opts      *StreamOptions
		advance   int // connections that bring something
		wantCalls int
	}{
		{"six attempts without progress", nil, 0, 6},
		{"progress starts the count anew", nil, 3, 8},
		{"no reconnect", &StreamOptions{NoReconnect: true}, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			calls := 0
			c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				calls++
				if calls <= tc.advance {
					sse(w, logEvent(calls, "stdout", "x"))
				} else {
					sse(w, heartbeat)
				}
				cut(w)
			}))
			var last error
			for _, err := range c.Commands.StreamLogs(t.Context(), "cmd_1", tc.opts) {
				last = err
			}
			if last == nil || ErrorCode(last) != "" {
				t.Fatalf("error = %v, want the broken connection", last)
			}
			if calls != tc.wantCalls {
				t.Errorf("connections = %d, want %d", calls, tc.wantCalls)
			}
		})
	}
}

func TestStreamLogsStopsAtAPIErrors(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(w http.ResponseWriter)
		status int
	}{
		{"before the stream", func(w http.ResponseWriter) {
			writeJSON(w, 409, `{"error":{"code":"stream_gap","message":"gone","details":{"oldestSeq":7}}}`)
		}, 409},
		{"within the stream", func(w http.ResponseWriter) {
			sse(w, logEvent(1, "stdout", "a"), "data: {\"type\":\"error\",\"code\":\"stream_gap\",\"message\":\"overtaken\"}\n\n")
		}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			calls := 0
			c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				calls++
				tc.answer(w)
			}))
			zero := int64(0)
			var last error
			for _, err := range c.Commands.StreamLogs(t.Context(), "cmd_1", &StreamOptions{AfterSeq: &zero}) {
				last = err
			}
			var e *APIError
			if !errors.As(last, &e) || e.Code != "stream_gap" || e.Status != tc.status {
				t.Fatalf("error = %v, want stream_gap with status %d", last, tc.status)
			}
			if calls != 1 {
				t.Errorf("connections = %d, want 1", calls)
			}
		})
	}
}

func TestSilentStreamIsGivenUp(t *testing.T) {
	calls := 0
	c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		if calls == 1 {
			sse(w, logEvent(1, "stdout", "a"))
			<-r.Context().Done()
			return
		}
		sse(w, terminalEvent)
	}))
	c.idle = 20 * time.Millisecond
	n := 0
	for _, err := range c.Commands.StreamLogs(t.Context(), "cmd_1", nil) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 2 || calls != 2 {
		t.Errorf("events, connections = %d, %d, want 2, 2", n, calls)
	}
}

func TestLeavingAStreamEndsTheRequest(t *testing.T) {
	ended := make(chan struct{})
	c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sse(w, logEvent(1, "stdout", "a"))
		<-r.Context().Done()
		close(ended)
	}))
	for _, err := range c.Commands.StreamLogs(t.Context(), "cmd_1", nil) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the request goes on")
	}
}

// recorder gathers what a live run tells.
type recorder struct {
	out, err strings.Builder
	started  []string
	faults   []error
}

func (r *recorder) options() *RunOptions {
	return &RunOptions{
		OnStart:       func(c *Command) { r.started = append(r.started, c.ID) },
		OnStdout:      func(s string) { r.out.WriteString(s) },
		OnStderr:      func(s string) { r.err.WriteString(s) },
		OnStreamError: func(err error) { r.faults = append(r.faults, err) },
	}
}

func TestRunLive(t *testing.T) {
	type routes = map[string]func(w http.ResponseWriter, r *http.Request, n int)
	chunks := func(w http.ResponseWriter, _ *http.Request, _ int) {
		writeJSON(w, 200, `{"data":[{"commandId":"cmd_1","seq":1,"stream":"stdout","data":"ab"},{"commandId":"cmd_1","seq":2,"stream":"stdout","data":"c"}],"hasMore":false,"nextSeq":2}`)
	}
	for _, tc := range []struct {
		name       string
		routes     routes
		collect    bool
		wantFaults int
		wantCalls  string
	}{
		{
			name: "one connection",
			routes: routes{"POST /v1/sandboxes/sbx_1/commands": func(w http.ResponseWriter, _ *http.Request, _ int) {
				sse(w, commandEvent, logEvent(1, "stdout", "ab"), heartbeat, logEvent(2, "stdout", "c"), terminalEvent)
			}},
			wantCalls: "POST commands",
		},
		{
			name: "broken after it began",
			routes: routes{
				"POST /v1/sandboxes/sbx_1/commands": func(w http.ResponseWriter, _ *http.Request, _ int) {
					sse(w, commandEvent, logEvent(1, "stdout", "ab"))
					cut(w)
				},
				"GET /v1/commands/cmd_1/stream": func(w http.ResponseWriter, r *http.Request, _ int) {
					if r.URL.RawQuery != "afterSeq=1" {
						t.Errorf("query = %q", r.URL.RawQuery)
					}
					sse(w, logEvent(2, "stdout", "c"), terminalEvent)
				},
			},
			wantCalls: "POST commands, GET stream",
		},
		{
			name: "broken before it began, then told to wait",
			routes: routes{
				"POST /v1/sandboxes/sbx_1/commands": func(w http.ResponseWriter, _ *http.Request, n int) {
					if n == 1 {
						sse(w, heartbeat)
						cut(w)
					}
					writeJSON(w, 409, `{"error":{"code":"idempotency_request_in_progress","message":"x","details":{"resourceId":"cmd_1"}}}`)
				},
				"GET /v1/commands/cmd_1/stream": func(w http.ResponseWriter, _ *http.Request, _ int) {
					sse(w, logEvent(1, "stdout", "ab"), logEvent(2, "stdout", "c"), terminalEvent)
				},
			},
			wantCalls: "POST commands, POST commands, GET stream",
		},
		{
			name: "replayed",
			routes: routes{
				"POST /v1/sandboxes/sbx_1/commands": func(w http.ResponseWriter, _ *http.Request, _ int) {
					w.Header().Set("Idempotent-Replayed", "true")
					sse(w, commandEvent, terminalEvent)
				},
				"GET /v1/commands/cmd_1/logs": chunks,
			},
			wantCalls: "POST commands, GET logs",
		},
		{
			name: "stream lost for good",
			routes: routes{
				"POST /v1/sandboxes/sbx_1/commands": func(w http.ResponseWriter, _ *http.Request, _ int) {
					sse(w, commandEvent, logEvent(1, "stdout", "ab"), logEvent(2, "stdout", "c"))
					cut(w)
				},
				"GET /v1/commands/cmd_1/stream": func(w http.ResponseWriter, _ *http.Request, _ int) {
					writeJSON(w, 409, `{"error":{"code":"stream_gap","message":"gone"}}`)
				},
				"GET /v1/commands/cmd_1": func(w http.ResponseWriter, _ *http.Request, n int) {
					status := "running"
					if n > 2 {
						status = "exited"
					}
					writeJSON(w, 200, fmt.Sprintf(`{"command":{"id":"cmd_1","status":%q,"stdout":"abc"}}`, status))
				},
			},
			wantFaults: 1,
			wantCalls:  "POST commands, GET stream, GET cmd_1, GET cmd_1, GET cmd_1",
		},
		{
			name: "older server",
			routes: routes{
				"POST /v1/sandboxes/sbx_1/commands/start": func(w http.ResponseWriter, r *http.Request, _ int) {
					b, _ := io.ReadAll(r.Body)
					if want := `{"command":"x","timeoutMs":60000,"_crownestRequireCommandRead":true}`; string(b) != want {
						t.Errorf("body = %s, want %s", b, want)
					}
					writeJSON(w, 202, `{"command":{"id":"cmd_1","status":"running"}}`)
				},
				"GET /v1/commands/cmd_1/stream": func(w http.ResponseWriter, _ *http.Request, _ int) {
					sse(w, logEvent(1, "stdout", "ab"), logEvent(2, "stdout", "c"), terminalEvent)
				},
			},
			wantCalls: "POST commands, POST start, GET stream",
		},
		{
			name:    "older server, with files to collect",
			collect: true,
			routes: routes{
				"POST /v1/sandboxes/sbx_1/commands/run": func(w http.ResponseWriter, _ *http.Request, _ int) {
					writeJSON(w, 200, `{"command":{"id":"cmd_1","status":"exited","exitCode":0,"stdout":"abc"}}`)
				},
				"GET /v1/commands/cmd_1/logs": chunks,
			},
			wantCalls: "POST commands, POST run, GET logs",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var calls []string
			seen := map[string]int{}
			c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				route := r.Method + " " + r.URL.Path
				seen[route]++
				calls = append(calls, r.Method+" "+r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
				if h := tc.routes[route]; h != nil {
					h(w, r, seen[route])
					return
				}
				writeJSON(w, 404, `{"error":{"code":"not_found","message":"no such route"}}`)
			}))
			var rec recorder
			o := rec.options()
			if tc.collect {
				o.Collect = []CollectItem{{Path: "a"}}
			}
			cmd, err := c.Commands.Run(t.Context(), "sbx_1", "x", o)
			if err != nil {
				t.Fatal(err)
			}
			if cmd.Stdout != "abc" || rec.out.String() != "abc" || rec.err.Len() != 0 {
				t.Errorf("stdout, live stdout, live stderr = %q, %q, %q", cmd.Stdout, rec.out.String(), rec.err.String())
			}
			if fmt.Sprint(rec.started) != "[cmd_1]" {
				t.Errorf("OnStart = %v", rec.started)
			}
			if len(rec.faults) != tc.wantFaults {
				t.Errorf("stream errors = %v, want %d", rec.faults, tc.wantFaults)
			}
			if got := strings.Join(calls, ", "); got != tc.wantCalls {
				t.Errorf("calls = %s, want %s", got, tc.wantCalls)
			}
		})
	}
}

func TestRunLiveReportsRefusals(t *testing.T) {
	calls := 0
	c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls++
		writeJSON(w, 410, `{"error":{"code":"sandbox_destroyed","message":"gone"}}`)
	}))
	var rec recorder
	_, err := c.Commands.Run(t.Context(), "sbx_1", "x", rec.options())
	if ErrorCode(err) != "sandbox_destroyed" || calls != 1 || len(rec.faults) != 0 {
		t.Fatalf("error, calls, stream errors = %v, %d, %v", err, calls, rec.faults)
	}
}

func TestPanickingCallbackDoesNotFailTheRun(t *testing.T) {
	c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		sse(w, commandEvent, logEvent(1, "stdout", "a"), logEvent(2, "stdout", "b"), terminalEvent)
	}))
	calls := 0
	var faults []error
	cmd, err := c.Commands.Run(t.Context(), "sbx_1", "x", &RunOptions{
		OnStdout:      func(string) { calls++; panic("boom") },
		OnStreamError: func(err error) { faults = append(faults, err) },
	})
	if err != nil || cmd.Status != CommandExited {
		t.Fatalf("command, error = %v, %v", cmd, err)
	}
	if calls != 1 || len(faults) != 1 || !strings.Contains(faults[0].Error(), "boom") {
		t.Errorf("callbacks, stream errors = %d, %v", calls, faults)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	c, _ := testClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sse(w, commandEvent)
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Commands.Run(ctx, "sbx_1", "x", &RunOptions{OnStart: func(*Command) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error = %v, want context.Canceled", err)
	}
}
