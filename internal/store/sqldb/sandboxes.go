package sqldb

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"time"

	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

const sandboxColumns = `id, org_id, project_id, status, template_id, template_slug, template_version,
	template_version_id, ttl_ms, expires_at, created_at, ready_at, destroyed_at, destroyed_reason,
	compute_multiplier, runtime_id, failure_cause, metered_ms, network, resources, metadata`

// active is spelled like the condition of the partial index, or SQLite would not
// use it.
const active = `status NOT IN ('destroyed', 'failed')`

func scanSandbox(row scanner, s *sandbox.Sandbox) error {
	var ttl, expires, created, ready, destroyed int64
	err := row.Scan(&s.ID, &s.OrgID, &s.ProjectID, &s.Status, &s.TemplateID, &s.TemplateSlug, &s.TemplateVersion,
		&s.TemplateVersionID, &ttl, &expires, &created, &ready, &destroyed, &s.DestroyedReason,
		&s.ComputeMultiplier, &s.RuntimeID, &s.FailureCause, &s.MeteredMs,
		jsonOf{&s.Network}, jsonOf{&s.Resources}, jsonOf{&s.Metadata})
	s.TTL = time.Duration(ttl) * time.Millisecond
	s.ExpiresAt, s.CreatedAt, s.ReadyAt, s.DestroyedAt = timeOf(expires), timeOf(created), timeOf(ready), timeOf(destroyed)
	return err
}

func (r queries) Sandbox(ctx context.Context, id string) (sandbox.Sandbox, error) {
	return one(ctx, r.q, "a sandbox", scanSandbox, `SELECT `+sandboxColumns+` FROM sandboxes WHERE id = $1`, id)
}

func (r queries) Sandboxes(ctx context.Context, f store.SandboxFilter) ([]sandbox.Sandbox, error) {
	if f.ProjectIDs != nil && len(f.ProjectIDs) == 0 {
		return nil, nil
	}
	ms, id := after(f.Page)
	pairs := metadataPairs(f.Metadata)
	args := arguments{f.OrgID, ms, id, f.Limit}
	if f.Historical && len(pairs) > 0 {
		return r.sandboxesByPair(ctx, f, pairs, args)
	}
	text := `SELECT ` + sandboxColumns + ` FROM sandboxes s WHERE org_id = $1 AND (created_at, id) < ($2, $3)`
	if !f.Historical {
		text += ` AND ` + active
	}
	text += ofProjects(&args, `project_id`, f.ProjectIDs) + ofPairs(&args, pairs)
	return many(ctx, r.q, "sandboxes", scanSandbox, text+` ORDER BY created_at DESC, id DESC LIMIT $4`, args...)
}

// sandboxesByPair walks the index of the first metadata pair, which is in the
// order of the list: rare pairs among very many ended sandboxes stay cheap.
// CROSS JOIN makes SQLite take the tables in this order; to PostgreSQL it is an
// ordinary join.
func (r queries) sandboxesByPair(ctx context.Context, f store.SandboxFilter, pairs []string, args arguments) ([]sandbox.Sandbox, error) {
	text := `SELECT ` + qualified("s", sandboxColumns) + ` FROM sandbox_metadata m CROSS JOIN sandboxes s
		WHERE m.org_id = $1 AND m.pair = ` + args.add(pairs[0]) + ` AND (m.created_at, m.sandbox_id) < ($2, $3)
		AND s.id = m.sandbox_id` +
		ofProjects(&args, `s.project_id`, f.ProjectIDs) + ofPairs(&args, pairs[1:]) +
		` ORDER BY m.created_at DESC, m.sandbox_id DESC LIMIT $4`
	return many(ctx, r.q, "sandboxes", scanSandbox, text, args...)
}

// ofProjects is the condition that a row belongs to one of ids; nil = any.
func ofProjects(args *arguments, column string, ids []string) string {
	switch {
	case ids == nil:
		return ""
	case len(ids) == 0:
		return ` AND 1 = 0`
	case len(ids) == 1:
		return ` AND ` + column + ` = ` + args.add(ids[0])
	}
	return ` AND ` + column + ` IN (` + in(args, ids) + `)`
}

