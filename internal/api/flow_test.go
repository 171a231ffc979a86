package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// eventually waits for a condition that other goroutines bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestIdempotentReplay(t *testing.T) {
	r := newRig(t)
	first := r.do("POST", "/v1/sandboxes", `{"metadata":{"a":"1","b":"2"}}`, "Idempotency-Key", "k1")
	again := r.do("POST", "/v1/sandboxes", ` { "metadata" : {"b":"2", "a":"\u0031"} } `, "Idempotency-Key", "k1")
	if first.status != 201 || again.status != 201 || !bytes.Equal(first.body, again.body) {
		t.Fatalf("%d %s\n%d %s", first.status, first.body, again.status, again.body)
	}
	if again.header.Get("Idempotent-Replayed") != "true" || first.header.Get("Idempotent-Replayed") != "" {
		t.Error("Idempotent-Replayed")
	}
	if n := r.called("CreateSandbox"); n != 1 {
		t.Errorf("created %d times", n)
	}
	other := r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", "k1")
	if code, _ := other.errorOf(t); other.status != 409 || code != "idempotency_key_reused" {
		t.Errorf("%d %s", other.status, code)
	}
	// Another route, another credential and another key are other namespaces.
	if a := r.do("POST", "/v1/projects", `{"name":"x"}`, "Idempotency-Key", "k1"); a.status != 201 {
		t.Errorf("%d %s", a.status, a.body)
	}
	secret, _ := r.newKey(sandbox.AllScopes...)
	if a := r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", "k1", "Authorization", "Bearer "+secret); a.status != 201 {
		t.Errorf("%d %s", a.status, a.body)
	}
	for _, bad := range []string{strings.Repeat("x", 256), "a b", "ä"} {
		if a := r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", bad); a.status != 400 {
			t.Errorf("key %q: %d", bad, a.status)
		}
	}
	if a := r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", strings.Repeat("x", 255)); a.status != 201 {
		t.Errorf("longest key: %d", a.status)
	}
	// The query counts.
	sbx := "/v1/sandboxes/" + r.sandbox()
	if a := r.do("DELETE", sbx+"/files?path=/workspace/hello.txt", "", "Idempotency-Key", "d"); a.status != 200 {
		t.Fatalf("%d", a.status)
	}
	if a := r.do("DELETE", sbx+"/files?path=/workspace/bin", "", "Idempotency-Key", "d"); a.status != 409 {
		t.Errorf("%d", a.status)
	}
}

func TestIdempotentErrors(t *testing.T) {
	r := newRig(t)
	var ids []string
	fail := error(sandbox.NewError(sandbox.CodeCapacityExhausted, "Full."))
	r.createSandbox = func(_ context.Context, c control.Call, in control.CreateSandboxInput) (sandbox.Sandbox, error) {
		ids = append(ids, c.OperationID)
		if fail != nil {
			return sandbox.Sandbox{}, fail
		}
		return r.addSandbox(c, in), nil
	}
	for _, want := range []int{503, 503} { // not stored
		a := r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", "k")
		if a.status != want || a.header.Get("Retry-After") == "" {
			t.Fatalf("%d", a.status)
		}
	}
	fail = nil
	if a := r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", "k"); a.status != 201 || a.header.Get("Idempotent-Replayed") != "" {
		t.Fatalf("%d", a.status)
	}
	if len(ids) != 3 || ids[0] != ids[1] || ids[1] != ids[2] {
		t.Errorf("operation ids %v", ids)
	}
	fail = sandbox.NewError(sandbox.CodeNotFound, "No such template.")
	for range 2 { // stored
		if a := r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", "k2"); a.status != 404 {
			t.Fatalf("%d", a.status)
		}
	}
	if len(ids) != 4 {
		t.Errorf("%d calls", len(ids))
	}
	// Decided before the lookup: never stored.
	if a := r.do("POST", "/v1/sandboxes", `{"ttlMs":0}`, "Idempotency-Key", "k3"); a.status != 400 {
		t.Fatalf("%d", a.status)
	}
	fail = nil
	if a := r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", "k3"); a.status != 201 {
		t.Errorf("%d", a.status)
	}
}

