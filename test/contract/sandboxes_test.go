package contract

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

func (s *suite) sandboxRows(t *testing.T) {
	o := s.owner
	s.row(t, "5.1", "create with everything, list, filter, get", func(t *testing.T) {
		tag := fmt.Sprint(time.Now().UnixNano())
		sbx, id := o.sandbox(t, "template", "base", "ttlMs", 60_000, "metadata", map[string]string{"run.id": tag, "b": "ü"}, "network", map[string]any{"egress": "none"})
		sb := object(o.want(t, 200, "GET", sbx, nil)["sandbox"])
		created, _ := time.Parse(time.RFC3339, text(sb["createdAt"]))
		expires, _ := time.Parse(time.RFC3339, text(sb["expiresAt"]))
		if expires.Sub(created) != time.Minute || sb["ttlMs"] != float64(60_000) || sb["status"] != "ready" || object(sb["metadata"])["b"] != "ü" || sb["templateSlug"] != "base" {
			t.Errorf("%v", sb)
		}
		for query, n := range map[string]int{"metadata.run.id=" + tag: 1, "metadata.run.id=" + tag + "&metadata.b=%C3%BC": 1, "metadata.run.id=" + tag + "&metadata.b=u": 0} {
			if got := items(o.want(t, 200, "GET", "/v1/sandboxes?"+query, nil)["data"]); len(got) != n {
				t.Errorf("%s finds %d, want %d", query, len(got), n)
			}
		}
		o.want(t, 200, "DELETE", "/v1/sandboxes/"+id, nil)
		if got := items(o.want(t, 200, "GET", "/v1/sandboxes?metadata.run.id="+tag, nil)["data"]); len(got) != 0 {
			t.Errorf("a destroyed sandbox is listed")
		}
		if got := items(o.want(t, 200, "GET", "/v1/sandboxes?include=historical&metadata.run.id="+tag, nil)["data"]); len(got) != 1 {
			t.Errorf("history holds %d", len(got))
		}
	})
	s.row(t, "5.1", "refused creates", func(t *testing.T) {
		many := map[string]string{}
		for i := range 17 {
			many[fmt.Sprint(i)] = "x"
		}
		large := map[string]string{}
		for i := range 10 {
			large[fmt.Sprint(i)] = strings.Repeat("x", 500)
		}
		for _, tc := range []struct {
			status int
			code   string
			body   map[string]any
		}{
			{400, "sandbox_ttl_exceeded", map[string]any{"ttlMs": 3_600_001}},
			{400, "invalid_request", map[string]any{"ttlMs": 0}},
			{400, "invalid_request", map[string]any{"ttlMs": "60000"}},
			{400, "invalid_request", map[string]any{"ttlMs": 1e18}},
			{404, "not_found", map[string]any{"template": "nope"}},
			{404, "not_found", map[string]any{"template": "../base"}},
			{404, "not_found", map[string]any{"templateVersionId": "tplv_" + suffix}},
			{404, "not_found", map[string]any{"projectId": "prj_" + suffix}},
			{404, "not_found", map[string]any{"projectId": "x"}},
			{403, "feature_not_enabled", map[string]any{"restoreFrom": "bkp_" + suffix}},
			{403, "feature_not_enabled", map[string]any{"network": map[string]any{"egress": "internet"}}},
			{400, "invalid_request", map[string]any{"network": map[string]any{"egress": "none", "allow": []string{"a.example"}}}},
			{400, "invalid_request", map[string]any{"network": map[string]any{"egress": "x"}}},
			{400, "invalid_request", map[string]any{"network": map[string]any{"egress": "allowlist", "allow": []string{"http://x"}}}},
			{400, "invalid_metadata_key", map[string]any{"metadata": map[string]string{"a b": "x"}}},
			{400, "invalid_metadata_key", map[string]any{"metadata": map[string]string{"": "x"}}},
			{400, "invalid_metadata_key", map[string]any{"metadata": map[string]string{strings.Repeat("k", 65): "x"}}},
			{400, "invalid_metadata_value", map[string]any{"metadata": map[string]string{"a": strings.Repeat("x", 513)}}},
			{400, "invalid_metadata_value", map[string]any{"metadata": map[string]any{"a": 1}}},
			{400, "metadata_too_many_keys", map[string]any{"metadata": many}},
			{400, "metadata_too_large", map[string]any{"metadata": large}},
		} {
			details := o.refused(t, tc.status, tc.code, "POST", "/v1/sandboxes", tc.body)
			if tc.code == "sandbox_ttl_exceeded" && details["maxTtlMs"] != float64(3_600_000) {
				t.Errorf("details %v", details)
			}
		}
	})
	s.row(t, "5.1", "a pinned version must be one of the template", func(t *testing.T) {
		tpl := object(o.want(t, 200, "GET", "/v1/templates/base", nil)["template"])
		version := text(tpl["defaultVersionId"])
		sbx, _ := o.sandbox(t, "template", "base", "templateVersionId", version)
		if got := object(o.want(t, 200, "GET", sbx, nil)["sandbox"])["templateVersionId"]; got != version {
			t.Errorf("%v", got)
		}
		o.refused(t, 400, "invalid_request", "POST", "/v1/sandboxes", map[string]any{"template": "node", "templateVersionId": version})
	})
	s.row(t, "5.1", "a full host says so at once", func(t *testing.T) {
		full := false
		for range capacity + 1 {
			a := o.call(t, "POST", "/v1/sandboxes", nil)
			if a.status == 201 {
				id := text(object(a.object(t)["sandbox"])["id"])
				defer o.call(t, "DELETE", "/v1/sandboxes/"+id, nil)
				continue
			}
			full = true
			if code, _ := a.envelope(t); a.status != 503 || code != "capacity_exhausted" || a.header.Get("Retry-After") == "" {
				t.Errorf("%d %s %v", a.status, code, a.header)
			}
		}
		if !full {
			t.Error("it never was")
		}
	})
	s.row(t, "5.3", "extend, also downwards; its limits", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		for _, ttl := range []int{7_200_000, 30_000} {
			sb := object(o.want(t, 200, "POST", sbx+"/extend", map[string]any{"ttlMs": ttl})["sandbox"])
			expires, _ := time.Parse(time.RFC3339, text(sb["expiresAt"]))
			if left := time.Until(expires); sb["ttlMs"] != float64(ttl) || left > time.Duration(ttl)*time.Millisecond || left < time.Duration(ttl-5000)*time.Millisecond {
				t.Errorf("%d: %v, %s left", ttl, sb["ttlMs"], left)
			}
		}
		details := o.refused(t, 400, "sandbox_ttl_exceeded", "POST", sbx+"/extend", map[string]any{"ttlMs": 168*3_600_000 + 1})
		if details["maxTtlMs"] == nil {
			t.Errorf("details %v", details)
		}
		o.refused(t, 400, "invalid_request", "POST", sbx+"/extend", map[string]any{})
		o.refused(t, 400, "invalid_request", "POST", sbx+"/extend", map[string]any{"ttlMs": -1})
	})
	s.row(t, "5.3", "the end of the time to live", func(t *testing.T) {
		sbx, _ := o.sandbox(t, "ttlMs", 700)
		until(t, "destroyed", 10*time.Second, func() bool {
			sb := object(o.want(t, 200, "GET", sbx, nil)["sandbox"])
			if sb["status"] == "destroyed" && (sb["destroyedReason"] != "ttl_expired" || sb["destroyedAt"] == nil) {
				t.Fatalf("%v", sb)
			}
			return sb["status"] == "destroyed"
		})
		o.refused(t, 410, "sandbox_destroyed", "POST", sbx+"/extend", map[string]any{"ttlMs": 1000})
	})
	s.row(t, "5.3", "kill: repeatable, active commands are killed, nothing works afterwards", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		cmd := text(object(o.want(t, 202, "POST", sbx+"/commands/start", map[string]any{"command": "sleep 100"})["command"])["id"])
		first := object(o.want(t, 200, "DELETE", sbx, nil)["sandbox"])
		again := object(o.want(t, 200, "DELETE", sbx, nil)["sandbox"])
		if first["status"] != "destroyed" || first["destroyedReason"] != "user_killed" || first["destroyedAt"] != again["destroyedAt"] {
			t.Errorf("%v\n%v", first, again)
		}
		c := object(o.want(t, 200, "GET", "/v1/commands/"+cmd, nil)["command"])
		if c["status"] != "killed" || c["killedReason"] != "sandbox_destroyed" || c["exitCode"] != nil {
			t.Errorf("%v", c)
		}
		o.want(t, 200, "GET", sbx, nil)
		o.want(t, 200, "GET", sbx+"/commands", nil)
		o.want(t, 200, "GET", sbx+"/artifacts", nil)
		for _, op := range s.doc.operations {
			switch op.id {
			case "extendSandbox", "runCommand", "startCommand", "createCommand", "listFiles", "statFile", "readFile", "writeFile",
				"deleteFile", "makeDirectory", "moveFile", "createFileDownloadUrl", "downloadFile", "createFileUploadUrl", "createArtifact":
				path := strings.Replace(op.path, "/v1/sandboxes/{sandboxId}", sbx, 1) + op.query()
				o.refused(t, 410, "sandbox_destroyed", op.method, path, op.body())
			}
		}
		o.refused(t, 404, "not_found", "DELETE", "/v1/sandboxes/sbx_"+suffix, nil)
	})
	s.row(t, "5.4", "the environment of a command", func(t *testing.T) {
		sbx, id := o.sandbox(t)
		c := o.run(t, sbx, `id -u; id -un; pwd; env | sort; uname -s; ls -ld /workspace | cut -c1-10; command -v bash tar gzip curl git | wc -l`)
		out := text(c["stdout"])
		for _, want := range []string{"1000\nsandbox\n/workspace\n", "CROWNEST=1\n", "CROWNEST_SANDBOX_ID=" + id + "\n", "CROWNEST_PROJECT_ID=prj_", "CROWNEST_TEMPLATE=base\n", "HOME=/home/sandbox\n", "USER=sandbox\n", "SHELL=", "PATH=", "LANG=C.UTF-8\n", "Linux\n", "5\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in %s", want, out)
			}
		}
		if regexp.MustCompile(`cn_live_`).MatchString(out) {
			t.Error("a key is inside")
		}
	})
	s.row(t, "5.2", "running while a command is active", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		cmd := text(object(o.want(t, 202, "POST", sbx+"/commands/start", map[string]any{"command": "sleep 100"})["command"])["id"])
		if got := object(o.want(t, 200, "GET", sbx, nil)["sandbox"])["status"]; got != "running" {
			t.Errorf("%v", got)
		}
		o.want(t, 200, "POST", "/v1/commands/"+cmd+"/cancel", map[string]any{"mode": "force"})
		until(t, "ready", 5*time.Second, func() bool {
			return object(o.want(t, 200, "GET", sbx, nil)["sandbox"])["status"] == "ready"
		})
	})
}

