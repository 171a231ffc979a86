package api

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"crownest.dev/crownest/internal/sandbox"
)

// BenchmarkGetSandbox measures what the API adds to a read: routing, credential,
// rate limit, checks and encoding.
func BenchmarkGetSandbox(b *testing.B) {
	r := newRig(b, func(o *Options) { o.RateLimit = RateLimit{PerMinute: 1 << 30, Burst: 1 << 30} })
	path := "/v1/sandboxes/" + r.sandbox()
	b.ReportAllocs()
	for b.Loop() {
		req := httptest.NewRequest(http.MethodGet, path, nil)
		req.Header["Authorization"] = []string{"Bearer " + r.key}
		w := httptest.NewRecorder()
		r.api.ServeHTTP(w, req)
		if w.Code != http.StatusOK {
			b.Fatal(w.Code)
		}
	}
}

// BenchmarkCreateSandbox adds the decoding and validation of a body.
func BenchmarkCreateSandbox(b *testing.B) {
	r := newRig(b)
	b.ReportAllocs()
	for b.Loop() {
		req := httptest.NewRequest(http.MethodPost, "/v1/sandboxes", strings.NewReader(`{"template":"base","metadata":{"a":"1"},"ttlMs":60000}`))
		req.Header["Authorization"] = []string{"Bearer " + r.key}
		w := httptest.NewRecorder()
		r.api.ServeHTTP(w, req)
		if w.Code != http.StatusCreated {
			b.Fatal(w.Code)
		}
	}
}

// BenchmarkLogEvent measures the way of a command's output onto the wire.
func BenchmarkLogEvent(b *testing.B) {
	chunk := &sandbox.LogChunk{Seq: 1, Stream: sandbox.Stdout, CreatedAt: time.Now(), Data: bytes.Repeat([]byte("a line of output, as most are\n"), 2000)}
	b.SetBytes(int64(len(chunk.Data)))
	es := &eventStream{}
	for b.Loop() {
		es.buf = es.buf[:0]
		es.log(chunk)
	}
}
