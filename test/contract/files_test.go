package contract

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"
)

func (s *suite) fileRows(t *testing.T) {
	o := s.owner
	read := func(t *testing.T, sbx, path string) string {
		t.Helper()
		return text(o.want(t, 200, "GET", sbx+"/files/read?path="+url.QueryEscape(path), nil)["content"])
	}
	s.row(t, "8", "write, stat, read, list", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		f := object(o.want(t, 200, "PUT", sbx+"/files", map[string]any{"path": "a/b/ü.txt", "content": "hellö", "createParents": true})["file"])
		if f["path"] != "/workspace/a/b/ü.txt" || f["sizeBytes"] != float64(6) || f["type"] != "file" || f["modifiedAt"] == nil {
			t.Errorf("%v", f)
		}
		if got := read(t, sbx, "/workspace/a/b/ü.txt"); got != "hellö" {
			t.Errorf("%q", got)
		}
		b := o.want(t, 200, "GET", sbx+"/files/read?encoding=base64&path="+url.QueryEscape("a/b/ü.txt"), nil)
		if b["content"] != base64.StdEncoding.EncodeToString([]byte("hellö")) || b["encoding"] != "base64" || b["sizeBytes"] != float64(6) {
			t.Errorf("%v", b)
		}
		o.want(t, 200, "PUT", sbx+"/files", map[string]any{"path": "z", "content": "/wAB", "encoding": "base64"})
		o.refused(t, 400, "invalid_file_encoding", "GET", sbx+"/files/read?path=z", nil)
		o.refused(t, 400, "invalid_file_encoding", "GET", sbx+"/files/read?path=z&encoding=hex", nil)
		o.refused(t, 400, "invalid_file_encoding", "PUT", sbx+"/files", map[string]any{"path": "z", "content": "x", "encoding": "base64"})
		o.refused(t, 400, "invalid_file_encoding", "PUT", sbx+"/files", map[string]any{"path": "z", "content": "x", "encoding": "latin1"})
		d := object(o.want(t, 200, "GET", sbx+"/files/stat?path=a", nil)["file"])
		if d["type"] != "directory" || d["path"] != "/workspace/a" {
			t.Errorf("%v", d)
		}
		for _, q := range []string{"", "?path=%2Fworkspace", "?path=.", "?path=/workspace/"} {
			names := ""
			for _, e := range items(o.want(t, 200, "GET", sbx+"/files"+q, nil)["data"]) {
				names += text(object(e)["name"]) + " "
			}
			if names != "a z " {
				t.Errorf("%q lists %s", q, names)
			}
		}
		o.refused(t, 400, "path_not_directory", "GET", sbx+"/files?path=z", nil)
		o.refused(t, 400, "path_is_directory", "GET", sbx+"/files/read?path=a", nil)
		o.refused(t, 404, "file_not_found", "GET", sbx+"/files/read?path=none", nil)
		o.refused(t, 404, "file_not_found", "GET", sbx+"/files/stat?path=none", nil)
		o.refused(t, 404, "file_not_found", "GET", sbx+"/files?path=none", nil)
	})
	s.row(t, "8", "paths that lead out, links, special files", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		o.run(t, sbx, "echo in > in; ln -s in good; ln -s /etc/passwd bad; ln -s /etc dir; ln -s none dangling; mkfifo pipe; ln -s loop loop; mkdir sub; ln -s ../in sub/up")
		for _, path := range []string{"/etc/passwd", "../etc/passwd", "/workspace/../etc/passwd", "bad", "dir/passwd", "/proc/self/environ", "/", "sub/../../etc/passwd"} {
			o.refused(t, 400, "path_outside_workspace", "GET", sbx+"/files/read?path="+url.QueryEscape(path), nil)
			o.refused(t, 400, "path_outside_workspace", "PUT", sbx+"/files", map[string]any{"path": path, "content": "x"})
			o.refused(t, 400, "path_outside_workspace", "GET", sbx+"/files/download?path="+url.QueryEscape(path), nil)
			o.refused(t, 400, "path_outside_workspace", "POST", sbx+"/files/upload-url", map[string]any{"path": path})
			o.refused(t, 400, "path_outside_workspace", "POST", sbx+"/artifacts", map[string]any{"path": path})
		}
		if got := read(t, sbx, "good"); got != "in\n" {
			t.Errorf("%q", got)
		}
		if got := read(t, sbx, "sub/up"); got != "in\n" {
			t.Errorf("%q", got)
		}
		for _, e := range items(o.want(t, 200, "GET", sbx+"/files", nil)["data"]) {
			e := object(e)
			want := map[any]any{"good": float64(3), "bad": float64(0), "dangling": float64(0), "pipe": float64(0), "loop": float64(0), "dir": float64(0)}
			if size, ok := want[e["name"]]; ok && (e["sizeBytes"] != size || e["type"] != "file") {
				t.Errorf("%v", e)
			}
		}
		for _, path := range []string{"pipe", "dangling", "loop"} {
			a := o.call(t, "GET", sbx+"/files/read?path="+path, nil)
			if a.status < 400 || a.status >= 500 {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		for _, path := range []string{strings.Repeat("a", 300), strings.Repeat("a/", 2000) + "a", strings.Repeat("a", 5000), "a\x00b", "\xff", "a\nb\x07", "-rf", "con.txt:x", " "} {
			a := o.call(t, "GET", sbx+"/files/stat?path="+url.QueryEscape(path), nil)
			if a.status != 400 && a.status != 404 {
				t.Errorf("%.20q: %d %s", path, a.status, a.body)
			}
		}
	})
	s.row(t, "8", "write rules", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		put := func(fields ...any) map[string]any {
			in := map[string]any{"path": "f", "content": "x"}
			for i := 0; i < len(fields); i += 2 {
				in[fields[i].(string)] = fields[i+1]
			}
			return in
		}
		o.want(t, 200, "PUT", sbx+"/files", put())
		o.refused(t, 409, "file_already_exists", "PUT", sbx+"/files", put("overwrite", false))
		o.run(t, sbx, "chmod 750 f; mkdir d; mkdir locked; touch locked/x; chmod 500 locked")
		o.want(t, 200, "PUT", sbx+"/files", put("content", "#!/bin/sh\necho y\n"))
		if c := o.run(t, sbx, "stat -c %a f; ./f; echo z > g; stat -c '%U %a' g"); text(c["stdout"]) != "750\ny\nsandbox 644\n" {
			t.Errorf("%v", c["stdout"])
		}
		o.refused(t, 404, "parent_directory_not_found", "PUT", sbx+"/files", put("path", "no/such/f"))
		o.refused(t, 400, "path_is_directory", "PUT", sbx+"/files", put("path", "d"))
		o.refused(t, 400, "path_is_directory", "PUT", sbx+"/files", put("path", "/workspace"))
		if a := o.call(t, "PUT", sbx+"/files", put("path", "f/below")); a.status != 400 && a.status != 404 {
			t.Errorf("%d %s", a.status, a.body)
		}
		if details := o.refused(t, 403, "forbidden", "PUT", sbx+"/files", put("path", "locked/y")); details["reason"] != "permission_denied" {
			t.Errorf("%v", details)
		}
		full := strings.Repeat("x", 256<<10)
		o.want(t, 200, "PUT", sbx+"/files", put("path", "full", "content", full))
		if got := read(t, sbx, "full"); got != full {
			t.Errorf("%d bytes", len(got))
		}
		details := o.refused(t, 413, "file_too_large", "PUT", sbx+"/files", put("path", "more", "content", full+"x"))
		if details["maxBytes"] != float64(256<<10) || details["stagedRoute"] == nil {
			t.Errorf("%v", details)
		}
		o.run(t, sbx, "head -c 262145 /dev/zero > big")
		o.refused(t, 413, "file_too_large", "GET", sbx+"/files/read?path=big", nil)
		if c := o.run(t, sbx, "ls -A | tr '\\n' ' '"); text(c["stdout"]) != "big d f full g locked " {
			t.Errorf("left behind: %v", c["stdout"])
		}
	})
	s.row(t, "8", "a full disk is a quota, and heals", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		c := o.run(t, sbx, fmt.Sprintf("head -c %d /dev/zero > fill", diskBytes+1<<20))
		if c["exitCode"] == float64(0) || !strings.Contains(text(c["stderr"]), "No space left on device") {
			t.Errorf("%v %v", c["exitCode"], c["stderr"])
		}
		body := map[string]any{"path": "f", "content": strings.Repeat("x", 200_000)}
		if details := o.refused(t, 429, "quota_exceeded", "PUT", sbx+"/files", body); details["quota"] != "sandbox_disk_bytes" {
			t.Errorf("%v", details)
		}
		link := text(o.want(t, 201, "POST", sbx+"/files/upload-url", map[string]any{"path": "up"})["url"])
		o.refused(t, 429, "quota_exceeded", "PUT", link, strings.Repeat("x", 2<<20), "Authorization", "")
		o.want(t, 200, "DELETE", sbx+"/files?path=fill", nil)
		o.want(t, 200, "PUT", sbx+"/files", body)
		if c := o.run(t, sbx, "ls -A"); c["stdout"] != "f\n" {
			t.Errorf("left behind: %v", c["stdout"])
		}
	})
	s.row(t, "8", "mkdir, move, delete", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		o.want(t, 200, "POST", sbx+"/files/mkdir", map[string]any{"path": "d"})
		o.refused(t, 409, "file_already_exists", "POST", sbx+"/files/mkdir", map[string]any{"path": "d"})
		o.want(t, 200, "POST", sbx+"/files/mkdir", map[string]any{"path": "d", "parents": true})
		o.refused(t, 404, "parent_directory_not_found", "POST", sbx+"/files/mkdir", map[string]any{"path": "x/y"})
		o.want(t, 200, "POST", sbx+"/files/mkdir", map[string]any{"path": "x/y", "parents": true})
		o.run(t, sbx, "echo 1 > f; echo 2 > g; echo 3 > x/y/z; mkdir empty")
		o.refused(t, 409, "file_already_exists", "POST", sbx+"/files/mkdir", map[string]any{"path": "f", "parents": true})
		o.refused(t, 409, "file_already_exists", "POST", sbx+"/files/move", map[string]any{"from": "f", "to": "g"})
		moved := object(o.want(t, 200, "POST", sbx+"/files/move", map[string]any{"from": "f", "to": "g", "overwrite": true})["file"])
		if moved["path"] != "/workspace/g" || read(t, sbx, "g") != "1\n" {
			t.Errorf("%v", moved)
		}
		o.refused(t, 404, "file_not_found", "POST", sbx+"/files/move", map[string]any{"from": "f", "to": "h"})
		o.refused(t, 409, "directory_not_empty", "POST", sbx+"/files/move", map[string]any{"from": "empty", "to": "x", "overwrite": true})
		o.refused(t, 400, "invalid_request", "POST", sbx+"/files/move", map[string]any{"from": "x", "to": "x/y/x"})
		o.refused(t, 404, "parent_directory_not_found", "POST", sbx+"/files/move", map[string]any{"from": "g", "to": "no/g"})
		o.refused(t, 400, "path_outside_workspace", "POST", sbx+"/files/move", map[string]any{"from": "g", "to": "/tmp/g"})
		o.refused(t, 400, "path_outside_workspace", "POST", sbx+"/files/move", map[string]any{"from": "/etc/passwd", "to": "g2"})
		o.refused(t, 409, "directory_not_empty", "DELETE", sbx+"/files?path=x", nil)
		o.refused(t, 400, "invalid_request", "DELETE", sbx+"/files?path=/workspace", nil)
		o.refused(t, 404, "file_not_found", "DELETE", sbx+"/files?path=f", nil)
		o.refused(t, 400, "invalid_request", "DELETE", sbx+"/files", nil)
		o.refused(t, 400, "path_outside_workspace", "DELETE", sbx+"/files?path=/tmp", nil)
		o.run(t, sbx, "ln -s g link")
		for _, path := range []string{"g", "d", "link"} {
			if got := o.want(t, 200, "DELETE", sbx+"/files?path="+path, nil); got["deleted"] != true {
				t.Errorf("%v", got)
			}
		}
	})
}

