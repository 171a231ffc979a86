package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/template"
)

// paged asks list for one more than the page holds, to know whether more follow.
func paged[T any](p store.Page, list func(store.Page) ([]T, error)) (Page[T], error) {
	want := p.Limit
	p.Limit++
	items, err := list(p)
	if err != nil {
		return Page[T]{}, err
	}
	if len(items) > want {
		return Page[T]{Items: items[:want], HasMore: true}, nil
	}
	return Page[T]{Items: items}, nil
}

// projectFilter narrows what the caller may see to one project, if one is named.
// nil means all projects.
func (s *Service) projectFilter(c Call, projectID string) ([]string, error) {
	switch {
	case projectID == "" && len(c.ProjectIDs) == 0:
		return nil, nil
	case projectID == "":
		return c.ProjectIDs, nil
	case !c.CanSeeProject(projectID):
		return nil, errNotFound("project", projectID)
	}
	return []string{projectID}, nil
}

// resolveProject picks the project of something new.
func (s *Service) resolveProject(ctx context.Context, c Call, id string) (sandbox.Project, error) {
	if id != "" {
		p, err := s.store.Project(ctx, id)
		if errors.Is(err, store.ErrNotFound) || err == nil && (p.OrgID != c.OrgID || !c.CanSeeProject(id)) {
			return sandbox.Project{}, errNotFound("project", id)
		} else if err != nil {
			return p, fmt.Errorf("reading project %s: %w", id, err)
		}
		return p, nil
	}
	p, err := s.store.ProjectByName(ctx, c.OrgID, sandbox.DefaultProjectName)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return p, fmt.Errorf("reading the default project: %w", err)
	}
	if err == nil && c.CanSeeProject(p.ID) {
		return p, nil
	}
	if len(c.ProjectIDs) == 1 {
		return s.resolveProject(ctx, c, c.ProjectIDs[0])
	}
	return sandbox.Project{}, sandbox.NewError(sandbox.CodeInvalidRequest, "projectId is needed: this key may use several projects and not the default one.").With("field", "projectId")
}

// Projects lists the projects that the caller may see.
func (s *Service) Projects(ctx context.Context, c Call, p store.Page) (Page[sandbox.Project], error) {
	var ids []string
	if len(c.ProjectIDs) > 0 {
		ids = c.ProjectIDs
	}
	page, err := paged(p, func(p store.Page) ([]sandbox.Project, error) { return s.store.Projects(ctx, c.OrgID, ids, p) })
	if err != nil {
		return page, fmt.Errorf("listing projects: %w", err)
	}
	return page, nil
}

// CreateProject makes a project.
func (s *Service) CreateProject(ctx context.Context, c Call, name string) (sandbox.Project, error) {
	if n := utf8.RuneCountInString(name); n < 1 || n > 128 || strings.IndexFunc(name, unicode.IsControl) >= 0 {
		return sandbox.Project{}, sandbox.NewError(sandbox.CodeInvalidRequest, "name must be 1 to 128 characters without control characters.").With("field", "name")
	}
	if len(c.ProjectIDs) > 0 {
		return sandbox.Project{}, sandbox.NewError(sandbox.CodeForbidden, "A key that is restricted to projects cannot create projects.")
	}
	p := sandbox.Project{ID: sandbox.ID(sandbox.PrefixProject, c.OperationID), OrgID: c.OrgID, Name: name, CreatedAt: now()}
	err := s.store.Update(ctx, func(tx store.Tx) error {
		if err := tx.InsertProject(ctx, p); err != nil {
			return err
		}
		return tx.AppendAudit(ctx, s.auditEvent(c, "project.create", "project", p.ID, p.ID, map[string]any{"name": name}))
	})
	if errors.Is(err, store.ErrConflict) {
		if old, err := s.store.Project(ctx, p.ID); err == nil {
			return old, nil // the same operation again
		}
		return p, sandbox.NewError(sandbox.CodeConflict, "A project named %q exists already.", name)
	} else if err != nil {
		return p, fmt.Errorf("recording project %s: %w", p.ID, err)
	}
	return p, nil
}

