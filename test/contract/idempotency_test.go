package contract

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

func (s *suite) idempotencyRows(t *testing.T) {
	o := s.owner
	unique := func(name string) string { return fmt.Sprintf("%s-%d", name, time.Now().UnixNano()) }

	s.row(t, "1.9", "every mutation: same key, same answer, done once", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		o.run(t, sbx, "echo x > f; echo x > g; mkdir d")
		started := text(object(o.want(t, 202, "POST", sbx+"/commands/start", map[string]any{"command": "sleep 100"})["command"])["id"])
		art := text(object(o.want(t, 201, "POST", sbx+"/artifacts", map[string]any{"path": "f"})["artifact"])["id"])
		for _, tc := range []struct {
			method, path string
			body         any
			status       int
		}{
			{"POST", "/v1/sandboxes", map[string]any{"ttlMs": 20_000}, 201},
			{"POST", "/v1/projects", map[string]any{"name": unique("p")}, 201},
			{"POST", sbx + "/extend", map[string]any{"ttlMs": 600_000}, 200},
			{"POST", sbx + "/commands/run", map[string]any{"command": "echo ran >> count; wc -l < count"}, 200},
			{"POST", sbx + "/commands", map[string]any{"command": "echo ran >> count2; wc -l < count2"}, 200},
			{"POST", sbx + "/commands/start", map[string]any{"command": "echo ran >> count3"}, 202},
			{"POST", "/v1/commands/" + started + "/cancel", map[string]any{"mode": "force"}, 200},
			{"PUT", sbx + "/files", map[string]any{"path": "once", "content": "x", "overwrite": false}, 200},
			{"POST", sbx + "/files/mkdir", map[string]any{"path": "once-dir"}, 200},
			{"POST", sbx + "/files/move", map[string]any{"from": "g", "to": "h"}, 200},
			{"DELETE", sbx + "/files?path=f", nil, 200},
			{"POST", sbx + "/files/download-url", map[string]any{"path": "h"}, 200},
			{"POST", sbx + "/files/upload-url", map[string]any{"path": "up"}, 201},
			{"POST", sbx + "/artifacts", map[string]any{"path": "h"}, 201},
			{"POST", "/v1/artifacts/" + art + "/download-url", nil, 200},
			{"DELETE", "/v1/artifacts/" + art, nil, 200},
			{"DELETE", sbx, nil, 200},
		} {
			key := unique("k")
			first := o.call(t, tc.method, tc.path, tc.body, "Idempotency-Key", key)
			again := o.call(t, tc.method, tc.path, tc.body, "Idempotency-Key", key)
			if first.status != tc.status || again.status != tc.status || !bytes.Equal(first.body, again.body) {
				t.Errorf("%s %s: %d %.300s\nthen %d %.300s", tc.method, tc.path, first.status, first.body, again.status, again.body)
			}
			if first.header.Get("Idempotent-Replayed") != "" || again.header.Get("Idempotent-Replayed") != "true" {
				t.Errorf("%s %s: Idempotent-Replayed %q, then %q", tc.method, tc.path, first.header.Get("Idempotent-Replayed"), again.header.Get("Idempotent-Replayed"))
			}
			var other any = map[string]any{"somethingElse": true, "command": "x", "path": "x", "content": "x", "from": "x", "to": "y", "ttlMs": 5, "name": "x"}
			if tc.method == "DELETE" {
				other = nil
				tc.path += map[bool]string{true: "&", false: "?"}[strings.Contains(tc.path, "?")] + "other=1"
			}
			if code, _ := o.call(t, tc.method, tc.path, other, "Idempotency-Key", key).envelope(t); code != "idempotency_key_reused" {
				t.Errorf("%s %s with another request: %q", tc.method, tc.path, code)
			}
		}
	})
	s.row(t, "1.9", "errors after the lookup are kept, errors before are not", func(t *testing.T) {
		key := unique("k")
		o.refused(t, 404, "not_found", "POST", "/v1/sandboxes", map[string]any{"template": "nope"}, "Idempotency-Key", key)
		if a := o.call(t, "POST", "/v1/sandboxes", map[string]any{"template": "nope"}, "Idempotency-Key", key); a.header.Get("Idempotent-Replayed") != "true" {
			t.Error("not replayed")
		}
		key = unique("k")
		o.refused(t, 400, "invalid_request", "POST", "/v1/projects", map[string]any{"name": ""}, "Idempotency-Key", key)
		o.want(t, 201, "POST", "/v1/projects", map[string]any{"name": unique("p")}, "Idempotency-Key", key)
	})
	s.row(t, "1.9", "bad keys", func(t *testing.T) {
		for _, key := range []string{strings.Repeat("x", 256), "a b", "\xc3\xa4"} {
			o.refused(t, 400, "invalid_request", "POST", "/v1/sandboxes", map[string]any{}, "Idempotency-Key", key)
		}
	})
	s.row(t, "1.9", "at the same time: one works, the others are told", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		key := unique("k")
		done := make(chan answer)
		go func() {
			done <- o.call(t, "POST", sbx+"/commands/run", map[string]any{"command": "sleep 1; echo end"}, "Idempotency-Key", key)
		}()
		until(t, "it runs", 5*time.Second, func() bool {
			return len(items(o.want(t, 200, "GET", sbx+"/commands", nil)["data"])) == 1
		})
		a := o.call(t, "POST", sbx+"/commands/run", map[string]any{"command": "sleep 1; echo end"}, "Idempotency-Key", key)
		code, details := a.envelope(t)
		id := text(object(items(o.want(t, 200, "GET", sbx+"/commands", nil)["data"])[0])["id"])
		if a.status != 409 || code != "idempotency_request_in_progress" || a.header.Get("Retry-After") != "1" || details["resourceId"] != id {
			t.Errorf("%d %s %v", a.status, code, details)
		}
		if first := <-done; text(object(first.object(t)["command"])["id"]) != id {
			t.Errorf("%s", first.body)
		}
	})
	s.row(t, "1.9", "a client that vanishes finds its answer", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		for _, accept := range []string{"application/json", "text/event-stream"} {
			key := unique("k")
			body := map[string]any{"command": "sleep 0.6; echo ran >> times; wc -l < times"}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			res, err := o.http.Do(o.request(t, "POST", sbx+"/commands", body, "Idempotency-Key", key, "Accept", accept).WithContext(ctx))
			if err == nil {
				drain(res)
				_ = res.Body.Close()
			}
			cancel()
			var a answer
			until(t, "the answer", 10*time.Second, func() bool {
				a = o.call(t, "POST", sbx+"/commands", body, "Idempotency-Key", key)
				return a.status == 200
			})
			c := object(a.object(t)["command"])
			if a.header.Get("Idempotent-Replayed") != "true" || c["status"] != "exited" {
				t.Errorf("%v %v", a.header, c)
			}
		}
		if c := o.run(t, sbx, "wc -l < times"); c["stdout"] != "2\n" {
			t.Errorf("ran %v times", c["stdout"])
		}
	})
	s.row(t, "1.9", "a replayed stream holds the final events only", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		key := unique("k")
		for i, want := range []string{"command log terminal", "command terminal"} {
			var kinds []string
			res := o.events(t, o.request(t, "POST", sbx+"/commands", map[string]any{"command": "echo x"}, "Accept", "text/event-stream", "Idempotency-Key", key), func(e event) bool {
				kinds = append(kinds, text(e.data["type"]))
				return true
			})
			if got := strings.Join(kinds, " "); got != want || (res.Header.Get("Idempotent-Replayed") == "true") != (i == 1) {
				t.Errorf("%s, want %s", got, want)
			}
		}
	})
}

