package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"crownest.dev/crownest/internal/canonicaljson"
	"crownest.dev/crownest/internal/sandbox"
)

// buffer is a pooled bytes.Buffer.
type buffer struct{ bytes.Buffer }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

func newBuffer() *buffer { return buffers.Get().(*buffer) }

// free gives the buffer back, unless one big request made it grow for good.
func (b *buffer) free() {
	if b.Cap() > 1<<20 {
		return
	}
	b.Reset()
	buffers.Put(b)
}

// Bodies above largeBody take turns: at most largeBodiesMax are taken apart at a
// time, the others wait for largePatience.
const (
	largeBody      = 512 << 10
	largeBodiesMax = 8
	largePatience  = 10 * time.Second
)

// readBody reads a JSON body, checks that it is one and keeps its canonical form
// and its tree. No body counts as an empty object.
func (rq *request) readBody() error {
	r := rq.r
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil
	}
	limit := rq.s.opts.BodyLimit
	if r.ContentLength > limit {
		rq.drain(limit)
		return tooLarge(limit)
	}
	rc := http.NewResponseController(rq.w)
	_ = rc.SetReadDeadline(time.Now().Add(rq.s.timing.read))
	raw := newBuffer()
	defer raw.free()
	if r.ContentLength > 0 {
		raw.Grow(int(r.ContentLength))
	}
	n, err := raw.ReadFrom(io.LimitReader(r.Body, limit+1))
	_ = rc.SetReadDeadline(time.Time{})
	if n > limit {
		rq.drain(limit)
		return tooLarge(limit)
	}
	if err != nil {
		return sandbox.NewError(sandbox.CodeInvalidRequest, "The request body ended early.").Because(err)
	}
	if n == 0 {
		return nil
	}
	if err := checkContentType(r.Header.Get("Content-Type")); err != nil {
		return err
	}
	if n > largeBody {
		// Taken apart, a large body takes many times its size.
		place := time.NewTimer(largePatience)
		defer place.Stop()
		select {
		case rq.s.largeBodies <- struct{}{}:
			defer func() { <-rq.s.largeBodies }()
		case <-place.C:
			return sandbox.NewError(sandbox.CodeRateLimited, "Too many large requests are under way; try again.")
		}
	}
	rq.canonical, err = canonicaljson.Transform(raw.Bytes())
	if err != nil {
		return sandbox.NewError(sandbox.CodeInvalidRequest, "The request body is not well-formed JSON: %s.", reason(err, canonicaljson.ErrInvalid)).Because(err)
	}
	var tree any
	if err := json.Unmarshal(rq.canonical, &tree); err != nil {
		return sandbox.NewError(sandbox.CodeInvalidRequest, "The request body is not well-formed JSON.").Because(err)
	}
	if tree == nil {
		return nil
	}
	obj, ok := tree.(map[string]any)
	if !ok {
		return sandbox.NewError(sandbox.CodeInvalidRequest, "The request body must be a JSON object.")
	}
	rq.tree = obj
	return nil
}

// reason is the text of err without that of the sentinel it wraps.
func reason(err, sentinel error) string {
	return strings.TrimPrefix(err.Error(), sentinel.Error()+": ")
}

func tooLarge(limit int64) error {
	return sandbox.NewError(sandbox.CodeRequestTooLarge, "The request body is larger than %d bytes.", limit).With("maxBytes", limit)
}

// drain reads on for a moment, so that a client that sends before it reads gets
// the answer instead of a reset connection.
func (rq *request) drain(limit int64) {
	if rq.r.Header.Get("Expect") != "" {
		return
	}
	rc := http.NewResponseController(rq.w)
	_ = rc.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, _ = io.CopyN(io.Discard, rq.r.Body, 4*limit)
	_ = rc.SetReadDeadline(time.Time{})
}

func checkContentType(header string) error {
	if header == "" {
		return nil
	}
	media, params, err := mime.ParseMediaType(header)
	charset := strings.ToLower(params["charset"])
	if err != nil || media != mediaJSON || charset != "" && charset != "utf-8" && charset != "utf8" {
		return invalid("content-type", "The request body must be application/json in UTF-8.")
	}
	return nil
}

// decode validates the body against the schema of dst's type and fills dst.
func (rq *request) decode(dst any) error {
	if rq.op.bodySchema == nil {
		return nil
	}
	if rq.tree == nil {
		rq.tree = map[string]any{}
	}
	if v, ok := dst.(interface{ precheck(map[string]any) error }); ok {
		if err := v.precheck(rq.tree); err != nil {
			return err
		}
	}
	if err := rq.s.validate(rq.op.bodySchema, rq.tree); err != nil {
		return err
	}
	if err := fill(reflect.ValueOf(dst).Elem(), rq.tree); err != nil {
		return err
	}
	if v, ok := dst.(interface{ validate() error }); ok {
		return v.validate()
	}
	return nil
}

// validate checks a tree against a schema and returns the first complaint.
func (s *Server) validate(schema *huma.Schema, tree any) error {
	v := validators.Get().(*validator)
	defer validators.Put(v)
	v.path.Reset()
	v.result.Reset()
	huma.Validate(s.registry, schema, v.path, huma.ModeWriteToServer, tree, v.result)
	if len(v.result.Errors) == 0 {
		return nil
	}
	var detail *huma.ErrorDetail
	if !errors.As(v.result.Errors[0], &detail) {
		return sandbox.NewError(sandbox.CodeInvalidRequest, "The request body is invalid.")
	}
	field := text(detail.Location)
	if field == "" {
		return sandbox.NewError(sandbox.CodeInvalidRequest, "The request body is invalid: %s.", detail.Message)
	}
	return invalid(field, "%s: %s.", field, detail.Message)
}

type validator struct {
	path   *huma.PathBuffer
	result *huma.ValidateResult
}

var validators = sync.Pool{New: func() any {
	return &validator{path: huma.NewPathBuffer(nil, 0), result: &huma.ValidateResult{}}
}}

// fill sets a struct from a validated tree, by exact member names. encoding/json
// would also match other cases, which the validation has not seen.
func fill(dst reflect.Value, tree map[string]any) error {
	t := dst.Type()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		v, ok := tree[name]
		if !ok || v == nil {
			continue
		}
		if err := fillValue(dst.Field(i), v, name); err != nil {
			return err
		}
	}
	return nil
}

func fillValue(dst reflect.Value, v any, name string) error {
	if dst.Kind() == reflect.Pointer {
		dst.Set(reflect.New(dst.Type().Elem()))
		return fillValue(dst.Elem(), v, name)
	}
	switch v := v.(type) {
	case string:
		dst.SetString(v)
	case bool:
		dst.SetBool(v)
	case float64:
		if math.Abs(v) > 1<<53 {
			return invalid(name, "%s is out of range.", name)
		}
		dst.SetInt(int64(v))
	case map[string]any:
		if dst.Kind() == reflect.Struct {
			return fill(dst, v)
		}
		m := make(map[string]string, len(v))
		for k, item := range v {
			m[k] = item.(string) // validated
		}
		dst.Set(reflect.ValueOf(m))
	case []any:
		s := reflect.MakeSlice(dst.Type(), len(v), len(v))
		for i, item := range v {
			if item == nil {
				return invalid(name, "%s must not contain null.", name)
			}
			if err := fillValue(s.Index(i), item, name); err != nil {
				return err
			}
		}
		dst.Set(s)
	}
	return nil
}
