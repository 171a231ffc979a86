package api

import (
	"context"
	"net/http"
	"time"
	"unicode"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

type wireCreateProjectRequest struct {
	Name string `json:"name" minLength:"1" maxLength:"128"`
}

func (in *wireCreateProjectRequest) validate() error {
	for _, r := range in.Name {
		if unicode.IsControl(r) {
			return invalid("name", "name must not contain control characters.")
		}
	}
	return nil
}

type wireProjectAnswer struct {
	Project wireProject `json:"project"`
}

func (s *Server) addProjects() {
	const collection = "/v1/projects"
	listing(s, operation{
		id: "listProjects", method: http.MethodGet, path: collection, tag: "Projects",
		summary: "List the projects the key can see",
	}, sandbox.PrefixProject,
		func(ctx context.Context, rq *request, p store.Page) (control.Page[sandbox.Project], error) {
			return s.control.Projects(ctx, rq.call, p)
		}, toProject, func(p sandbox.Project) (time.Time, string) { return p.CreatedAt, p.ID })

	mutation(s, operation{
		id: "createProject", method: http.MethodPost, path: collection, tag: "Projects", status: http.StatusCreated,
		summary: "Create a project", scope: sandbox.ScopeProjectCreate, makes: sandbox.PrefixProject, errors: []int{409},
	}, func(ctx context.Context, rq *request, in *wireCreateProjectRequest) (wireProjectAnswer, error) {
		p, err := s.control.CreateProject(ctx, rq.call, in.Name)
		if err != nil {
			return wireProjectAnswer{}, err
		}
		return wireProjectAnswer{toProject(p)}, nil
	})
}
