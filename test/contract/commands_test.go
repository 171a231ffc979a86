package contract

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func (s *suite) commandRows(t *testing.T) {
	o := s.owner
	s.row(t, "6.1", "run: streams, exit codes, environment, directory, nothing carries over", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		c := o.run(t, sbx, "echo out; echo err >&2; exit 3")
		if c["status"] != "exited" || c["exitCode"] != float64(3) || c["stdout"] != "out\n" || c["stderr"] != "err\n" || c["collectStatus"] != "not_requested" {
			t.Errorf("%v", c)
		}
		if len(object(c["env"])) != 0 || c["cwd"] != "/workspace" || c["durationMs"] == nil || c["startedAt"] == nil || c["finishedAt"] == nil {
			t.Errorf("%v", c)
		}
		c = o.run(t, sbx, "mkdir -p d && cd d && export X=1; A=$B; echo \"$A\"", "env", map[string]string{"B": "ü 'x'"})
		if c["stdout"] != "ü 'x'\n" || len(object(c["env"])) != 0 {
			t.Errorf("%v", c)
		}
		c = o.run(t, sbx, `pwd; echo "[$X$B]"`, "cwd", "/workspace/d")
		if c["stdout"] != "/workspace/d\n[]\n" || c["cwd"] != "/workspace/d" {
			t.Errorf("%v", c)
		}
		if c = o.run(t, sbx, "pwd", "cwd", "d"); c["stdout"] != "/workspace/d\n" || c["cwd"] != "/workspace/d" {
			t.Errorf("%v", c)
		}
		c = o.run(t, sbx, "cat <<X | tr a-z A-Z\nline one\nX\nread line; echo \"[$line]$?\"; tty; kill -0 $PPID")
		if out := text(c["stdout"]); !strings.HasPrefix(out, "LINE ONE\n[]0\nnot a tty\n") && !strings.HasPrefix(out, "LINE ONE\n[]1\nnot a tty\n") {
			t.Errorf("%q %q", out, c["stderr"])
		}
	})
	s.row(t, "6.1", "long command lines", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		pad := strings.Repeat("x", 256<<10-len("echo ok # "))
		if c := o.run(t, sbx, "echo ok # "+pad); c["stdout"] != "ok\n" {
			t.Errorf("%v", c["status"])
		}
		o.refused(t, 400, "invalid_request", "POST", sbx+"/commands/run", map[string]any{"command": "echo ok # " + pad + "x"})
	})
	s.row(t, "6.1", "refused commands", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		o.run(t, sbx, "touch file; ln -s / out")
		for _, tc := range []struct {
			route, code string
			status      int
			fields      map[string]any
		}{
			{"run", "invalid_request", 400, map[string]any{"command": ""}},
			{"run", "invalid_request", 400, map[string]any{}},
			{"run", "invalid_request", 400, map[string]any{"command": 1}},
			{"run", "invalid_request", 400, map[string]any{"command": "a\x00b"}},
			{"run", "invalid_request", 400, map[string]any{"command": "true", "timeoutMs": 0}},
			{"run", "invalid_request", 400, map[string]any{"command": "true", "timeoutMs": 600_001}},
			{"start", "invalid_request", 400, map[string]any{"command": "true", "timeoutMs": 168*3_600_000 + 1}},
			{"run", "reserved_env_key", 400, map[string]any{"command": "true", "env": map[string]string{"CROWNEST_API_KEY": "x"}}},
			{"run", "invalid_request", 400, map[string]any{"command": "true", "env": map[string]string{"A-B": "x"}}},
			{"run", "invalid_request", 400, map[string]any{"command": "true", "env": map[string]any{"A": nil}}},
			{"run", "invalid_request", 400, map[string]any{"command": "true", "env": map[string]string{"A": "x\x00"}}},
			{"run", "invalid_request", 400, map[string]any{"command": "true", "env": map[string]string{"A": strings.Repeat("x", 65<<10)}}},
			{"run", "path_outside_workspace", 400, map[string]any{"command": "true", "cwd": "/"}},
			{"run", "path_outside_workspace", 400, map[string]any{"command": "true", "cwd": "/workspace/../etc"}},
			{"run", "path_outside_workspace", 400, map[string]any{"command": "true", "cwd": "out"}},
			{"run", "path_outside_workspace", 400, map[string]any{"command": "true", "cwd": "out/etc"}},
			{"run", "path_not_directory", 400, map[string]any{"command": "true", "cwd": "/workspace/file"}},
			{"run", "file_not_found", 404, map[string]any{"command": "true", "cwd": "/workspace/none"}},
			{"run", "invalid_request", 400, map[string]any{"command": "true", "cwd": "a\x00"}},
			{"run", "invalid_request", 400, map[string]any{"command": "true", "collectOn": "never"}},
			{"run", "invalid_request", 400, map[string]any{"command": "true", "collect": []any{map[string]any{}}}},
			{"run", "invalid_request", 400, map[string]any{"command": "true", "collect": []any{nil}}},
			{"run", "invalid_request", 400, map[string]any{"command": "true", "collect": []any{map[string]any{"path": "a", "name": "x/y"}}}},
			{"start", "invalid_request", 400, map[string]any{"command": "true", "collect": []any{map[string]any{"path": "a"}}}},
			{"start", "invalid_request", 400, map[string]any{"command": "true", "collectOn": "always"}},
		} {
			o.refused(t, tc.status, tc.code, "POST", sbx+"/commands/"+tc.route, tc.fields)
		}
		if n := len(items(o.want(t, 200, "GET", sbx+"/commands", nil)["data"])); n != 1 {
			t.Errorf("%d commands were recorded, want 1", n)
		}
	})
	s.row(t, "6.1", "a foreign signal, a missing program", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		if c := o.run(t, sbx, "kill -SEGV $$"); c["status"] != "failed" || c["exitCode"] != float64(139) {
			t.Errorf("%v %v", c["status"], c["exitCode"])
		}
		if c := o.run(t, sbx, "no-such-program"); c["status"] != "exited" || c["exitCode"] != float64(127) {
			t.Errorf("%v %v", c["status"], c["exitCode"])
		}
	})
	s.row(t, "6.1", "timeout reaches every descendant", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		c := o.run(t, sbx, "(setsid sleep 1234 &) ; sleep 1234", "timeoutMs", 300)
		if c["status"] != "timed_out" || c["terminationSignal"] != "SIGTERM" || c["exitCode"] != nil {
			t.Errorf("%v", c)
		}
		if c := o.run(t, sbx, "pgrep -c -f 'sleep 123[4]' || cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 123[4]'"); strings.TrimSpace(text(c["stdout"])) != "0" && text(c["stdout"]) != "0\n0\n" {
			t.Errorf("survivors: %q %q", c["stdout"], c["stderr"])
		}
	})
	s.row(t, "6.1", "cancel: graceful, force, ended ones unchanged", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		start := func(command string) string {
			return text(object(o.want(t, 202, "POST", sbx+"/commands/start", map[string]any{"command": command})["command"])["id"])
		}
		c := object(o.want(t, 200, "POST", "/v1/commands/"+start("(setsid sleep 999 &); sleep 999")+"/cancel", nil)["command"])
		if c["status"] != "canceled" || c["cancelMode"] != "graceful" || c["canceledAt"] == nil || c["terminationSignal"] != "SIGTERM" || c["exitCode"] != nil {
			t.Errorf("%v", c)
		}
		id := start("trap '' TERM; while true; do sleep 0.1; done")
		began := time.Now()
		c = object(o.want(t, 200, "POST", "/v1/commands/"+id+"/cancel", map[string]any{"mode": "force"})["command"])
		if c["status"] != "canceled" || c["cancelMode"] != "force" || c["terminationSignal"] != "SIGKILL" || time.Since(began) > 3*time.Second {
			t.Errorf("%v after %s", c, time.Since(began))
		}
		again := object(o.want(t, 200, "POST", "/v1/commands/"+id+"/cancel", map[string]any{"mode": "graceful"})["command"])
		if again["cancelMode"] != "force" || again["canceledAt"] != c["canceledAt"] {
			t.Errorf("%v", again)
		}
		done := text(o.run(t, sbx, "true")["id"])
		if c := object(o.want(t, 200, "POST", "/v1/commands/"+done+"/cancel", nil)["command"]); c["status"] != "exited" {
			t.Errorf("%v", c)
		}
		o.refused(t, 400, "invalid_request", "POST", "/v1/commands/"+done+"/cancel", map[string]any{"mode": "soft"})
		o.refused(t, 404, "not_found", "POST", "/v1/commands/cmd_"+suffix+"/cancel", nil)
	})
	s.row(t, "6.1", "background children live on, their output does not", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		began := time.Now()
		c := o.run(t, sbx, "(sleep 2; echo late; touch alive) & echo early")
		if c["stdout"] != "early\n" || time.Since(began) > 2*time.Second {
			t.Errorf("%v after %s", c["stdout"], time.Since(began))
		}
		until(t, "the child did its work", 10*time.Second, func() bool {
			return o.call(t, "GET", sbx+"/files/stat?path=alive", nil).status == 200
		})
	})
	s.row(t, "6.2", "truncation at a megabyte and a character; the log keeps all", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		c := o.run(t, sbx, "printf x; yes ü | tr -d '\\n' | head -c 3000000; echo short >&2")
		out := text(c["stdout"])
		if c["stdoutTruncated"] != true || c["stderrTruncated"] != nil || len(out) > 1<<20 || len(out) < 1<<20-3 || strings.Contains(out, "\uFFFD") || c["stderr"] != "short\n" {
			t.Errorf("%d bytes, %v, %v", len(out), c["stdoutTruncated"], c["stderrTruncated"])
		}
		a := o.call(t, "GET", "/v1/commands/"+text(c["id"])+"/logs/download?stream=stdout", nil)
		if a.status != 200 || len(a.body) != 3_000_001 {
			t.Errorf("%d: %d bytes", a.status, len(a.body))
		}
	})
	s.row(t, "6.2", "log pages: one series without holes, exclusive afterSeq, echo", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		c := o.run(t, sbx, "for i in 1 2 3 4 5 6; do echo out$i; echo err$i >&2; sleep 0.02; done; printf '\\xff\\xfe'")
		logs := "/v1/commands/" + text(c["id"]) + "/logs"
		next, want, all := -1, 1.0, ""
		for {
			path := logs + "?limit=3"
			if next >= 0 {
				path += "&afterSeq=" + fmt.Sprint(next)
			}
			page := o.want(t, 200, "GET", path, nil)
			for _, chunk := range items(page["data"]) {
				chunk := object(chunk)
				if chunk["seq"] != want || chunk["commandId"] != c["id"] {
					t.Errorf("%v, want seq %v", chunk, want)
				}
				want++
				if chunk["stream"] == "stdout" {
					all += text(chunk["data"])
				}
			}
			next = int(page["nextSeq"].(float64))
			if page["hasMore"] != true {
				break
			}
		}
		if all != "out1\nout2\nout3\nout4\nout5\nout6\n\uFFFD\uFFFD" {
			t.Errorf("%q", all)
		}
		page := o.want(t, 200, "GET", logs+"?afterSeq=100000", nil)
		if page["nextSeq"] != float64(100000) || page["hasMore"] != false || len(items(page["data"])) != 0 {
			t.Errorf("%v", page)
		}
		if got := o.call(t, "GET", logs+"/download?stream=stdout", nil); !strings.HasSuffix(string(got.body), "\xff\xfe") {
			t.Errorf("%q", got.body)
		}
		for _, q := range []string{"afterSeq=-1", "afterSeq=x", "afterSeq=99999999999999999999", "limit=0"} {
			o.refused(t, 400, "invalid_request", "GET", logs+"?"+q, nil)
		}
	})
	s.row(t, "6.2", "no output, only one stream", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		c := o.run(t, sbx, "true")
		if c["stdout"] != "" || c["stderr"] != "" {
			t.Errorf("%v", c)
		}
		page := o.want(t, 200, "GET", "/v1/commands/"+text(c["id"])+"/logs", nil)
		if len(items(page["data"])) != 0 || page["hasMore"] != false {
			t.Errorf("%v", page)
		}
	})
	s.row(t, "6.2", "a position that is not retained is a gap", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		c := o.run(t, sbx, "head -c 80000000 /dev/zero | tr '\\0' x", "timeoutMs", 120_000)
		id := text(c["id"])
		details := o.refused(t, 409, "stream_gap", "GET", "/v1/commands/"+id+"/logs?afterSeq=1", nil)
		if n, _ := details["oldestSeq"].(float64); n < 3 {
			t.Errorf("details %v", details)
		}
		o.refused(t, 409, "stream_gap", "GET", "/v1/commands/"+id+"/stream?afterSeq=0", nil)
		first := object(items(o.want(t, 200, "GET", "/v1/commands/"+id+"/logs?limit=1", nil)["data"])[0])
		if first["seq"] != details["oldestSeq"] {
			t.Errorf("oldest is %v, not %v", first["seq"], details["oldestSeq"])
		}
	})
	s.row(t, "6.4", "collect: always, success, partial, failed, skipped", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		c := o.run(t, sbx, "echo data > report.txt", "collect", []any{map[string]any{"path": "report.txt"}, map[string]any{"path": "/workspace/report.txt", "name": "other name"}})
		if c["collectStatus"] != "succeeded" || len(items(c["artifactIds"])) != 2 || c["collectErrors"] != nil {
			t.Errorf("%v", c)
		}
		names := map[any]bool{}
		for _, a := range items(o.want(t, 200, "GET", sbx+"/artifacts", nil)["data"]) {
			names[object(a)["name"]] = true
			if object(a)["commandId"] != c["id"] || object(a)["sizeBytes"] != float64(5) {
				t.Errorf("%v", a)
			}
		}
		if !names["report.txt"] || !names["other name"] {
			t.Errorf("%v", names)
		}
		c = o.run(t, sbx, "mkdir -p dir; ln -sf /etc/passwd link", "collect", []any{map[string]any{"path": "report.txt"}, map[string]any{"path": "none"}, map[string]any{"path": "../etc/passwd"}, map[string]any{"path": "link"}, map[string]any{"path": "dir"}})
		codes := ""
		for _, e := range items(c["collectErrors"]) {
			codes += text(object(e)["code"]) + " "
		}
		if c["collectStatus"] != "partial" || codes != "file_not_found path_outside_workspace path_outside_workspace artifact_collect_failed " {
			t.Errorf("%v %s", c["collectStatus"], codes)
		}
		if c = o.run(t, sbx, "true", "collect", []any{map[string]any{"path": "none"}}); c["collectStatus"] != "failed" || c["status"] != "exited" || c["exitCode"] != float64(0) {
			t.Errorf("%v", c)
		}
		if c = o.run(t, sbx, "false", "collect", []any{map[string]any{"path": "report.txt"}}); c["collectStatus"] != "skipped" {
			t.Errorf("%v", c)
		}
		if c = o.run(t, sbx, "false", "collectOn", "always", "collect", []any{map[string]any{"path": "report.txt"}}); c["collectStatus"] != "succeeded" || c["exitCode"] != float64(1) {
			t.Errorf("%v", c)
		}
	})
	s.row(t, "6", "conditional scopes start nothing", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		runner := s.caller(t, s.newKey(t, "", "command:run"))
		for _, tc := range []struct {
			route, scope string
			body         map[string]any
			headers      []string
		}{
			{"/run", "artifact:create", map[string]any{"command": "touch no", "collect": []any{map[string]any{"path": "x"}}}, nil},
			{"/run", "command:read", map[string]any{"command": "touch no", "_crownestRequireCommandRead": true}, nil},
			{"/start", "command:read", map[string]any{"command": "touch no", "_crownestRequireCommandRead": true}, nil},
			{"", "command:read", map[string]any{"command": "touch no"}, []string{"Accept", "text/event-stream"}},
		} {
			if details := runner.refused(t, 403, "forbidden", "POST", sbx+"/commands"+tc.route, tc.body, tc.headers...); details["requiredScope"] != tc.scope {
				t.Errorf("%s: %v", tc.route, details)
			}
		}
		o.refused(t, 404, "file_not_found", "GET", sbx+"/files/stat?path=no", nil)
		runner.want(t, 200, "POST", sbx+"/commands/run", map[string]any{"command": "true", "collect": []any{}, "_crownestRequireCommandRead": false})
	})
	s.row(t, "6.1", "many at once", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		const n = 20
		ids := make(chan string, n)
		for i := range n {
			go func() {
				a := o.call(t, "POST", sbx+"/commands/run", map[string]any{"command": fmt.Sprintf("sleep 0.3; echo %d", i)})
				ids <- strings.TrimSpace(text(object(a.object(t)["command"])["stdout"])) + fmt.Sprint("=", i)
			}()
		}
		for range n {
			if got := <-ids; got[:strings.Index(got, "=")] != got[strings.Index(got, "=")+1:] {
				t.Errorf("%s", got)
			}
		}
	})
}