func (s *suite) transferRows(t *testing.T) {
	o := s.owner
	anonymous := s.caller(t, "")
	reason := func(t *testing.T, want, method, path string, headers ...string) {
		t.Helper()
		if details := anonymous.refused(t, 403, "forbidden", method, path, nil, headers...); details["reason"] != want {
			t.Errorf("%v, want %s", details, want)
		}
	}
	s.row(t, "8", "signed download: no credential, range, tampering", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		o.run(t, sbx, "seq 100000 > n; mkdir d; : > none")
		u := o.want(t, 200, "POST", sbx+"/files/download-url", map[string]any{"path": "n"})
		link := text(u["url"])
		if !strings.HasPrefix(link, s.url+"/") || u["authMode"] != "api_key" || len(object(u["headers"])) != 0 {
			t.Errorf("%v", u)
		}
		whole := anonymous.call(t, "GET", link, nil)
		if whole.status != 200 || whole.header.Get("Content-Disposition") == "" || whole.header.Get("Content-Type") != "application/octet-stream" || len(whole.body) != 588895 {
			t.Fatalf("%d %v %d bytes", whole.status, whole.header, len(whole.body))
		}
		for spec, want := range map[string][]int{"bytes=0-9": {0, 10}, "bytes=588890-": {588890, 588895}, "bytes=-5": {588890, 588895}, "bytes=10-999999999": {10, 588895}} {
			a := anonymous.call(t, "GET", link, nil, "Range", spec)
			if a.status != 206 || !bytes.Equal(a.body, whole.body[want[0]:want[1]]) || a.header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/588895", want[0], want[1]-1) {
				t.Errorf("%s: %d %v", spec, a.status, a.header)
			}
		}
		a := anonymous.call(t, "GET", link, nil, "Range", "bytes=588895-")
		if code, _ := a.envelope(t); a.status != 416 || code != "invalid_request" || a.header.Get("Content-Range") != "bytes */588895" {
			t.Errorf("%d %s %v", a.status, code, a.header)
		}
		if h := anonymous.call(t, "HEAD", link, nil); h.status != 200 || h.header.Get("Content-Length") != "588895" || len(h.body) != 0 {
			t.Errorf("%d %v", h.status, h.header)
		}
		reason(t, "signature_invalid", "GET", strings.Replace(link, "path=n", "path=none", 1))
		reason(t, "signature_invalid", "GET", link+"A")
		if a := o.call(t, "GET", link+"A", nil); a.status != 200 {
			t.Errorf("judged by the credential: %d", a.status)
		}
		o.refused(t, 404, "file_not_found", "POST", sbx+"/files/download-url", map[string]any{"path": "x"})
		o.refused(t, 400, "path_is_directory", "POST", sbx+"/files/download-url", map[string]any{"path": "d"})
		if a := o.call(t, "GET", sbx+"/files/download?path=none", nil); a.status != 200 || len(a.body) != 0 {
			t.Errorf("an empty file: %d", a.status)
		}
		anonymous.refused(t, 401, "unauthorized", "GET", sbx+"/files/download?path=n", nil)
		victim := s.caller(t, s.newKey(t, ""))
		link = text(victim.want(t, 200, "POST", sbx+"/files/download-url", map[string]any{"path": "n"})["url"])
		for _, k := range items(o.want(t, 200, "GET", "/v1/api-keys", nil)["data"]) {
			if strings.HasSuffix(victim.key, text(object(k)["last4"])) {
				o.want(t, 200, "DELETE", "/v1/api-keys/"+text(object(k)["id"]), nil)
			}
		}
		reason(t, "key_revoked", "GET", link)
		o.want(t, 200, "DELETE", sbx, nil)
		o.refused(t, 410, "sandbox_destroyed", "POST", sbx+"/files/download-url", map[string]any{"path": "n"})
	})
	s.row(t, "8", "staged upload: checked, whole or nothing, once", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		data := bytes.Repeat([]byte("0123456789abcdef"), 128<<10) // 2 MiB
		sum := sha256.Sum256(data)
		ticket := func(fields ...any) string {
			in := map[string]any{"path": "up.bin"}
			for i := 0; i < len(fields); i += 2 {
				in[fields[i].(string)] = fields[i+1]
			}
			u := o.want(t, 201, "POST", sbx+"/files/upload-url", in)
			if u["method"] != "PUT" || !strings.HasPrefix(text(u["uploadId"]), "upl_") {
				t.Errorf("%v", u)
			}
			return text(u["url"])
		}
		put := func(link string, data []byte) answer {
			return anonymous.call(t, "PUT", link, io.Reader(bytes.NewReader(data)), "Content-Type", "application/octet-stream")
		}
		refuse := func(a answer, status int, code string) {
			t.Helper()
			if got, _ := a.envelope(t); a.status != status || got != code {
				t.Errorf("%d %s, want %d %s", a.status, got, status, code)
			}
		}
		link := ticket("sizeBytes", len(data), "sha256", hex.EncodeToString(sum[:]))
		if a := put(link, data); a.status != 201 || object(a.object(t)["file"])["sizeBytes"] != float64(len(data)) {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if c := o.run(t, sbx, "sha256sum < up.bin | cut -c1-64"); strings.TrimSpace(text(c["stdout"])) != hex.EncodeToString(sum[:]) {
			t.Errorf("%v", c["stdout"])
		}
		refuse(put(link, data), 409, "upload_conflict")
		refuse(put(ticket("sizeBytes", 5), data), 400, "upload_size_mismatch")
		refuse(put(ticket("path", "other", "sha256", strings.Repeat("0", 64)), data), 400, "upload_checksum_mismatch")
		if a := put(ticket("path", "upper", "sha256", strings.ToUpper(hex.EncodeToString(sum[:]))), data); a.status != 201 {
			t.Errorf("upper-case digest: %d %s", a.status, a.body)
		}
		// Chunked, so without a length.
		req := anonymous.request(t, "PUT", ticket("path", "chunked"), struct{ io.Reader }{bytes.NewReader(data)}, "Content-Type", "application/octet-stream")
		res, err := anonymous.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != 201 {
			t.Errorf("chunked: %d", res.StatusCode)
		}
		if a := put(ticket("path", "empty"), nil); a.status != 201 {
			t.Errorf("empty: %d %s", a.status, a.body)
		}
		o.refused(t, 409, "file_already_exists", "POST", sbx+"/files/upload-url", map[string]any{"path": "up.bin", "overwrite": false})
		o.refused(t, 404, "parent_directory_not_found", "POST", sbx+"/files/upload-url", map[string]any{"path": "a/b"})
		o.refused(t, 400, "path_is_directory", "POST", sbx+"/files/upload-url", map[string]any{"path": "/workspace"})
		o.refused(t, 413, "file_too_large", "POST", sbx+"/files/upload-url", map[string]any{"path": "x", "sizeBytes": 6 << 30})
		o.refused(t, 400, "invalid_request", "POST", sbx+"/files/upload-url", map[string]any{"path": "x", "sizeBytes": -1})
		o.refused(t, 400, "invalid_request", "POST", sbx+"/files/upload-url", map[string]any{"path": "x", "sha256": "x"})
		reason(t, "signature_invalid", "PUT", ticket("path", "y")+"A")
		o.refused(t, 404, "upload_not_found", "PUT", sbx+"/files/uploads/upl_"+suffix, "x")
		if c := o.run(t, sbx, "ls -A | tr '\\n' ' '"); text(c["stdout"]) != "chunked empty up.bin upper " {
			t.Errorf("left behind: %v", c["stdout"])
		}
	})
	s.row(t, "8", "an upload whose client vanishes leaves nothing and can be sent again", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		link := text(o.want(t, 201, "POST", sbx+"/files/upload-url", map[string]any{"path": "part", "sizeBytes": 1000})["url"])
		u, err := url.Parse(link)
		if err != nil {
			t.Fatal(err)
		}
		got := s.raw(t, "PUT "+u.RequestURI()+" HTTP/1.1\r\nHost: "+u.Host+"\r\nContent-Length: 1000\r\n\r\nonly this", true)
		if !strings.HasPrefix(got, "HTTP/1.1 400") {
			t.Errorf("%.200q", got)
		}
		if c := o.run(t, sbx, "ls -A"); c["stdout"] != "" {
			t.Errorf("left behind: %v", c["stdout"])
		}
		until(t, "it can be sent again", 5*time.Second, func() bool {
			return anonymous.call(t, "PUT", link, strings.Repeat("x", 1000), "Content-Type", "application/octet-stream").status == 201
		})
	})
	s.row(t, "8", "a download whose client vanishes holds nothing up", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		o.run(t, sbx, "head -c 50000000 /dev/zero > big")
		for range 5 {
			ctx, cancel := context.WithCancel(t.Context())
			res, err := o.http.Do(o.request(t, "GET", sbx+"/files/download?path=big", nil).WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.ReadFull(res.Body, make([]byte, 1000))
			cancel()
			_ = res.Body.Close()
		}
		if a := o.call(t, "GET", sbx+"/files/download?path=big", nil); len(a.body) != 50_000_000 {
			t.Errorf("%d bytes", len(a.body))
		}
	})
	s.row(t, "4", "log download by URL", func(t *testing.T) {
		sbx, _ := o.sandbox(t)
		id := text(o.run(t, sbx, "echo out; echo err >&2")["id"])
		for stream, want := range map[string]string{"stdout": "out\n", "stderr": "err\n"} {
			link := text(o.want(t, 200, "POST", "/v1/commands/"+id+"/logs/download-url", map[string]any{"stream": stream})["url"])
			if a := anonymous.call(t, "GET", link, nil); string(a.body) != want {
				t.Errorf("%s: %q", stream, a.body)
			}
		}
		link := text(o.want(t, 200, "POST", "/v1/commands/"+id+"/logs/download-url", nil)["url"])
		if a := anonymous.call(t, "GET", link, nil); len(a.body) != 8 {
			t.Errorf("%q", a.body)
		}
		reason(t, "signature_invalid", "GET", link+"&stream=stdout")
		o.refused(t, 400, "invalid_request", "POST", "/v1/commands/"+id+"/logs/download-url", map[string]any{"stream": "x"})
		o.refused(t, 400, "invalid_request", "GET", "/v1/commands/"+id+"/logs/download?stream=x", nil)
	})
}

