package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"crownest.dev/crownest/internal/sandbox"
)

//go:generate go test -run TestDocumentIsCommitted -update .

// Arrays are never null on this wire.
func init() { huma.DefaultArrayNullable = false }

// serverPlaceholder stands in the document where the server's own URL goes.
const serverPlaceholder = "https://api.crownest.dev"

// schemaName names the schema of a wire type: wireSandbox is Sandbox, and
// list[wireSandbox] is SandboxList.
func schemaName(t reflect.Type, _ string) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	name := t.Name()
	if outer, arg, generic := strings.Cut(strings.TrimSuffix(name, "]"), "["); generic {
		name = arg[strings.LastIndexByte(arg, '.')+1:] + strings.ToUpper(outer[:1]) + outer[1:]
	}
	name = strings.TrimPrefix(name, "wire")
	if name == "" {
		return ""
	}
	return strings.ToUpper(name[:1]) + name[1:]
}

// tags in the order of contract section 4.
var tags = []*huma.Tag{
	{Name: "Discovery"}, {Name: "Auth"}, {Name: "Projects"}, {Name: "Usage"}, {Name: "API Keys"},
	{Name: "Templates"}, {Name: "Sandboxes"}, {Name: "Commands"}, {Name: "Files"}, {Name: "Artifacts"}, {Name: "Audit"},
}

// buildDocument describes every operation that has an id.
func (s *Server) buildDocument() ([]byte, error) {
	errorSchema := s.registry.Schema(reflect.TypeFor[wireError](), true, "")
	doc := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "CrowNest API", Version: "1.0.0",
			Description: "Isolated Linux sandboxes for untrusted code: commands, files and artifacts over HTTP.",
			License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
		},
		Servers: []*huma.Server{{URL: serverPlaceholder}},
		Tags:    tags,
		Components: &huma.Components{
			Schemas: s.registry,
			SecuritySchemes: map[string]*huma.SecurityScheme{
				"bearerAuth":   {Type: "http", Scheme: "bearer", Description: "An API key."},
				"apiKeyHeader": {Type: "apiKey", In: "header", Name: "x-api-key", Description: "An API key."},
			},
			Responses: errorResponses(errorSchema),
		},
	}
	for _, op := range s.operations {
		if op.id != "" {
			doc.AddOperation(s.describe(op))
		}
	}
	// Clients ignore members they do not know and so does the server: no schema
	// closes its objects.
	for _, schema := range s.registry.Map() {
		if closed, ok := schema.AdditionalProperties.(bool); ok && !closed {
			schema.AdditionalProperties = nil
		}
	}
	out, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encoding: %w", err)
	}
	return out, nil
}

// errorResponses lists, for every status, which codes it comes with.
func errorResponses(schema *huma.Schema) map[string]*huma.Response {
	codes := map[int][]string{}
	for code, status := range statusOf {
		_, body := envelope(sandbox.NewError(code, ""), "")
		if name := body.Error.Code; !slices.Contains(codes[status], name) {
			codes[status] = append(codes[status], name)
		}
	}
	out := map[string]*huma.Response{}
	for status, names := range codes {
		slices.Sort(names)
		out[responseName(status)] = &huma.Response{
			Description: http.StatusText(status) + ". Codes: " + strings.Join(names, ", ") + ".",
			Headers:     commonHeaders(),
			Content:     map[string]*huma.MediaType{mediaJSON: {Schema: schema}},
		}
	}
	return out
}

func responseName(status int) string {
	return strings.ReplaceAll(http.StatusText(status), " ", "")
}

func commonHeaders() map[string]*huma.Header {
	return map[string]*huma.Header{"X-Request-Id": {
		Description: "Names this request in the server's logs.",
		Schema:      &huma.Schema{Type: huma.TypeString, Pattern: "^req_[0-9a-z]{26}$"},
	}}
}

