package api

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"crownest.dev/crownest/internal/sandbox"
)

func FuzzCursor(f *testing.F) {
	f.Add(cursor{time.UnixMilli(1700000000000), sandbox.NewID("sbx")}.encode())
	f.Add("MS4xLnNieA")
	f.Add("")
	f.Fuzz(func(t *testing.T, v string) {
		c, ok := decodeCursor("sbx", v)
		if !ok {
			return
		}
		if !sandbox.ValidID("sbx", c.id) || c.at.Year() > 3100 || c.at.UnixMilli() < 0 || c.encode() != v {
			t.Errorf("%q decodes to %v", v, c)
		}
	})
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-1", "bytes=-1", "bytes=5-", "bytes=9999999999999999999999-", "bytes=1-2,3-4", "bytes=--1"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, spec string, size int64) {
		size = max(size, -(size + 1)) // not negative
		from, n, partial, ok := byteRange(http.Header{"Range": {spec}}, size)
		if !ok {
			return
		}
		if from < 0 || n < 0 || from > size || n > size-from || !partial && (from != 0 || n != size) || partial && n == 0 {
			t.Errorf("%q of %d: %d+%d", spec, size, from, n)
		}
	})
}

func FuzzIdempotencyKey(f *testing.F) {
	f.Add("abc")
	f.Add("a b")
	f.Add(strings.Repeat("x", 256))
	f.Fuzz(func(t *testing.T, key string) {
		got, err := idempotencyKey(http.Header{"Idempotency-Key": {key}})
		bad := key == "" || len(key) > 255
		for i := range len(key) {
			bad = bad || key[i] <= ' ' || key[i] >= 0x7f
		}
		if (err != nil) != bad || err == nil && got != key {
			t.Errorf("%q: %q, %v", key, got, err)
		}
	})
}

func FuzzQuoted(f *testing.F) {
	f.Add([]byte("a\u0085\u2028\xff\x00\"\\"), 10)
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		quoted := appendQuoted(nil, b)
		var s string
		if err := json.Unmarshal(quoted, &s); err != nil {
			t.Fatalf("%q: %v", quoted, err)
		}
		want, _ := json.Marshal(string(b))
		var same string
		_ = json.Unmarshal(want, &same)
		if s != same {
			t.Errorf("%q became %q, want %q", b, s, same)
		}
		if !utf8.Valid(quoted) || bytes.ContainsAny(quoted, "\u0085\u2028\u2029\r\n") {
			t.Errorf("%q", quoted)
		}
		n, size := quotedPrefix(string(b), limit)
		encoded := appendLine(nil, encodeJSON(string(b[:n])))
		if size > max(limit, 0) || len(encoded)-2 > size || len(appendQuoted(nil, b[:n]))-2 > size {
			t.Errorf("%d bytes of %q take %d, not %d", n, b, len(encoded)-2, size)
		}
		if n, _ := quotedPrefix(string(b), math.MaxInt); n != len(b) {
			t.Errorf("%d of %d", n, len(b))
		}
	})
}

// FuzzBody decodes bodies; whatever is in them, the answer is a value that keeps
// the rules or an error of the contract.
func FuzzBody(f *testing.F) {
	for _, s := range []string{
		`{}`, `null`, `{"command":"x","env":{"A":"1"},"collect":[{"path":"a","name":"b"}],"timeoutMs":5,"_crownestRequireCommandRead":false}`,
		`{"metadata":{"a":"b"},"network":{"egress":"allowlist","allow":["x"]},"ttlMs":1e3}`, `{"collect":[null]}`, `{"env":{"A":null}}`, `{"ttlMs":1e308}`,
		`{"path":"a","content":"YQ==","encoding":"base64","overwrite":true,"sizeBytes":1}`,
	} {
		f.Add([]byte(s))
	}
	s, err := New(Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, op := range s.operations {
			if op.bodySchema == nil {
				continue
			}
			w := httptest.NewRecorder()
			rq := &request{s: s, op: op, r: httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))}
			rq.w = &responseWriter{ResponseWriter: w, rq: rq}
			err := rq.readBody()
			dst := reflect.New(op.request).Interface()
			if err == nil {
				err = rq.decode(dst)
			}
			if err != nil {
				if status, _ := envelope(err, ""); status != http.StatusBadRequest {
					t.Errorf("%s: %v", op.id, err)
				}
				continue
			}
			// What was accepted is accepted again in the form it was understood.
			if again, err := json.Marshal(dst); err != nil {
				t.Errorf("%s: %v", op.id, err)
			} else if tree := map[string]any{}; json.Unmarshal(again, &tree) != nil || s.validate(op.bodySchema, tree) != nil {
				t.Errorf("%s: %q was understood as %s", op.id, body, again)
			}
		}
	})
}
