package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

type wireCreateSandboxRequest struct {
	ProjectID         string            `json:"projectId,omitempty" maxLength:"64" doc:"Omitted: the default project, or the only one of the key."`
	Template          string            `json:"template,omitempty" maxLength:"64" doc:"Slug; omitted: python-node."`
	TemplateVersionID string            `json:"templateVersionId,omitempty" maxLength:"64" doc:"Pins a version of the template."`
	TTLMs             *int64            `json:"ttlMs,omitempty" minimum:"1" doc:"Lifetime; omitted: one hour."`
	Metadata          map[string]string `json:"metadata,omitempty" doc:"At most 16 keys of 1 to 64 characters A-Z a-z 0-9 _ . : / -, values of at most 512 characters, 4096 bytes in all."`
	RestoreFrom       string            `json:"restoreFrom,omitempty" maxLength:"64" doc:"Reserved for backups."`
	Network           *networkRequest   `json:"network,omitempty"`
}

// networkRequest is what a caller asks of the network.
type networkRequest struct {
	Egress string   `json:"egress" enum:"none,allowlist,internet"`
	Allow  []string `json:"allow,omitempty" maxItems:"100" doc:"Host, *.domain, IP address or CIDR, each with an optional :port. Only with egress allowlist."`
}

// precheck gives bad metadata values the code that they have.
func (in *wireCreateSandboxRequest) precheck(tree map[string]any) error {
	metadata, _ := tree["metadata"].(map[string]any)
	for k, v := range metadata {
		if _, ok := v.(string); !ok {
			return sandbox.NewError(sandbox.CodeInvalidMetadataValue, "Metadata values must be strings.").With("key", k)
		}
	}
	return nil
}

func (in *wireCreateSandboxRequest) validate() error {
	if err := noNUL("projectId", in.ProjectID, "template", in.Template, "templateVersionId", in.TemplateVersionID); err != nil {
		return err
	}
	if in.Network != nil && len(in.Network.Allow) > 0 && in.Network.Egress != string(sandbox.EgressAllowlist) {
		return invalid("network.allow", "network.allow is only for network.egress allowlist.")
	}
	return control.ValidateMetadata(in.Metadata)
}

type wireExtendSandboxRequest struct {
	TTLMs int64 `json:"ttlMs" minimum:"1" doc:"New lifetime, counted from now, also downwards."`
}

type wireSandboxAnswer struct {
	Sandbox wireSandbox `json:"sandbox"`
}

// metadataPrefix begins the query parameters that select by metadata.
const metadataPrefix = "metadata."

var qMetadata = &param{
	name: "metadata.{key}", in: "query",
	doc:    "Only sandboxes whose metadata holds this value under the key; the key stands in place of {key}, dots are literal, several such parameters must all match.",
	schema: huma.Schema{Type: huma.TypeString},
}