// keyVisible says whether a caller may see and revoke a key: a caller restricted
// to projects only those restricted to a subset of its own.
func keyVisible(c Call, k sandbox.Key) bool {
	if k.OrgID != c.OrgID {
		return false
	}
	if len(c.ProjectIDs) == 0 {
		return true
	}
	if len(k.ProjectIDs) == 0 {
		return false
	}
	return !slices.ContainsFunc(k.ProjectIDs, func(id string) bool { return !slices.Contains(c.ProjectIDs, id) })
}

// Keys lists the keys that the caller may see.
func (s *Service) Keys(ctx context.Context, c Call, p store.Page) (Page[sandbox.Key], error) {
	var out Page[sandbox.Key]
	// Visibility depends on two sets, which SQL is a poor judge of: read on until
	// the page is full. Keys are few.
	for len(out.Items) <= p.Limit {
		batch, err := s.store.Keys(ctx, c.OrgID, store.Page{Limit: 500, AfterTime: p.AfterTime, AfterID: p.AfterID})
		if err != nil {
			return out, fmt.Errorf("listing keys: %w", err)
		}
		for _, k := range batch {
			if keyVisible(c, k) {
				out.Items = append(out.Items, k)
			}
		}
		if len(batch) < 500 {
			break
		}
		p.AfterTime, p.AfterID = batch[len(batch)-1].CreatedAt, batch[len(batch)-1].ID
	}
	if len(out.Items) > p.Limit {
		out.Items, out.HasMore = out.Items[:p.Limit], true
	}
	return out, nil
}

// Key returns one key.
func (s *Service) Key(ctx context.Context, c Call, id string) (sandbox.Key, error) {
	k, err := s.store.Key(ctx, id)
	if errors.Is(err, store.ErrNotFound) || err == nil && !keyVisible(c, k) {
		return sandbox.Key{}, errNotFound("API key", id)
	} else if err != nil {
		return k, fmt.Errorf("reading key %s: %w", id, err)
	}
	return k, nil
}

// CreateKey makes a key for the caller's organisation.
func (s *Service) CreateKey(ctx context.Context, c Call, name string, scopes, projectIDs []string) (string, sandbox.Key, error) {
	return auth.CreateKey(ctx, s.store, auth.KeyParams{
		OrgID: c.OrgID, Name: name, Scopes: scopes, ProjectIDs: projectIDs,
		CreatedByUserID: c.UserID, Actor: c.actor(), RequestID: c.RequestID,
	})
}

// RevokeKey ends a key at once. Revoking again changes nothing.
func (s *Service) RevokeKey(ctx context.Context, c Call, id string) (sandbox.Key, error) {
	k, err := s.Key(ctx, c, id)
	if err != nil || !k.RevokedAt.IsZero() {
		return k, err
	}
	k.RevokedAt = now()
	err = s.store.Update(ctx, func(tx store.Tx) error {
		if err := tx.RevokeKey(ctx, id, k.RevokedAt); err != nil {
			return err
		}
		return tx.AppendAudit(ctx, s.auditEvent(c, "api_key.revoke", "api_key", id, "", nil))
	})
	if err != nil {
		return k, fmt.Errorf("recording the revocation of %s: %w", id, err)
	}
	s.keyRevoked(id)
	return s.Key(ctx, c, id)
}

// Templates lists the catalogue.
func (s *Service) Templates(context.Context, Call) ([]Template, error) {
	var out []Template
	for _, e := range s.templates.Catalogue() {
		t, err := s.describeTemplate(e)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// Template returns one entry of the catalogue.
func (s *Service) Template(_ context.Context, _ Call, slug string) (Template, error) {
	for _, e := range s.templates.Catalogue() {
		if e.Slug == slug {
			return s.describeTemplate(e)
		}
	}
	return Template{}, errNotFound("template", slug)
}

func (s *Service) describeTemplate(e template.Entry) (Template, error) {
	t := Template{ID: e.ID, Slug: e.Slug, Name: e.Name, Description: e.Description}
	versions, err := s.templates.Versions(e.Slug)
	if err != nil {
		return t, fmt.Errorf("reading the versions of template %s: %w", e.Slug, err)
	}
	t.Versions = versions
	if v, err := s.templates.Current(e.Slug); err == nil {
		t.DefaultVersionID = v.ID
	}
	return t, nil
}