// ofPairs is the condition that sandbox s carries all of pairs.
func ofPairs(args *arguments, pairs []string) string {
	var text string
	for _, p := range pairs {
		text += ` AND EXISTS (SELECT 1 FROM sandbox_metadata x
			WHERE x.org_id = s.org_id AND x.pair = ` + args.add(p) + `
			AND x.created_at = s.created_at AND x.sandbox_id = s.id)`
	}
	return text
}

// metadataPairs returns the digests of all pairs of m, in a fixed order.
func metadataPairs(m map[string]string) []string {
	pairs := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		// A key cannot hold a NUL, so that the pair is unambiguous.
		sum := sha256.Sum256([]byte(k + "\x00" + m[k]))
		pairs = append(pairs, base64.RawURLEncoding.EncodeToString(sum[:]))
	}
	return pairs
}

func (r queries) ActiveSandboxes(ctx context.Context) ([]sandbox.Sandbox, error) {
	return many(ctx, r.q, "sandboxes", scanSandbox,
		`SELECT `+sandboxColumns+` FROM sandboxes WHERE `+active+` ORDER BY created_at, id`)
}

func (r queries) CountActiveSandboxes(ctx context.Context, orgID string, projectIDs []string) (int, error) {
	args := arguments{orgID}
	text := `SELECT COUNT(*) FROM sandboxes WHERE org_id = $1 AND ` + active
	return one(ctx, r.q, "the number of sandboxes", into[int], text+ofProjects(&args, `project_id`, projectIDs), args...)
}

func (t *tx) InsertSandbox(ctx context.Context, s sandbox.Sandbox) error {
	metadata := s.Metadata
	if metadata == nil {
		metadata = map[string]string{}
	}
	err := insert(ctx, t.q, "a sandbox", `INSERT INTO sandboxes (`+sandboxColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)`,
		s.ID, s.OrgID, s.ProjectID, string(s.Status), s.TemplateID, s.TemplateSlug, s.TemplateVersion,
		s.TemplateVersionID, s.TTL.Milliseconds(), millis(s.ExpiresAt), millis(s.CreatedAt), millis(s.ReadyAt),
		millis(s.DestroyedAt), string(s.DestroyedReason), s.ComputeMultiplier, s.RuntimeID, clean(s.FailureCause),
		s.MeteredMs, toJSON(s.Network), toJSON(s.Resources), toJSON(metadata))
	if err != nil {
		return err
	}
	for _, p := range metadataPairs(s.Metadata) {
		if err := insert(ctx, t.q, "metadata",
			`INSERT INTO sandbox_metadata (org_id, pair, created_at, sandbox_id) VALUES ($1, $2, $3, $4)`,
			s.OrgID, p, millis(s.CreatedAt), s.ID); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) UpdateSandbox(ctx context.Context, s sandbox.Sandbox, from ...sandbox.Status) error {
	args := arguments{
		s.ID, string(s.Status), s.TTL.Milliseconds(), millis(s.ExpiresAt), millis(s.ReadyAt), millis(s.DestroyedAt),
		string(s.DestroyedReason), s.RuntimeID, clean(s.FailureCause), s.MeteredMs,
	}
	text := `UPDATE sandboxes SET status = $2, ttl_ms = $3, expires_at = $4, ready_at = $5, destroyed_at = $6,
		destroyed_reason = $7, runtime_id = $8, failure_cause = $9, metered_ms = $10 WHERE id = $1`
	if len(from) > 0 {
		names := make([]string, len(from))
		for i, f := range from {
			names[i] = string(f)
		}
		text += ` AND status IN (` + in(&args, names) + `)`
	}
	n, err := t.q.exec(ctx, text, args...)
	if err != nil {
		return fmt.Errorf("updating a sandbox: %w", err)
	}
	if n == 0 {
		return t.whyNot(ctx, "a sandbox", `SELECT status FROM sandboxes WHERE id = $1`, s.ID)
	}
	return nil
}

// whyNot says why a conditional update changed nothing: there is no such record,
// or it is in another state.
func (t *tx) whyNot(ctx context.Context, what, text, id string) error {
	status, err := one(ctx, t.q, what, into[string], text, id)
	if err != nil {
		return err
	}
	return fmt.Errorf("updating %s that is %s: %w", what, status, store.ErrConflict)
}
