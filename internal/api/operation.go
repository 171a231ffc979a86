package api

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"crownest.dev/crownest/internal/sandbox"
)

// operation is one route with everything that is decided before its handler
// runs, and everything that the OpenAPI document says about it.
type operation struct {
	id      string // operationId; empty = not in the document
	method  string
	path    string
	tag     string
	summary string
	scope   string // empty = any key will do
	public  bool   // needs no credential
	human   bool   // for a signed-in person, never for a key
	signed  bool   // a signed URL may stand in for the credential, see grant
	status  int    // of success; 0 = 200
	cost    float64
	params  []*param
	// conditional lists scopes that depend on what the request asks for.
	conditional []conditionalScope
	// makes is the id prefix of what the operation creates, for operations whose
	// resource id is known before it exists.
	makes string
	// secret answers are stored sealed.
	secret bool
	// raw routes read their body themselves.
	raw bool
	// rawRequest bodies are bytes, not JSON.
	rawRequest bool
	// grant says what a signed URL of the operation stands for.
	grant func(rq *request) grant
	// errors are statuses beyond those that every operation may answer.
	errors []int

	request   reflect.Type
	responses map[int]*content // by status; several media types where needed

	bodySchema *huma.Schema
	handle     func(rq *request)
}

// content describes the body of a successful answer.
type content struct {
	description string
	media       map[string]reflect.Type // nil type = raw bytes
}

// conditionalScope is needed only for requests that when recognises.
type conditionalScope struct {
	scope string
	when  string // for the document
	asked func(rq *request) bool
}

// param describes one path, query or header parameter.
type param struct {
	name     string
	in       string // path, query, header
	doc      string
	required bool
	schema   huma.Schema
	// check refuses a value that was given; nil = any text.
	check func(value string) error
}

// noBody is the request type of operations that take no body; an empty object is
// accepted from clients that always send one.
type noBody struct{}

// Handlers return one of these or an error.
type (
	// handler answers with one JSON object.
	handler[B, R any] func(ctx context.Context, rq *request, in *B) (R, error)
	// streamHandler writes the answer itself; an error it returns is still an
	// ordinary envelope, so nothing may have been written.
	streamHandler func(ctx context.Context, rq *request) error
)

// query adds a handler that changes nothing.
func query[R any](s *Server, op operation, h handler[noBody, R]) {
	op.answers(reflect.TypeFor[R]())
	op.handle = func(rq *request) {
		ctx, cancel := context.WithTimeout(s.base, readTimeout)
		defer cancel()
		out, err := h(ctx, rq, &noBody{})
		if err != nil {
			s.writeError(rq, err)
			return
		}
		s.writeJSON(rq, rq.op.success(), encodeJSON(out))
	}
	s.add(op)
}

// mutation adds a handler that changes something: it runs detached from the
// client's connection and under the rules of idempotency.
func mutation[B, R any](s *Server, op operation, h handler[B, R]) {
	op.request = reflect.TypeFor[B]()
	op.answers(reflect.TypeFor[R]())
	op.handle = func(rq *request) {
		in := new(B)
		if err := rq.decode(in); err != nil {
			s.writeError(rq, err)
			return
		}
		s.once(rq, func(ctx context.Context) (int, any, error) {
			out, err := h(ctx, rq, in)
			return rq.op.success(), out, err
		})
	}
	s.add(op)
}

// stream adds a handler that writes its own answer.
func stream(s *Server, op operation, h streamHandler) {
	op.handle = func(rq *request) {
		if err := h(s.base, rq); err != nil {
			s.writeError(rq, err)
		}
	}
	s.add(op)
}

func (op *operation) success() int {
	if op.status == 0 {
		return http.StatusOK
	}
	return op.status
}

// answers sets the ordinary JSON answer.
func (op *operation) answers(t reflect.Type) {
	op.responses = map[int]*content{op.success(): {
		description: http.StatusText(op.success()),
		media:       map[string]reflect.Type{mediaJSON: t},
	}}
}

const mediaJSON = "application/json"

// mutates reports whether the idempotency rules hold for the operation.
func (op *operation) mutates() bool { return op.method != http.MethodGet && !op.raw }

// add puts an operation into the route table.
func (s *Server) add(op operation) {
	if op.cost == 0 {
		op.cost = 1
	}
	if op.request != nil && op.request != reflect.TypeFor[noBody]() {
		op.bodySchema = s.registry.Schema(op.request, true, "")
	}
	methods, ok := s.routes[op.path]
	if !ok {
		methods = &route{path: op.path, methods: map[string]*operation{}}
		s.routes[op.path] = methods
	}
	methods.methods[op.method] = &op
	s.operations = append(s.operations, &op)
}

// route holds the operations of one path.
type route struct {
	path    string
	methods map[string]*operation
	allow   string
}

// pathID describes a path parameter that holds an id of one kind. A malformed
// one cannot exist, so it answers as an absent one.
func pathID(name, prefix, what string) *param {
	return &param{
		name: name, in: "path", required: true, doc: "The id of the " + what + ".",
		schema: huma.Schema{Type: huma.TypeString, Pattern: "^" + prefix + "_[0-9a-z]{26}$"},
		check: func(v string) error {
			if !sandbox.ValidID(prefix, v) {
				return noSuch(what)
			}
			return nil
		},
	}
}

