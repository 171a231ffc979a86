package api

import (
	"context"
	"net/http"
	"time"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

type wireTemplateAnswer struct {
	Template wireTemplate `json:"template"`
}

func (s *Server) addTemplates() {
	const collection = "/v1/templates"
	listing(s, operation{
		id: "listTemplates", method: http.MethodGet, path: collection, tag: "Templates",
		summary: "List the templates sandboxes can be made from",
	}, sandbox.PrefixTemplate,
		func(ctx context.Context, rq *request, p store.Page) (control.Page[control.Template], error) {
			all, err := s.control.Templates(ctx, rq.call)
			return pageOfTemplates(all, p), err
		}, toTemplate, func(t control.Template) (time.Time, string) { return time.UnixMilli(0), t.ID })

	query(s, operation{
		id: "getTemplate", method: http.MethodGet, path: collection + "/{templateSlug}", tag: "Templates",
		summary: "Get a template with its versions", params: []*param{pTemplateSlug},
	}, func(ctx context.Context, rq *request, _ *noBody) (wireTemplateAnswer, error) {
		t, err := s.control.Template(ctx, rq.call, rq.path(pTemplateSlug))
		if err != nil {
			return wireTemplateAnswer{}, err
		}
		return wireTemplateAnswer{toTemplate(t)}, nil
	})
}

// pageOfTemplates cuts a page out of the catalogue, which is small and in memory.
func pageOfTemplates(all []control.Template, p store.Page) control.Page[control.Template] {
	for i, t := range all {
		if t.ID == p.AfterID {
			all = all[i+1:]
			break
		}
	}
	n := min(p.Limit, len(all))
	return control.Page[control.Template]{Items: all[:n], HasMore: n < len(all)}
}
