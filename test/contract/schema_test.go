package contract

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
)

// document is api/openapi.json, to hold answers against. It knows the part of
// JSON Schema that the document uses, and is stricter than clients are: what the
// document does not name is an error.
type document struct {
	root       map[string]any
	operations []operation
}

// operation is one operation of the document.
type operation struct {
	id, method, path string
	pattern          *regexp.Regexp
	def              map[string]any
}

func loadDocument(t *testing.T) *document {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repository(t), "api", "openapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	d := &document{}
	if err := json.Unmarshal(b, &d.root); err != nil {
		t.Fatal(err)
	}
	param := regexp.MustCompile(`\\\{[A-Za-z]+\\\}`)
	for path, item := range object(d.root["paths"]) {
		for method, def := range object(item) {
			d.operations = append(d.operations, operation{
				id: text(object(def)["operationId"]), method: strings.ToUpper(method), path: path, def: object(def),
				pattern: regexp.MustCompile("^" + param.ReplaceAllString(regexp.QuoteMeta(path), "[^/]+") + "$"),
			})
		}
	}
	// Literal paths before those with parameters.
	sort.Slice(d.operations, func(i, j int) bool {
		a, b := d.operations[i], d.operations[j]
		if x, y := strings.Count(a.path, "{"), strings.Count(b.path, "{"); x != y {
			return x < y
		}
		return a.method+a.path < b.method+b.path
	})
	return d
}

func (d *document) find(method, path string) *operation {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	for i := range d.operations {
		if op := &d.operations[i]; op.method == method && op.pattern.MatchString(path) {
			return op
		}
	}
	return nil
}

// check holds an answer against the document.
func (d *document) check(a answer) error {
	media, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	if a.status >= 400 && a.method != http.MethodHead {
		if media != "application/json" {
			return fmt.Errorf("an error as %q", media)
		}
		if err := d.validate(a.body, map[string]any{"$ref": "#/components/schemas/Error"}); err != nil {
			return err
		}
	}
	op := d.find(a.method, a.path)
	if op == nil {
		return nil
	}
	if a.status == http.StatusMethodNotAllowed {
		return nil
	}
	response := object(object(op.def["responses"])[strconv.Itoa(a.status)])
	if response == nil {
		return fmt.Errorf("%s: status %d is not in the document", op.id, a.status)
	}
	if a.status >= 400 || a.method == http.MethodHead {
		return nil
	}
	content := object(object(response["content"])[media])
	if content == nil {
		content = object(object(response["content"])["*/*"])
	}
	if content == nil {
		return fmt.Errorf("%s: media type %q is not in the document", op.id, media)
	}
	if media != "application/json" {
		return nil
	}
	return d.validate(a.body, object(content["schema"]))
}

func (d *document) validate(body []byte, schema map[string]any) error {
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	return d.value("", v, schema)
}

func (d *document) resolve(schema map[string]any) map[string]any {
	for {
		ref, ok := schema["$ref"].(string)
		if !ok {
			return schema
		}
		at := d.root
		for _, part := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
			at = object(at[part])
		}
		schema = at
	}
}

var timestamp = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`)

func (d *document) value(at string, v any, schema map[string]any) error {
	schema = d.resolve(schema)
	if len(schema) == 0 {
		return nil // anything
	}
	if choices := items(schema["oneOf"]); choices != nil {
		var errs []error
		for _, c := range choices {
			err := d.value(at, v, object(c))
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return fmt.Errorf("%s fits no choice: %w", at, errors.Join(errs...))
	}
	var types []string
	switch t := schema["type"].(type) {
	case string:
		types = []string{t}
	case []any:
		for _, one := range t {
			types = append(types, text(one))
		}
	}
	if len(types) > 0 && !slices.ContainsFunc(types, func(t string) bool { return isType(v, t) }) {
		return fmt.Errorf("%s is %T, want %v", at, v, types)
	}
	if enum := items(schema["enum"]); enum != nil && v != nil && !slices.Contains(enum, v) {
		if b, ok := v.(bool); !ok || !slices.Contains(enum, any(strconv.FormatBool(b))) {
			return fmt.Errorf("%s is %v, want one of %v", at, v, enum)
		}
	}
	switch v := v.(type) {
	case string:
		if schema["format"] == "date-time" && !timestamp.MatchString(v) {
			return fmt.Errorf("%s is no timestamp: %q", at, v)
		}
		if p := text(schema["pattern"]); p != "" && !regexp.MustCompile(p).MatchString(v) {
			return fmt.Errorf("%s does not match %s: %q", at, p, v)
		}
	case []any:
		for i, item := range v {
			if err := d.value(fmt.Sprintf("%s[%d]", at, i), item, object(schema["items"])); err != nil {
				return err
			}
		}
	case map[string]any:
		return d.object(at, v, schema)
	}
	return nil
}

func (d *document) object(at string, v map[string]any, schema map[string]any) error {
	for _, name := range items(schema["required"]) {
		if _, ok := v[text(name)]; !ok {
			return fmt.Errorf("%s lacks %s", at, name)
		}
	}
	properties := object(schema["properties"])
	for name, member := range v {
		if p := object(properties[name]); p != nil {
			if err := d.value(at+"."+name, member, p); err != nil {
				return err
			}
			continue
		}
		more, ok := schema["additionalProperties"].(map[string]any)
		if !ok {
			return fmt.Errorf("%s.%s is not in the document", at, name)
		}
		if err := d.value(at+"."+name, member, more); err != nil {
			return err
		}
	}
	return nil
}

func isType(v any, t string) bool {
	switch t {
	case "null":
		return v == nil
	case "boolean":
		_, ok := v.(bool)
		return ok
	case "string":
		_, ok := v.(string)
		return ok
	case "number":
		_, ok := v.(float64)
		return ok
	case "integer":
		n, ok := v.(float64)
		return ok && n == math.Trunc(n)
	case "array":
		_, ok := v.([]any)
		return ok
	case "object":
		_, ok := v.(map[string]any)
		return ok
	}
	return false
}