// restartRows stop and kill the server in the middle of work that clients wait for
// or will ask for again.
func (s *suite) restartRows(t *testing.T) {
	o := s.owner
	s.row(t, "1.9", "after kill -9 a retried run is the one command it was", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		body := map[string]any{"command": "echo ran >> times; sleep 3; wc -l < times"}
		cut := make(chan struct{})
		go func() {
			defer close(cut)
			req := o.request(t, "POST", sbx+"/commands/run", body, "Idempotency-Key", "crash")
			if res, err := o.http.Do(req); err == nil {
				_ = res.Body.Close()
				t.Error("answered by a server that was killed")
			}
		}()
		until(t, "it runs", 5*time.Second, func() bool {
			return len(items(o.want(t, 200, "GET", sbx+"/commands", nil)["data"])) == 1
		})
		id := text(object(items(o.want(t, 200, "GET", sbx+"/commands", nil)["data"])[0])["id"])
		s.server.Kill()
		<-cut
		if err := s.server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := object(o.want(t, 200, "POST", sbx+"/commands/run", body, "Idempotency-Key", "crash")["command"])
		if c["id"] != id || c["status"] != "exited" || c["stdout"] != "1\n" {
			t.Errorf("%v, want %s", c, id)
		}
		if n := len(items(o.want(t, 200, "GET", sbx+"/commands", nil)["data"])); n != 1 {
			t.Errorf("%d commands", n)
		}
	})
	s.row(t, "1.9", "SIGTERM: answers under way are finished", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		done := make(chan answer)
		go func() {
			done <- o.call(t, "POST", sbx+"/commands/run", map[string]any{"command": "sleep 2; echo end"})
		}()
		until(t, "it runs", 5*time.Second, func() bool {
			return len(items(o.want(t, 200, "GET", sbx+"/commands", nil)["data"])) == 1
		})
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		if err := s.server.Stop(ctx); err != nil {
			t.Error(err)
		}
		if a := <-done; a.status != 200 || object(a.object(t)["command"])["stdout"] != "end\n" {
			t.Errorf("%d %s", a.status, a.body)
		}
		if err := s.server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	s.row(t, "1.9", "SIGTERM: a restart ends no command and no sandbox", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		id := text(object(o.want(t, 202, "POST", sbx+"/commands/start", map[string]any{"command": "for i in $(seq 40); do echo $i; sleep 0.1; done"})["command"])["id"])
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		if err := s.server.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if err := s.server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		n := 0
		o.events(t, o.request(t, "GET", "/v1/commands/"+id+"/stream", nil), func(e event) bool {
			if e.data["type"] == "log" {
				n += strings.Count(text(e.data["data"]), "\n")
			}
			return true
		})
		if n != 40 {
			t.Errorf("%d of 40 lines", n)
		}
	})
}
