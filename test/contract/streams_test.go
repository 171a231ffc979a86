package contract

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// event is one server-sent event.
type event struct {
	id   string
	data map[string]any
	at   time.Time
}

// events opens a stream and calls fn for each event until the stream ends or fn
// says no more. It returns the response for its headers.
func (c *caller) events(t *testing.T, req *http.Request, fn func(event) bool) *http.Response {
	t.Helper()
	res, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream; charset=utf-8" || res.Header.Get("X-Accel-Buffering") != "no" || res.Header.Get("Content-Encoding") != "" {
		t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	schema := map[string]any{"$ref": "#/components/schemas/CommandEvent"}
	if req.Method == "POST" {
		schema = map[string]any{"$ref": "#/components/schemas/CreateCommandEvent"}
	}
	lines := bufio.NewReaderSize(res.Body, 5<<20)
	var ev event
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return res
		}
		line = strings.TrimSuffix(line, "\n")
		if strings.ContainsAny(line, "\r\u0085\u2028\u2029") || len(line) >= 4<<20 {
			t.Errorf("a bad line of %d bytes: %.80q", len(line), line)
		}
		switch {
		case strings.HasPrefix(line, "id: "):
			ev.id = line[4:]
		case strings.HasPrefix(line, "data: "):
			if ev.data != nil {
				t.Error("an event with two data lines")
			}
			if err := json.Unmarshal([]byte(line[6:]), &ev.data); err != nil {
				t.Fatalf("%v: %.80q", err, line)
			}
			if err := c.s.doc.value("event", ev.data, schema); err != nil {
				t.Error(err)
			}
		case line == "":
			if ev.data == nil {
				continue
			}
			ev.at = time.Now()
			if !fn(ev) {
				return res
			}
			ev = event{}
		case line[0] != ':':
			t.Errorf("line %.80q", line)
		}
	}
}

func (s *suite) streamRows(t *testing.T) {
	o := s.owner
	s.row(t, "6.3", "POST commands as events: command, log, terminal, live", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		var kinds []string
		var first, last event
		out := ""
		req := o.request(t, "POST", sbx+"/commands", map[string]any{"command": "echo one; sleep 1; echo two >&2; exit 4"}, "Accept", "application/json, text/event-stream")
		o.events(t, req, func(e event) bool {
			kind := text(e.data["type"])
			switch {
			case kind == "log":
				out += text(e.data["data"])
				if e.id != fmt.Sprint(e.data["seq"]) {
					t.Errorf("id %q of seq %v", e.id, e.data["seq"])
				}
				if first.data == nil {
					first = e
				}
			case e.id != "":
				t.Errorf("%s has the id %q", kind, e.id)
			}
			kinds = append(kinds, kind)
			last = e
			return true
		})
		closed := time.Now()
		if got := strings.Join(kinds, " "); got != "command log log terminal" || out != "one\ntwo\n" {
			t.Fatalf("%s %q", got, out)
		}
		c := object(last.data["command"])
		if c["exitCode"] != float64(4) || c["stdout"] != "one\n" || c["stderr"] != "two\n" {
			t.Errorf("%v", c)
		}
		if last.at.Sub(first.at) < 800*time.Millisecond {
			t.Errorf("the first output came only %s before the end", last.at.Sub(first.at))
		}
		if closed.Sub(last.at) > time.Second {
			t.Errorf("closed %s after the final event", closed.Sub(last.at))
		}
	})
	s.row(t, "6.3", "POST commands as JSON", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		c := object(o.want(t, 200, "POST", sbx+"/commands", map[string]any{"command": "echo x > f; echo y", "collect": []any{map[string]any{"path": "f"}}})["command"])
		if c["stdout"] != "y\n" || c["collectStatus"] != "succeeded" {
			t.Errorf("%v", c)
		}
	})
	s.row(t, "6.3", "GET stream: replay, afterSeq, terminal; GET is terminal first", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		id := text(object(o.want(t, 202, "POST", sbx+"/commands/start", map[string]any{"command": "for i in 1 2 3 4; do echo $i; sleep 0.2; done"})["command"])["id"])
		var seqs []string
		o.events(t, o.request(t, "GET", "/v1/commands/"+id+"/stream", nil), func(e event) bool {
			if e.data["type"] == "log" {
				seqs = append(seqs, e.id)
			}
			if e.data["type"] == "terminal" {
				if got := object(o.want(t, 200, "GET", "/v1/commands/"+id, nil)["command"])["status"]; got != "exited" {
					t.Errorf("GET says %v", got)
				}
			}
			return true
		})
		if strings.Join(seqs, " ") != "1 2 3 4" {
			t.Errorf("%v", seqs)
		}
		var replay []string
		o.events(t, o.request(t, "GET", "/v1/commands/"+id+"/stream?afterSeq=2&limit=1", nil), func(e event) bool {
			replay = append(replay, text(e.data["type"])+e.id)
			return true
		})
		if strings.Join(replay, " ") != "log3 log4 terminal" {
			t.Errorf("%v", replay)
		}
		o.refused(t, 404, "not_found", "GET", "/v1/commands/cmd_"+suffix+"/stream", nil)
		o.refused(t, 400, "invalid_request", "GET", "/v1/commands/"+id+"/stream?afterSeq=-1", nil)
	})
	s.row(t, "1.5", "line breaks inside the JSON, bytes that are no text, large terminal events", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		out := ""
		req := o.request(t, "POST", sbx+"/commands", map[string]any{"command": `printf 'a\xc2\x85b\xe2\x80\xa8c\xe2\x80\xa9d\re\xfff\x00g\x1bh\n'`}, "Accept", "text/event-stream")
		o.events(t, req, func(e event) bool {
			out += text(e.data["data"])
			return true
		})
		if out != "a\u0085b\u2028c\u2029d\re\uFFFDf\x00g\x1bh\n" {
			t.Errorf("%q", out)
		}
		req = o.request(t, "POST", sbx+"/commands", map[string]any{"command": `head -c 2000000 /dev/zero; head -c 2000000 /dev/zero >&2`}, "Accept", "text/event-stream")
		var c map[string]any
		o.events(t, req, func(e event) bool {
			if e.data["type"] == "terminal" {
				c = object(e.data["command"])
			}
			return true
		})
		if c["stdoutTruncated"] != true || c["stderrTruncated"] != true || len(text(c["stdout"])) < 100_000 {
			t.Errorf("%v %v %d", c["stdoutTruncated"], c["stderrTruncated"], len(text(c["stdout"])))
		}
	})
	s.row(t, "1.5", "a client that goes away and comes back misses nothing", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		id := text(object(o.want(t, 202, "POST", sbx+"/commands/start", map[string]any{"command": "for i in $(seq 30); do echo $i; sleep 0.02; done"})["command"])["id"])
		var got []string
		after, ended := "", false
		for !ended {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			path := "/v1/commands/" + id + "/stream"
			if after != "" {
				path += "?afterSeq=" + after
			}
			n := 0
			o.events(t, o.request(t, "GET", path, nil).WithContext(ctx), func(e event) bool {
				switch e.data["type"] {
				case "log":
					got = append(got, strings.TrimSpace(text(e.data["data"])))
					after = e.id
					n++
				case "terminal":
					ended = true
				}
				return n < 7
			})
			cancel()
		}
		want := ""
		for i := range 30 {
			want += fmt.Sprint(i+1, " ")
		}
		if joined := strings.Join(strings.Fields(strings.Join(got, " ")), " ") + " "; joined != want {
			t.Errorf("%s", joined)
		}
	})
}