// describe returns what the document says about an operation.
func (s *Server) describe(op *operation) *huma.Operation {
	out := &huma.Operation{
		Method: op.method, Path: op.path, OperationID: op.id, Summary: op.summary, Tags: []string{op.tag},
		Responses: map[string]*huma.Response{}, Extensions: map[string]any{},
	}
	s.describeAccess(op, out)
	for _, p := range op.params {
		schema := p.schema
		out.Parameters = append(out.Parameters, &huma.Param{
			Name: p.name, In: p.in, Description: p.doc, Required: p.required, Schema: &schema,
		})
	}
	if op.signed {
		out.Parameters = append(out.Parameters, &huma.Param{
			Name: signatureParam, In: "query", Description: "Part of a signed URL; stands in for the credential.",
			Schema: &huma.Schema{Type: huma.TypeString},
		})
	}
	if op.mutates() {
		schema := hIdempotencyKey.schema
		out.Parameters = append(out.Parameters, &huma.Param{
			Name: hIdempotencyKey.name, In: hIdempotencyKey.in, Description: hIdempotencyKey.doc, Schema: &schema,
		})
	}
	switch {
	case op.rawRequest:
		out.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{mediaBytes: {Schema: bytesSchema()}}}
	case op.bodySchema != nil:
		required := len(s.registry.SchemaFromRef(op.bodySchema.Ref).Required) > 0
		out.RequestBody = &huma.RequestBody{Required: required, Content: map[string]*huma.MediaType{mediaJSON: {Schema: op.bodySchema}}}
	}
	for status, c := range op.responses {
		out.Responses[strconv.Itoa(status)] = s.describeContent(c)
	}
	for _, status := range op.statuses() {
		if status == http.StatusPartialContent {
			partial := s.describeContent(op.responses[http.StatusOK])
			partial.Description = "The bytes of the range"
			out.Responses[strconv.Itoa(status)] = partial
			continue
		}
		out.Responses[strconv.Itoa(status)] = &huma.Response{Ref: "#/components/responses/" + responseName(status)}
	}
	return out
}

func (s *Server) describeAccess(op *operation, out *huma.Operation) {
	scope := op.scope
	switch {
	case op.public:
		scope = "-"
	case scope == "":
		scope = "any key"
	}
	out.Extensions["x-crownest-required-scope"] = scope
	if len(op.conditional) > 0 {
		var list []map[string]string
		for _, c := range op.conditional {
			list = append(list, map[string]string{"scope": c.scope, "when": c.when})
		}
		out.Extensions["x-crownest-conditional-scopes"] = list
	}
	if op.public {
		return
	}
	out.Security = []map[string][]string{{"bearerAuth": {}}, {"apiKeyHeader": {}}}
	if op.signed {
		out.Security = append(out.Security, map[string][]string{})
	}
}

// statuses are the error statuses of an operation, and 206 where it may come.
func (op *operation) statuses() []int {
	out := []int{400, 401, 403, 404, 429, 500}
	if op.mutates() {
		out = append(out, 409)
		if op.bodySchema != nil {
			out = append(out, 413)
		}
	}
	out = append(out, op.errors...)
	slices.Sort(out)
	return slices.Compact(out)
}

func (s *Server) describeContent(c *content) *huma.Response {
	r := &huma.Response{Description: c.description, Headers: commonHeaders(), Content: map[string]*huma.MediaType{}}
	for media, t := range c.media {
		m := &huma.MediaType{Schema: bytesSchema()}
		if t != nil {
			m.Schema = s.registry.Schema(t, true, "")
		}
		r.Content[media] = m
	}
	return r
}

func bytesSchema() *huma.Schema { return &huma.Schema{Type: huma.TypeString, Format: "binary"} }

// Schema describes the events of a command's stream.
func (wireCommandEvent) Schema(r huma.Registry) *huma.Schema {
	return oneOf(r, "CommandEvent", reflect.TypeFor[wireLogEvent](), reflect.TypeFor[wireHeartbeatEvent](),
		reflect.TypeFor[wireTerminalEvent](), reflect.TypeFor[wireErrorEvent]())
}

// Schema describes the events of a command that is run with its output streamed.
func (wireCreateCommandEvent) Schema(r huma.Registry) *huma.Schema {
	return oneOf(r, "CreateCommandEvent", reflect.TypeFor[wireCommandStartedEvent](), reflect.TypeFor[wireLogEvent](),
		reflect.TypeFor[wireHeartbeatEvent](), reflect.TypeFor[wireTerminalEvent](), reflect.TypeFor[wireErrorEvent]())
}

// oneOf names a choice of event types, told apart by their member type.
func oneOf(r huma.Registry, name string, types ...reflect.Type) *huma.Schema {
	choice := &huma.Schema{
		Description:   "The JSON in the data line of one event.",
		Discriminator: &huma.Discriminator{PropertyName: "type", Mapping: map[string]string{}},
	}
	for _, t := range types {
		ref := r.Schema(t, true, "")
		choice.OneOf = append(choice.OneOf, ref)
		value, _ := r.SchemaFromRef(ref.Ref).Properties["type"].Enum[0].(string)
		choice.Discriminator.Mapping[value] = ref.Ref
	}
	r.Map()[name] = choice
	return &huma.Schema{Ref: "#/components/schemas/" + name}
}

// documentFor returns the OpenAPI document with the URL of a server in it.
func (s *Server) documentFor(base string) []byte {
	quoted, err := json.Marshal(base)
	if err != nil {
		return s.document // a string always encodes
	}
	placeholder := []byte(`"servers":[{"url":"` + serverPlaceholder + `"`)
	return bytes.Replace(s.document, placeholder, append([]byte(`"servers":[{"url":`), quoted...), 1)
}