func (s *suite) artifactRows(t *testing.T) {
	o := s.owner
	anonymous := s.caller(t, "")
	s.row(t, "9.1", "artifacts: made, listed, outliving the sandbox, downloaded, deleted", func(t *testing.T) {
		sbx, id := o.sandbox(t)
		o.run(t, sbx, "echo '<h1>' > report.html; mkdir d; ln -s /etc/passwd out")
		art := object(o.want(t, 201, "POST", sbx+"/artifacts", map[string]any{"path": "report.html"})["artifact"])
		sum := sha256.Sum256([]byte("<h1>\n"))
		if art["name"] != "report.html" || art["sizeBytes"] != float64(5) || art["sandboxId"] != id || art["sha256"] != hex.EncodeToString(sum[:]) || art["sourcePath"] != "/workspace/report.html" || art["retentionExpiresAt"] == nil {
			t.Errorf("%v", art)
		}
		o.refused(t, 404, "file_not_found", "POST", sbx+"/artifacts", map[string]any{"path": "none"})
		o.refused(t, 400, "path_is_directory", "POST", sbx+"/artifacts", map[string]any{"path": "d"})
		o.refused(t, 400, "path_outside_workspace", "POST", sbx+"/artifacts", map[string]any{"path": "out"})
		for _, name := range []string{"a/b", "a\x01", strings.Repeat("x", 256)} {
			o.refused(t, 400, "invalid_request", "POST", sbx+"/artifacts", map[string]any{"path": "report.html", "name": name})
		}
		o.want(t, 200, "DELETE", sbx, nil)
		path := "/v1/artifacts/" + text(art["id"])
		o.want(t, 200, "GET", path, nil)
		if n := len(items(o.want(t, 200, "GET", sbx+"/artifacts", nil)["data"])); n != 1 {
			t.Errorf("%d listed", n)
		}
		a := o.call(t, "GET", path+"/download", nil)
		if string(a.body) != "<h1>\n" || !strings.HasPrefix(a.header.Get("Content-Disposition"), "attachment") {
			t.Errorf("%q %v", a.body, a.header)
		}
		link := text(o.want(t, 200, "POST", path+"/download-url", nil)["url"])
		if a := anonymous.call(t, "GET", link, nil, "Range", "bytes=1-2"); a.status != 206 || string(a.body) != "h1" {
			t.Errorf("%d %q", a.status, a.body)
		}
		gone := object(o.want(t, 200, "DELETE", path, nil)["artifact"])
		if gone["deletedAt"] == nil {
			t.Errorf("%v", gone)
		}
		for _, p := range []string{path, path + "/download"} {
			o.refused(t, 404, "not_found", "GET", p, nil)
		}
		o.refused(t, 404, "not_found", "DELETE", path, nil)
		o.refused(t, 404, "not_found", "POST", path+"/download-url", nil)
		anonymous.refused(t, 404, "not_found", "GET", link, nil)
		if n := len(items(o.want(t, 200, "GET", sbx+"/artifacts", nil)["data"])); n != 0 {
			t.Errorf("%d listed", n)
		}
	})
}