func (s *Server) addSandboxes() {
	const collection, item = "/v1/sandboxes", "/v1/sandboxes/{sandboxId}"
	tag := "Sandboxes"

	mutation(s, operation{
		id: "createSandbox", method: http.MethodPost, path: collection, tag: tag, status: http.StatusCreated,
		summary: "Create a sandbox and wait until it is usable", scope: sandbox.ScopeSandboxCreate,
		makes: sandbox.PrefixSandbox, errors: []int{402, 409, 503},
	}, func(ctx context.Context, rq *request, in *wireCreateSandboxRequest) (wireSandboxAnswer, error) {
		create := control.CreateSandboxInput{
			ProjectID: in.ProjectID, Template: in.Template, TemplateVersionID: in.TemplateVersionID,
			TTLMs: in.TTLMs, Metadata: in.Metadata, RestoreFrom: in.RestoreFrom,
		}
		if in.Network != nil {
			create.Network = &sandbox.Network{Egress: sandbox.Egress(in.Network.Egress), Allow: in.Network.Allow}
		}
		return sandboxAnswer(s.control.CreateSandbox(ctx, rq.call, create))
	})

	listing(s, operation{
		id: "listSandboxes", method: http.MethodGet, path: collection, tag: tag,
		summary: "List sandboxes, newest first", scope: sandbox.ScopeSandboxRead,
		params: []*param{enumParam("include", "historical adds destroyed and failed sandboxes.", "", "historical"), qProjectID, qMetadata},
	}, sandbox.PrefixSandbox,
		func(ctx context.Context, rq *request, p store.Page) (control.Page[sandbox.Sandbox], error) {
			metadata, err := rq.metadataFilter()
			if err != nil {
				return control.Page[sandbox.Sandbox]{}, err
			}
			return s.control.Sandboxes(ctx, rq.call, control.ListSandboxesInput{
				ProjectID:  rq.query.Get("projectId"),
				Historical: rq.query.Get("include") == "historical",
				Metadata:   metadata, Page: p,
			})
		}, toSandbox, func(sb sandbox.Sandbox) (time.Time, string) { return sb.CreatedAt, sb.ID })

	query(s, operation{
		id: "getSandbox", method: http.MethodGet, path: item, tag: tag,
		summary: "Get a sandbox, also one that has ended", scope: sandbox.ScopeSandboxRead, params: []*param{pSandbox},
	}, func(ctx context.Context, rq *request, _ *noBody) (wireSandboxAnswer, error) {
		return sandboxAnswer(s.control.Sandbox(ctx, rq.call, rq.path(pSandbox)))
	})

	mutation(s, operation{
		id: "extendSandbox", method: http.MethodPost, path: item + "/extend", tag: tag,
		summary: "Move the end of a sandbox", scope: sandbox.ScopeSandboxExtend, params: []*param{pSandbox}, errors: []int{409, 410},
	}, func(ctx context.Context, rq *request, in *wireExtendSandboxRequest) (wireSandboxAnswer, error) {
		return sandboxAnswer(s.control.ExtendSandbox(ctx, rq.call, rq.path(pSandbox), in.TTLMs))
	})

	mutation(s, operation{
		id: "killSandbox", method: http.MethodDelete, path: item, tag: tag,
		summary: "Kill a sandbox; repeatable", scope: sandbox.ScopeSandboxKill, params: []*param{pSandbox}, errors: []int{409},
	}, func(ctx context.Context, rq *request, _ *noBody) (wireSandboxAnswer, error) {
		return sandboxAnswer(s.control.KillSandbox(ctx, rq.call, rq.path(pSandbox)))
	})
}

func sandboxAnswer(sb sandbox.Sandbox, err error) (wireSandboxAnswer, error) {
	if err != nil {
		return wireSandboxAnswer{}, err
	}
	return wireSandboxAnswer{toSandbox(sb)}, nil
}

// metadataFilter collects the metadata.<key>=<value> parameters.
func (rq *request) metadataFilter() (map[string]string, error) {
	var filter map[string]string
	for name, values := range rq.query {
		key, ok := strings.CutPrefix(name, metadataPrefix)
		if !ok {
			continue
		}
		if filter == nil {
			filter = map[string]string{}
		}
		if len(values) > 1 {
			return nil, invalid(text(name), "A metadata filter may be given once for each key.")
		}
		filter[key] = values[0]
	}
	if filter == nil {
		return nil, nil
	}
	return filter, control.ValidateMetadata(filter)
}

// path returns a path parameter, which has been checked.
func (rq *request) path(p *param) string { return rq.r.PathValue(p.name) }

// noNUL refuses NUL characters; it takes pairs of field and value.
func noNUL(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if strings.IndexByte(pairs[i+1], 0) >= 0 {
			return invalid(pairs[i], "%s must not contain NUL characters.", pairs[i])
		}
	}
	return nil
}

func stringSchema() huma.Schema { return huma.Schema{Type: huma.TypeString} }