func TestIdempotentInProgress(t *testing.T) {
	r := newRig(t)
	entered, release := make(chan string, 1), make(chan struct{})
	r.createSandbox = func(_ context.Context, c control.Call, in control.CreateSandboxInput) (sandbox.Sandbox, error) {
		entered <- c.OperationID
		<-release
		return r.addSandbox(c, in), nil
	}
	var wg sync.WaitGroup
	var first answer
	wg.Go(func() { first = r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", "k") })
	id := <-entered
	a := r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", "k")
	code, details := a.errorOf(t)
	if a.status != 409 || code != "idempotency_request_in_progress" || a.header.Get("Retry-After") != "1" || details["resourceId"] != "sbx_"+id {
		t.Errorf("%d %s %v %v", a.status, code, details, a.header)
	}
	if a := r.do("POST", "/v1/sandboxes", `{"ttlMs":1000}`, "Idempotency-Key", "k"); a.status != 409 {
		t.Errorf("%d", a.status)
	} else if code, _ := a.errorOf(t); code != "idempotency_key_reused" {
		t.Errorf("%s", code)
	}
	close(release)
	wg.Wait()
	if first.status != 201 {
		t.Errorf("%d", first.status)
	}
}

// TestIdempotentTakeover repeats a request whose first server process died.
func TestIdempotentTakeover(t *testing.T) {
	r := newRig(t)
	var rq request
	req, _ := http.NewRequest("POST", r.http.URL+"/v1/sandboxes", nil)
	rq.r, rq.op, rq.query, rq.canonical = req, r.api.routes["/v1/sandboxes"].methods["POST"], url.Values{}, []byte("{}")
	rq.call.Principal, _ = r.auth.Authenticate(t.Context(), r.key)
	opID := sandbox.NewSuffix()
	err := r.store.Update(t.Context(), func(tx store.Tx) error {
		_, _, err := tx.BeginOperation(t.Context(), store.Operation{
			Namespace: rq.namespace("k"), Fingerprint: rq.fingerprint(), OperationID: opID, Owner: "boot-0",
			CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	a := r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", "k")
	if id := a.json(t)["sandbox"].(map[string]any)["id"]; id != "sbx_"+opID {
		t.Errorf("made %v, want the id of the first try %s", id, opID)
	}
}

// TestVanishingClient drops the connection of an accepted mutation.
func TestVanishingClient(t *testing.T) {
	r := newRig(t)
	entered, release := make(chan struct{}), make(chan struct{})
	r.createSandbox = func(ctx context.Context, c control.Call, in control.CreateSandboxInput) (sandbox.Sandbox, error) {
		close(entered)
		<-release
		return r.addSandbox(c, in), ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", r.http.URL+"/v1/sandboxes", strings.NewReader("{}"))
	req.Header.Set("Authorization", "Bearer "+r.key)
	req.Header.Set("Idempotency-Key", "k")
	var wg sync.WaitGroup
	wg.Go(func() {
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
			t.Error("an answer to a client that went away")
		}
	})
	<-entered
	cancel()
	wg.Wait()
	close(release)
	eventually(t, "the answer is stored", func() bool {
		a := r.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", "k")
		return a.status == 201 && a.header.Get("Idempotent-Replayed") == "true"
	})
	if n := r.called("CreateSandbox"); n != 1 {
		t.Errorf("created %d times", n)
	}
}

// TestHalfClosed sends a request and closes the sending half of the connection.
func TestHalfClosed(t *testing.T) {
	r := newRig(t)
	sbx := r.sandbox()
	for _, req := range []string{
		"GET /v1/sandboxes/" + sbx + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + r.key + "\r\n\r\n",
		"POST /v1/sandboxes/" + sbx + "/commands/run HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + r.key + "\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + `{"command":"x"}`,
		"GET /v1/sandboxes/" + sbx + "/files/download?path=/workspace/hello.txt HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + r.key + "\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.http.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, req)
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		b, _ := io.ReadAll(conn)
		conn.Close()
		if !bytes.HasPrefix(b, []byte("HTTP/1.1 200")) {
			t.Errorf("%.40s: %.80s", req, b)
		}
	}
	// A body that ends early is the client's fault.
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.http.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+r.key+"\r\nContent-Length: 100\r\n\r\n{}")
	_ = conn.(*net.TCPConn).CloseWrite()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if b, _ := io.ReadAll(conn); !bytes.HasPrefix(b, []byte("HTTP/1.1 400")) {
		t.Errorf("%.80s", b)
	}
}

func TestRun(t *testing.T) {
	r := newRig(t)
	sbx := "/v1/sandboxes/" + r.sandbox()
	a := r.do("POST", sbx+"/commands/run", `{"command":"hi"}`, "Idempotency-Key", "k")
	cmd := a.json(t)["command"].(map[string]any)
	if a.status != 200 || cmd["stdout"] != "hi\n" || cmd["stderr"] != "" || cmd["exitCode"] != float64(0) || cmd["status"] != "exited" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	again := r.do("POST", sbx+"/commands/run", `{"command":"hi"}`, "Idempotency-Key", "k")
	if !bytes.Equal(a.body, again.body) || again.header.Get("Idempotent-Replayed") != "true" || r.called("started") != 1 {
		t.Errorf("%s\n%s", a.body, again.body)
	}
	got := r.do("GET", "/v1/commands/"+cmd["id"].(string), "").json(t)["command"].(map[string]any)
	if got["stdout"] != "hi\n" {
		t.Errorf("%v", got)
	}
	list := r.do("GET", sbx+"/commands", "").json(t)["data"].([]any)[0].(map[string]any)
	if _, there := list["stdout"]; there {
		t.Error("a list holds output")
	}
	if a := r.do("POST", sbx+"/commands/start", `{"command":"wait"}`); a.status != 202 {
		t.Errorf("start %d", a.status)
	} else if _, there := a.json(t)["command"].(map[string]any)["stdout"]; there {
		t.Error("output of a running command")
	}
	for range 2 { // errors are replayed, too
		if a := r.do("POST", "/v1/sandboxes/"+sandbox.NewID("sbx")+"/commands/run", `{"command":"x"}`, "Idempotency-Key", "k9"); a.status != 404 {
			t.Errorf("%d", a.status)
		}
	}
}

// TestLongAnswer holds contract section 1.4 with shorter times.
func TestLongAnswer(t *testing.T) {
	r := newRig(t)
	r.api.timing.answerBy, r.api.timing.keepAlive = 50*time.Millisecond, 20*time.Millisecond
	sbx := "/v1/sandboxes/" + r.sandbox()
	go func() {
		eventually(t, "the command runs", func() bool { return len(r.running()) == 1 })
		time.Sleep(150 * time.Millisecond)
		r.end(r.running()[0], "done", "")
	}()
	a := r.do("POST", sbx+"/commands/run", `{"command":"wait"}`)
	if a.status != 200 || !bytes.HasPrefix(a.body, []byte("  ")) || a.header.Get("X-Accel-Buffering") != "no" || a.header.Get("Content-Length") != "" {
		t.Errorf("%d %v %q", a.status, a.header, a.body)
	}
	if a.json(t)["command"].(map[string]any)["stdout"] != "done" {
		t.Errorf("%s", a.body)
	}
}

// TestLongAnswerVanished drops the client of a long run; its answer is kept.
func TestLongAnswerVanished(t *testing.T) {
	for _, accept := range []string{"application/json", "text/event-stream"} {
		t.Run(accept, func(t *testing.T) {
			r := newRig(t)
			r.api.timing.answerBy, r.api.timing.keepAlive = 10*time.Millisecond, 10*time.Millisecond
			sbx := "/v1/sandboxes/" + r.sandbox()
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, "POST", r.http.URL+sbx+"/commands", strings.NewReader(`{"command":"wait"}`))
			req.Header = http.Header{"X-Api-Key": {r.key}, "Idempotency-Key": {"k"}, "Accept": {accept}}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			res.Body.Close()
			a := r.do("POST", sbx+"/commands", `{"command":"wait"}`, "Idempotency-Key", "k")
			if code, details := a.errorOf(t); code != "idempotency_request_in_progress" || details["resourceId"] != r.running()[0] {
				t.Errorf("%s %v", code, details)
			}
			r.end(r.running()[0], "done", "")
			eventually(t, "the answer is stored", func() bool {
				a = r.do("POST", sbx+"/commands", `{"command":"wait"}`, "Idempotency-Key", "k")
				return a.status == 200
			})
			if a.json(t)["command"].(map[string]any)["stdout"] != "done" || r.called("started") != 1 {
				t.Errorf("%s", a.body)
			}
		})
	}
}

// events reads a stream to its end.
func readEvents(t *testing.T, body io.Reader) (ids []string, events []map[string]any) {
	t.Helper()
	sc := bufio.NewScanner(body)
	sc.Buffer(nil, 8<<20)
	id := ""
	for sc.Scan() {
		line := sc.Text()
		if strings.Contains(line, "\r") || strings.ContainsAny(line, "\u0085\u2028\u2029") {
			t.Errorf("a line break inside a line: %.80q", line)
		}
		switch {
		case strings.HasPrefix(line, "id: "):
			id = line[4:]
		case strings.HasPrefix(line, "data: "):
			if len(line) >= 4<<20 {
				t.Errorf("a line of %d bytes", len(line))
			}
			var ev map[string]any
			if err := json.Unmarshal([]byte(line[6:]), &ev); err != nil {
				t.Fatalf("%v: %.80q", err, line)
			}
			ids, events = append(ids, id), append(events, ev)
			id = ""
		case line != "" && line[0] != ':':
			t.Errorf("line %.80q", line)
		}
	}
	return ids, events
}

func TestStreamedRun(t *testing.T) {
	r := newRig(t)
	sbx := "/v1/sandboxes/" + r.sandbox()
	odd := "a\u0085b\u2028c\u2029d\re\xfff\x00g\"h\\"
	body, _ := json.Marshal(map[string]string{"command": odd[:len("a\u0085b\u2028c\u2029d\re")]})
	for _, replay := range []bool{false, true} {
		a := r.do("POST", sbx+"/commands", string(body), "Accept", "text/event-stream", "Idempotency-Key", "k")
		if a.status != 200 || a.header.Get("Content-Type") != "text/event-stream; charset=utf-8" || a.header.Get("X-Accel-Buffering") != "no" {
			t.Fatalf("%d %v", a.status, a.header)
		}
		if (a.header.Get("Idempotent-Replayed") == "true") != replay {
			t.Errorf("replayed %q", a.header.Get("Idempotent-Replayed"))
		}
		ids, events := readEvents(t, bytes.NewReader(a.body))
		var types []string
		for i, e := range events {
			types = append(types, e["type"].(string)+ids[i])
			r.validate("event", r.api.registry.Map()["CreateCommandEvent"], e)
		}
		want := "command log1 terminal"
		if replay {
			want = "command terminal"
		}
		if got := strings.Join(types, " "); got != want {
			t.Fatalf("events %s, want %s", got, want)
		}
		last := events[len(events)-1]["command"].(map[string]any)
		if last["stdout"] != "a\u0085b\u2028c\u2029d\re\n" || last["exitCode"] != float64(0) {
			t.Errorf("terminal %v", last)
		}
	}
	if r.called("started") != 1 {
		t.Errorf("started %d times", r.called("started"))
	}
}

func TestStream(t *testing.T) {
	r := newRig(t)
	r.api.timing.heartbeat = 20 * time.Millisecond
	sbx := "/v1/sandboxes/" + r.sandbox()
	id := r.do("POST", sbx+"/commands/start", `{"command":"wait"}`).json(t)["command"].(map[string]any)["id"].(string)
	req, _ := http.NewRequestWithContext(t.Context(), "GET", r.http.URL+"/v1/commands/"+id+"/stream?afterSeq=1", nil)
	req.Header.Set("X-Api-Key", r.key)
	res, err := http.DefaultClient.Do(req) // headers come at once
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	go func() {
		time.Sleep(100 * time.Millisecond)
		r.end(id, strings.Repeat("x", 200<<10)+"\xff", "")
	}()
	ids, events := readEvents(t, res.Body)
	beats, logs := 0, 0
	for i, e := range events {
		r.validate("event", r.api.registry.Map()["CommandEvent"], e)
		switch e["type"] {
		case "heartbeat":
			beats++
		case "log":
			logs++
			if ids[i] != fmt.Sprint(e["seq"]) || e["seq"].(float64) <= 1 {
				t.Errorf("id %s of seq %v", ids[i], e["seq"])
			}
		}
	}
	if beats == 0 || logs != 3 || events[len(events)-1]["type"] != "terminal" {
		t.Errorf("%d heartbeats, %d logs", beats, logs)
	}
	a := r.do("GET", "/v1/commands/"+id+"/stream?afterSeq=999", "")
	if code, details := a.errorOf(t); a.status != 409 || code != "stream_gap" || details["oldestSeq"] != float64(5) {
		t.Errorf("%d %s %v", a.status, code, details)
	}
	page := r.do("GET", "/v1/commands/"+id+"/logs?limit=2", "").json(t)
	if page["hasMore"] != true || page["nextSeq"] != float64(2) || len(page["data"].([]any)) != 2 {
		t.Errorf("%v", page["nextSeq"])
	}
	page = r.do("GET", "/v1/commands/"+id+"/logs?afterSeq=77", "").json(t)
	if page["hasMore"] != false || page["nextSeq"] != float64(77) {
		t.Errorf("%v", page)
	}
}

func TestTerminalEventFits(t *testing.T) {
	for _, tc := range []struct{ out, err string }{
		{strings.Repeat("\x01", 1<<20), strings.Repeat("\x02", 1<<20)},
		{strings.Repeat("\u0085", 1<<19), "short"},
		{"short", strings.Repeat("\xff", 1<<20)},
		{strings.Repeat("x", 1<<20), strings.Repeat("y", 1<<20)},
		{strings.Repeat("\u2028", 300_000), strings.Repeat("\x00", 300_000)},
	} {
		c := sandbox.Command{ID: sandbox.NewID("cmd"), Command: strings.Repeat("\x01", 256<<10), Status: sandbox.CommandExited, Stdout: tc.out, Stderr: tc.err}
		e := terminalEvent(c)
		es := &eventStream{}
		es.json(e)
		if n := len(es.buf); n > 4<<20 {
			t.Errorf("line of %d bytes", n)
		}
		for _, s := range []struct {
			whole, sent string
			cut         bool
		}{{tc.out, *e.Command.Stdout, e.Command.StdoutTruncated}, {tc.err, *e.Command.Stderr, e.Command.StderrTruncated}} {
			if !strings.HasPrefix(s.whole, s.sent) || (s.whole != s.sent) != s.cut {
				t.Errorf("sent %d of %d, cut %v", len(s.sent), len(s.whole), s.cut)
			}
			if len(s.whole) < 100 && s.cut {
				t.Error("a short stream was cut")
			}
			if s.cut && len(s.sent) < 200<<10 {
				t.Errorf("cut to %d bytes", len(s.sent))
			}
		}
		if tc.out[0] == 'x' && (e.Command.StdoutTruncated || e.Command.StderrTruncated) {
			t.Error("plain output was cut")
		}
	}
}

// TestRevokedStream revokes the key of an open stream.
func TestRevokedStream(t *testing.T) {
	r := newRig(t)
	r.api.timing.keyCheck = 10 * time.Millisecond
	sbx := "/v1/sandboxes/" + r.sandbox()
	id := r.do("POST", sbx+"/commands/start", `{"command":"wait"}`).json(t)["command"].(map[string]any)["id"].(string)
	req, _ := http.NewRequestWithContext(t.Context(), "GET", r.http.URL+"/v1/commands/"+id+"/stream", nil)
	req.Header.Set("X-Api-Key", r.key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	r.revoke(r.keyID)
	if _, events := readEvents(t, res.Body); len(events) != 0 {
		t.Errorf("%v", events)
	}
	if a := r.do("GET", "/v1/projects", ""); a.status != 401 {
		t.Errorf("%d", a.status)
	}
}

func (r *rig) revoke(id string) {
	r.t.Helper()
	if err := r.store.Update(r.t.Context(), func(tx store.Tx) error { return tx.RevokeKey(r.t.Context(), id, time.Now()) }); err != nil {
		r.t.Fatal(err)
	}
	r.auth.Forget(id)
}

func TestDownloads(t *testing.T) {
	r := newRig(t)
	id := r.sandbox()
	base := "/v1/sandboxes/" + id + "/files/download?path=/workspace/hello.txt"
	for _, tc := range []struct {
		method, rng   string
		status        int
		body, content string
	}{
		{"GET", "", 200, "hello", ""},
		{"HEAD", "", 200, "", ""},
		{"GET", "bytes=1-3", 206, "ell", "bytes 1-3/5"},
		{"GET", "bytes=3-", 206, "lo", "bytes 3-4/5"},
		{"GET", "bytes=-2", 206, "lo", "bytes 3-4/5"},
		{"GET", "bytes=-99", 206, "hello", "bytes 0-4/5"},
		{"GET", "bytes=0-99", 206, "hello", "bytes 0-4/5"},
		{"HEAD", "bytes=1-3", 206, "", "bytes 1-3/5"},
		{"GET", "bytes=5-", 416, "", "bytes */5"},
		{"GET", "bytes=-0", 416, "", "bytes */5"},
		{"GET", "bytes=3-1", 200, "hello", ""},
		{"GET", "bytes=0-1,3-4", 200, "hello", ""},
		{"GET", "lines=1-2", 200, "hello", ""},
		{"GET", "bytes=x", 200, "hello", ""},
	} {
		a := r.do(tc.method, base, "", "Range", tc.rng)
		if a.status != tc.status || a.header.Get("Content-Range") != tc.content {
			t.Errorf("%s %q: %d %q", tc.method, tc.rng, a.status, a.header.Get("Content-Range"))
			continue
		}
		if tc.status == 416 {
			if code, _ := a.errorOf(t); code != "invalid_request" {
				t.Errorf("%s", code)
			}
			continue
		}
		if string(a.body) != tc.body || a.header.Get("Content-Disposition") != "attachment; filename=hello.txt" || a.header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s %q: %q %v", tc.method, tc.rng, a.body, a.header)
		}
	}
	if a := r.do("GET", base, "", "Range", "bytes=1-3", "If-Range", `"x"`); a.status != 200 {
		t.Errorf("If-Range: %d", a.status)
	}
	art := r.do("POST", "/v1/sandboxes/"+id+"/artifacts", `{"path":"a.html"}`).json(t)["artifact"].(map[string]any)["id"].(string)
	if a := r.do("GET", "/v1/artifacts/"+art+"/download", ""); string(a.body) != "abc" || a.header.Get("Content-Type") != "text/html" {
		t.Errorf("%q %v", a.body, a.header)
	}
}

func TestDisposition(t *testing.T) {
	for name, want := range map[string]string{
		"": "attachment", "a.txt": "attachment; filename=a.txt", "a b": `attachment; filename="a b"`,
		"a\r\nSet-Cookie: x": `attachment; filename="a__Set-Cookie: x"`, "../x": "attachment; filename=.._x",
		"ä": "attachment; filename*=utf-8''%C3%A4", `q"q`: `attachment; filename="q\"q"`,
	} {
		if got := disposition(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

func TestSignedURLs(t *testing.T) {
	r := newRig(t)
	id := r.sandbox()
	sbx := "/v1/sandboxes/" + id
	anonymous := []string{"Authorization", ""}
	a := r.do("POST", sbx+"/files/download-url", `{"path":"/workspace/hello.txt"}`, "Idempotency-Key", "k")
	u := a.json(t)
	link := u["url"].(string)
	if !strings.HasPrefix(link, r.http.URL+sbx+"/files/download?") || u["authMode"] != "api_key" || u["method"] != "GET" || len(u["headers"].(map[string]any)) != 0 {
		t.Fatalf("%v", u)
	}
	if b := r.do("GET", link, "", anonymous...); string(b.body) != "hello" {
		t.Errorf("%d %s", b.status, b.body)
	}
	if b := r.do("HEAD", link, "", anonymous...); b.status != 200 {
		t.Errorf("HEAD %d", b.status)
	}
	// Replays open what was stored sealed.
	if b := r.do("POST", sbx+"/files/download-url", `{"path":"/workspace/hello.txt"}`, "Idempotency-Key", "k"); !bytes.Equal(b.body, a.body) {
		t.Errorf("%s", b.body)
	}
	reason := func(a answer, want string) {
		t.Helper()
		code, details := a.errorOf(t)
		if a.status != 403 || code != "forbidden" || details["reason"] != want {
			t.Errorf("%d %s %v, want %s", a.status, code, details, want)
		}
	}
	reason(r.do("GET", strings.Replace(link, "hello.txt", "bin", 1), "", anonymous...), "signature_invalid")
	reason(r.do("GET", link+"x", "", anonymous...), "signature_invalid")
	other := "/v1/sandboxes/" + r.sandbox() + "/files/download?" + strings.SplitN(link, "?", 2)[1]
	reason(r.do("GET", other, "", anonymous...), "signature_invalid")
	if b := r.do("GET", link+"x", ""); b.status != 200 { // judged by the credential
		t.Errorf("%d", b.status)
	}
	if b := r.do("GET", link+"x", "", "Authorization", "Bearer nope"); b.status != 401 {
		t.Errorf("%d", b.status)
	}
	if b := r.do("GET", sbx+"/files/download?path=a", "", anonymous...); b.status != 401 {
		t.Errorf("%d", b.status)
	}
	expired := func(method, path string, g grant) string {
		q := url.Values{"path": {"/workspace/hello.txt"}}
		q.Set("signature", r.api.signer.Sign(auth.Grant{Method: method, Resource: g.resource, Path: g.path, Expires: time.Now().Add(-time.Second), KeyID: r.keyID}))
		return path + "?" + q.Encode()
	}
	reason(r.do("GET", expired("GET", sbx+"/files/download", grant{id, "file:/workspace/hello.txt"}), "", anonymous...), "signature_expired")

	up := r.do("POST", sbx+"/files/upload-url", `{"path":"/workspace/new","sizeBytes":3}`).json(t)
	if up["method"] != "PUT" || up["maxSizeBytes"] != float64(1<<20) {
		t.Errorf("%v", up)
	}
	b := r.do("PUT", up["url"].(string), "abc", "Authorization", "", "Content-Type", "application/octet-stream")
	if b.status != 201 || b.json(t)["file"].(map[string]any)["sizeBytes"] != float64(3) {
		t.Errorf("%d %s", b.status, b.body)
	}
	upID := up["uploadId"].(string)
	b = r.do("PUT", expired("PUT", sbx+"/files/uploads/"+upID, grant{upID, "upload:" + id}), "abc", anonymous...)
	if code, _ := b.errorOf(t); b.status != 410 || code != "upload_expired" {
		t.Errorf("%d %s", b.status, code)
	}
	cmd := r.do("POST", sbx+"/commands/run", `{"command":"x"}`).json(t)["command"].(map[string]any)["id"].(string)
	logs := r.do("POST", "/v1/commands/"+cmd+"/logs/download-url", `{"stream":"stderr"}`).json(t)["url"].(string)
	if b := r.do("GET", logs, "", anonymous...); string(b.body) != "stderr:x\n" {
		t.Errorf("%s", b.body)
	}
	reason(r.do("GET", strings.Replace(logs, "stderr", "stdout", 1), "", anonymous...), "signature_invalid")

	r.revoke(r.keyID)
	reason(r.do("GET", link, "", anonymous...), "key_revoked")
}

func TestUploadEndsEarly(t *testing.T) {
	r := newRig(t)
	sbx := "/v1/sandboxes/" + r.sandbox()
	up := r.do("POST", sbx+"/files/upload-url", `{"path":"/workspace/new"}`).json(t)
	u, _ := url.Parse(up["url"].(string))
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000\r\n\r\nabc", u.RequestURI(), u.Host)
	_ = conn.(*net.TCPConn).CloseWrite()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if b, _ := io.ReadAll(conn); !bytes.HasPrefix(b, []byte("HTTP/1.1 400")) {
		t.Errorf("%.80s", b)
	}
}

func TestDrain(t *testing.T) {
	r := newRig(t)
	sbx := "/v1/sandboxes/" + r.sandbox()
	id := r.do("POST", sbx+"/commands/start", `{"command":"wait"}`).json(t)["command"].(map[string]any)["id"].(string)
	req, _ := http.NewRequestWithContext(t.Context(), "GET", r.http.URL+"/v1/commands/"+id+"/stream", nil)
	req.Header.Set("X-Api-Key", r.key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	run := make(chan error, 1)
	go func() {
		body := strings.NewReader(`{"command":"wait"}`)
		req, _ := http.NewRequestWithContext(t.Context(), "POST", r.http.URL+sbx+"/commands/run", body)
		req.Header = http.Header{"X-Api-Key": {r.key}, "Idempotency-Key": {"k"}}
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			res.Body.Close()
		}
		run <- err
	}()
	eventually(t, "both run", func() bool { return len(r.running()) == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.api.Drain(ctx); err != nil {
		t.Error(err)
	}
	if err := <-run; err == nil {
		t.Error("a cut run was answered")
	}
	_, _ = readEvents(t, res.Body)
	if a := r.do("GET", "/readyz", ""); a.status != 503 {
		t.Errorf("%d", a.status)
	}
}

func TestDrainIdle(t *testing.T) {
	r := newRig(t)
	r.sandbox()
	if err := r.api.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestKeptAlive uses one connection for longer than a write may take.
func TestKeptAlive(t *testing.T) {
	r := newRig(t)
	r.api.timing.write = 30 * time.Millisecond
	id := r.sandbox()
	sbx := "/v1/sandboxes/" + id
	tr := &http.Transport{MaxConnsPerHost: 1}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	for range 2 {
		for _, path := range []string{sbx, sbx + "/files/download?path=/workspace/hello.txt", "/healthz"} {
			for _, method := range []string{"GET", "HEAD"} {
				req, _ := http.NewRequestWithContext(t.Context(), method, r.http.URL+path, nil)
				req.Header.Set("X-Api-Key", r.key)
				res, err := client.Do(req)
				if err != nil {
					t.Fatalf("%s %s: %v", method, path, err)
				}
				if _, err := io.Copy(io.Discard, res.Body); err != nil {
					t.Errorf("%s %s: %v", method, path, err)
				}
				res.Body.Close()
				time.Sleep(40 * time.Millisecond)
			}
		}
	}
}

// TestStuckClient stops reading in the middle of a stream.
func TestStuckClient(t *testing.T) {
	r := newRig(t)
	r.api.timing.write = 50 * time.Millisecond
	sbx := "/v1/sandboxes/" + r.sandbox()
	id := r.do("POST", sbx+"/commands/start", `{"command":"wait"}`).json(t)["command"].(map[string]any)["id"].(string)
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.http.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/commands/%s/stream HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\n\r\n", id, r.key)
	if _, err := io.ReadFull(conn, make([]byte, 20)); err != nil {
		t.Fatal(err)
	}
	r.end(id, strings.Repeat("x", 64<<20), "")
	eventually(t, "the server gives the client up", func() bool {
		r.api.mu.Lock()
		defer r.api.mu.Unlock()
		return r.api.active == 0
	})
}