// slowRows mostly wait, beside each other, once the other rows are done.
func (s *suite) slowRows(t *testing.T) {
	o := s.owner
	s.slowRow(t, "1.4", "an answer that takes long begins after 20 s and is kept alive", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		began := time.Now()
		res, err := o.http.Do(o.request(t, "POST", sbx+"/commands/run", map[string]any{"command": "sleep 36; echo done"}))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if took := time.Since(began); took < 19*time.Second || took > 25*time.Second {
			t.Errorf("headers after %s", took)
		}
		first := make([]byte, 1)
		if _, err := res.Body.Read(first); err != nil || first[0] != ' ' {
			t.Errorf("%q %v", first, err)
		}
		if took := time.Since(began); took < 33*time.Second || took > 42*time.Second {
			t.Errorf("the first space after %s", took)
		}
		var out map[string]any
		if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
			t.Fatal(err)
		}
		if c := object(out["command"]); res.StatusCode != 200 || c["stdout"] != "done\n" {
			t.Errorf("%d %v", res.StatusCode, out)
		}
	})
	s.slowRow(t, "1.5", "heartbeats every 15 s on a silent stream", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		began := time.Now()
		var beats []time.Duration
		o.events(t, o.request(t, "POST", sbx+"/commands", map[string]any{"command": "sleep 32"}, "Accept", "text/event-stream"), func(e event) bool {
			if e.data["type"] == "heartbeat" {
				beats = append(beats, time.Since(began).Round(time.Second))
			}
			return true
		})
		if len(beats) != 2 || beats[0] > 17*time.Second {
			t.Errorf("%v", beats)
		}
	})
	s.slowRow(t, "6.1", "graceful cancel of a command that ignores it ends after 10 s", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		id := text(object(o.want(t, 202, "POST", sbx+"/commands/start", map[string]any{"command": "trap '' TERM; echo deaf; while true; do sleep 0.1; done"})["command"])["id"])
		until(t, "it ignores the signal", 10*time.Second, func() bool {
			return len(items(o.want(t, 200, "GET", "/v1/commands/"+id+"/logs", nil)["data"])) > 0
		})
		began := time.Now()
		c := object(o.want(t, 200, "POST", "/v1/commands/"+id+"/cancel", map[string]any{})["command"])
		if took := time.Since(began); took < 9*time.Second || took > 14*time.Second || c["terminationSignal"] != "SIGKILL" {
			t.Errorf("%s %v", took, c)
		}
	})
}
