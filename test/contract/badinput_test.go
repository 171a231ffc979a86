package contract

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

// badInputRows sends nonsense to every operation. What matters is that the answer
// is an error of the contract and that nothing is a 500.
func (s *suite) badInputRows(t *testing.T) {
	o := s.owner
	s.row(t, "1.6", "every body member with values of every wrong kind", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		o.run(t, sbx, "echo x > f")
		wrong := []any{nil, true, -1, 0, 1.5, 1e300, "", "x", "\x00", "\u0000a", strings.Repeat("A", 300_000), "../../etc/passwd", []any{}, []any{nil}, []any{[]any{}}, []any{map[string]any{"path": 1}}, map[string]any{}, map[string]any{"a": map[string]any{}}, map[string]any{"": ""}}
		for _, op := range s.doc.operations {
			schema := object(object(object(object(op.def["requestBody"])["content"])["application/json"])["schema"])
			if schema == nil {
				continue
			}
			path := strings.Replace(op.sample(), "/v1/sandboxes/sbx_"+suffix, sbx, 1) + op.query()
			for name := range object(s.doc.resolve(schema)["properties"]) {
				for _, v := range wrong {
					body, _ := op.body().(map[string]any)
					body = maps.Clone(body)
					body[name] = v
					if op.id == "createSandbox" {
						body["ttlMs"] = 1.5 // make none
						if name == "ttlMs" && v == nil {
							continue
						}
						if name == "ttlMs" {
							body["ttlMs"] = v
						}
					}
					a := o.call(t, op.method, path, body)
					if a.status == 503 {
						t.Errorf("%s %s=%.60v: %d %s", op.id, name, v, a.status, a.body)
					}
				}
			}
			for _, raw := range []string{"{", "[]", "0", `"x"`, "\xff\xfe", "{\"a\":\"\xed\xa0\x80\"}", strings.Repeat("[", 60_000), `{"a":1}{"b":2}`, `{"a":1,"a":2}`, "{\"\x00\":1}"} {
				if a := o.call(t, op.method, path, raw); a.status != 400 {
					t.Errorf("%s with %.20q: %d %s", op.id, raw, a.status, a.body)
				}
			}
			if a := o.call(t, op.method, path, `{"x":"`+strings.Repeat("y", 5<<20)+`"}`); a.status != 413 {
				t.Errorf("%s with a huge body: %d", op.id, a.status)
			}
		}
	})
	s.row(t, "1.6", "every query parameter with nonsense", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		for _, op := range s.doc.operations {
			if op.method != "GET" && op.method != "DELETE" || op.id == "killSandbox" || op.id == "streamCommandLogs" {
				continue
			}
			path := strings.Replace(op.sample(), "/v1/sandboxes/sbx_"+suffix, sbx, 1)
			for _, p := range items(op.def["parameters"]) {
				if object(p)["in"] != "query" {
					continue
				}
				for _, v := range []string{"", "%00", "%ff", "x", "-1", "1e9", strings.Repeat("9", 400), "%2e%2e%2f", "%F0%9F%A6%86", "a;b", "%zz"} {
					name := strings.Replace(text(object(p)["name"]), "{key}", "a", 1)
					a := o.call(t, op.method, path+"?"+name+"="+v, nil)
					if a.status == 503 {
						t.Errorf("%s %s=%s: %d %s", op.id, name, v, a.status, a.body)
					}
				}
			}
		}
	})
	s.row(t, "1.6", "every path parameter with nonsense", func(t *testing.T) {
		for _, op := range s.doc.operations {
			for _, p := range items(op.def["parameters"]) {
				if object(p)["in"] != "path" {
					continue
				}
				marker := "{" + text(object(p)["name"]) + "}"
				for _, v := range []string{"%00", "%ff", "..", "%2e%2e", "%2F", "x", "null", "sbx_", strings.Repeat("a", 2000), "%F0%9F%A6%86", "sbx_" + strings.Repeat("0", 25)} {
					path := op.path[:strings.Index(op.path, marker)] + v + op.path[strings.Index(op.path, marker)+len(marker):]
					path = (&operation{path: path}).sample() + op.query()
					a := o.call(t, op.method, path, op.body())
					if a.status != 404 && a.status != 405 {
						t.Errorf("%s %s: %d %.200s", op.method, path, a.status, a.body)
					}
				}
			}
		}
	})
	s.row(t, "1.6", "raw nonsense on the wire", func(t *testing.T) {
		auth := "X-Api-Key: " + o.key + "\r\n"
		for _, raw := range []string{
			"GET\r\n\r\n", "\x16\x03\x01\x02\x00", "GET /v1/projects HTTP/9.9\r\n\r\n", "GET /v1/%zz HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET * HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET /v1/projects HTTP/1.1\r\n\r\n", "GET http://evil.example/v1/projects HTTP/1.1\r\nHost: x\r\n" + auth + "Connection: close\r\n\r\n",
			"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\n" + auth + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			"POST /v1/projects HTTP/1.1\r\nHost: x\r\n" + auth + "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
			"POST /v1/projects HTTP/1.1\r\nHost: x\r\n" + auth + "Content-Length: -1\r\n\r\n",
			"GET /v1/projects HTTP/1.1\r\nHost: x\r\n" + auth + "X: " + strings.Repeat("y", 2<<20) + "\r\n\r\n",
			"GET /v1/projects HTTP/1.1\r\nHost: a\"b\r\n" + auth + "Connection: close\r\n\r\n",
			"GET /openapi.json HTTP/1.1\r\nHost: " + strings.Repeat("h", 3000) + "\r\nConnection: close\r\n\r\n",
		} {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(conn, raw)
			_ = conn.(*net.TCPConn).CloseWrite()
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			b, _ := io.ReadAll(conn)
			_ = conn.Close()
			if strings.HasPrefix(string(b), "HTTP/1.1 5") && !strings.HasPrefix(string(b), "HTTP/1.1 501") && !strings.HasPrefix(string(b), "HTTP/1.1 505") {
				t.Errorf("%.60q: %.200q", raw, b)
			}
		}
	})
	s.row(t, "1.6", "connections that vanish at every point", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		u, err := url.Parse(s.url)
		if err != nil {
			t.Fatal(err)
		}
		body := `{"command":"sleep 0.2"}`
		whole := fmt.Sprintf("POST %s/commands/run HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", sbx, o.key, len(body), body)
		for cut := 1; cut <= len(whole); cut += 7 {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", u.Host)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(conn, whole[:cut])
			_ = conn.(*net.TCPConn).SetLinger(0) // a reset
			_ = conn.Close()
		}
		if c := o.run(t, sbx, "echo fine"); c["stdout"] != "fine\n" {
			t.Errorf("%v", c)
		}
	})
}