func (s *suite) accountRows(t *testing.T) {
	o := s.owner
	s.row(t, "4", "projects, keys, templates, usage", func(t *testing.T) {
		o.want(t, 200, "GET", "/v1/projects", nil)
		names := map[any]bool{}
		for _, p := range items(o.want(t, 200, "GET", "/v1/projects", nil)["data"]) {
			names[object(p)["name"]] = true
		}
		if !names["default"] {
			t.Errorf("%v", names)
		}
		for _, k := range items(o.want(t, 200, "GET", "/v1/api-keys", nil)["data"]) {
			if k := object(k); len(text(k["prefix"])) != 12 || len(text(k["last4"])) != 4 {
				t.Errorf("%v", k)
			}
		}
		o.refused(t, 404, "not_found", "GET", "/v1/api-keys/key_"+suffix, nil)
		o.refused(t, 404, "not_found", "DELETE", "/v1/api-keys/key_"+suffix, nil)
		if n := len(items(o.want(t, 200, "GET", "/v1/templates", nil)["data"])); n != 4 {
			t.Errorf("%d templates", n)
		}
		o.refused(t, 404, "not_found", "GET", "/v1/templates/nope", nil)
	})
	s.row(t, "10.3", "usage", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		o.run(t, sbx, "true")
		o.want(t, 200, "DELETE", sbx, nil)
		u := o.want(t, 200, "GET", "/v1/usage?include=events", nil)
		quotas := object(u["quotas"])
		if u["computeUnitSecondsPerCredit"] != float64(1000) || u["currencyPerCredit"] != 0.0333 || quotas["active_sandboxes"] == nil || quotas["active_previews"] == nil {
			t.Errorf("%v", u)
		}
		metrics := map[any]bool{}
		for _, e := range items(u["events"]) {
			metrics[object(e)["metric"]] = true
		}
		for _, m := range []string{"sandbox_creates", "command_invocations", "compute_unit_seconds"} {
			if !metrics[m] {
				t.Errorf("no event of %s", m)
			}
		}
		if object(u["computeUnitSeconds"])["used"] == float64(0) {
			t.Error("nothing used")
		}
	})
	s.row(t, "10.4", "audit events and their chain", func(t *testing.T) {
		sbx, id := o.sandbox(t)
		o.want(t, 200, "DELETE", sbx, nil)
		actions := map[any]bool{}
		for _, e := range items(o.want(t, 200, "GET", "/v1/audit-events?resourceId="+id, nil)["data"]) {
			actions[object(e)["action"]] = true
		}
		if !actions["sandbox.create"] || !actions["sandbox.kill"] {
			t.Errorf("%v", actions)
		}
		poor := s.caller(t, s.newKey(t, "", "usage:read"))
		poor.refused(t, 403, "forbidden", "POST", "/v1/sandboxes", nil)
		if n := len(items(o.want(t, 200, "GET", "/v1/audit-events?action=request.denied&limit=1", nil)["data"])); n != 1 {
			t.Error("a refusal left no event")
		}
		check := o.want(t, 200, "GET", "/v1/audit-events/verify", nil)
		if check["ok"] != true || check["checked"] == float64(0) {
			t.Errorf("%v", check)
		}
		for _, q := range []string{"since=x", "until=2026", "limit=0", "cursor=x"} {
			o.refused(t, 400, "invalid_request", "GET", "/v1/audit-events?"+q, nil)
		}
		o.want(t, 200, "GET", "/v1/audit-events?action=sandbox.create&since=2026-01-01T00:00:00Z&until=2999-01-01T00:00:00.000Z&limit=2", nil)
	})
}