func ptr[T any](v T) *T { return &v }

var (
	pSandbox  = pathID("sandboxId", sandbox.PrefixSandbox, "sandbox")
	pCommand  = pathID("commandId", sandbox.PrefixCommand, "command")
	pArtifact = pathID("artifactId", sandbox.PrefixArtifact, "artifact")
	pKey      = pathID("apiKeyId", sandbox.PrefixKey, "API key")
	pUpload   = pathID("uploadId", sandbox.PrefixUpload, "upload")

	pTemplateSlug = &param{
		name: "templateSlug", in: "path", required: true, doc: "The slug of the template.",
		schema: huma.Schema{Type: huma.TypeString, Pattern: "^[a-z0-9][a-z0-9-]{0,63}$"},
		check: func(v string) error {
			for i := range len(v) {
				c := v[i]
				if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
					return noSuch("template")
				}
			}
			if len(v) > 64 {
				return noSuch("template")
			}
			return nil
		},
	}

	qLimit = &param{
		name: "limit", in: "query", doc: "Page size; above 500 counts as 500.",
		schema: huma.Schema{Type: huma.TypeInteger, Minimum: ptr(1.0), Default: defaultLimit},
		check: func(v string) error {
			if _, ok := parseLimit(v); !ok {
				return invalid("limit", "limit must be an integer of at least 1.")
			}
			return nil
		},
	}
	qAfterSeq = &param{
		name: "afterSeq", in: "query", doc: "Only what has a higher sequence number. Omitted: from the oldest retained.",
		schema: huma.Schema{Type: huma.TypeInteger, Format: "int64", Minimum: ptr(0.0)},
		check: func(v string) error {
			if n, err := strconv.ParseInt(v, 10, 64); err != nil || n < 0 {
				return invalid("afterSeq", "afterSeq must be an integer of at least 0.")
			}
			return nil
		},
	}
	qProjectID = &param{
		name: "projectId", in: "query", doc: "Only what belongs to this project.",
		schema: huma.Schema{Type: huma.TypeString},
	}
	qPath = &param{
		name: "path", in: "query", required: true, doc: "Absolute path below /workspace, or relative to it.",
		schema: huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(maxPath)},
		check:  checkPath,
	}
	qListPath = &param{
		name: "path", in: "query", doc: "Absolute path below /workspace, or relative to it.",
		schema: huma.Schema{Type: huma.TypeString, MaxLength: ptr(maxPath), Default: "/workspace"},
		check:  checkPath,
	}
	qLogStream = enumParam("stream", "Which streams, both in the order of arrival.", "both", "both", "stdout", "stderr")

	hIdempotencyKey = &param{
		name: "Idempotency-Key", in: "header", doc: "Makes a repetition of the request safe for 24 hours.",
		schema: huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(255), Pattern: "^[!-~]+$"},
	}
)

// maxPath bounds paths; the kernel takes no longer ones.
const maxPath = 4096

func checkPath(v string) error {
	if len(v) > maxPath {
		return invalid("path", "path is longer than %d bytes.", maxPath)
	}
	return nil
}

// enumParam describes a query parameter with fixed values.
func enumParam(name, doc, byDefault string, values ...string) *param {
	p := &param{name: name, in: "query", doc: doc, schema: huma.Schema{Type: huma.TypeString}}
	if byDefault != "" {
		p.schema.Default = byDefault
	}
	for _, v := range values {
		p.schema.Enum = append(p.schema.Enum, v)
	}
	p.check = func(v string) error {
		for _, known := range values {
			if v == known {
				return nil
			}
		}
		return invalid(name, "%s must be one of: %s.", name, strings.Join(values, ", "))
	}
	return p
}

// checkParams refuses bad parameters. Text that no engine can store or compare is
// refused for all of them alike.
func (rq *request) checkParams() error {
	for name, values := range rq.query {
		for _, v := range values {
			if !utf8.ValidString(v) || strings.IndexByte(v, 0) >= 0 || !utf8.ValidString(name) || strings.IndexByte(name, 0) >= 0 {
				return invalid(text(name), "Query parameters must be UTF-8 without NUL characters.")
			}
		}
	}
	for _, p := range rq.op.params {
		if p.in != "query" {
			continue
		}
		v := rq.query.Get(p.name)
		if v == "" {
			if _, given := rq.query[p.name]; p.required || given && p.schema.Type == huma.TypeInteger {
				return invalid(p.name, "The query parameter %s is missing or empty.", p.name)
			}
			continue
		}
		if p.check != nil {
			if err := p.check(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkPathParams answers 404 for ids that cannot exist.
func (rq *request) checkPathParams() error {
	for _, p := range rq.op.params {
		if p.in == "path" && p.check != nil {
			if err := p.check(rq.r.PathValue(p.name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// encodeJSON returns the bytes of an answer. Wire types always encode.
func encodeJSON(v any) []byte {
	b := newBuffer()
	defer b.free()
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("api: a wire type that JSON cannot express: " + err.Error())
	}
	return bytes.Clone(bytes.TrimSuffix(b.Bytes(), []byte{'\n'}))
}
