package sqldb

import (
	"context"
	"fmt"
	"time"

	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

func (r queries) Org(ctx context.Context) (store.Org, error) {
	return one(ctx, r.q, "the organisation", func(row scanner, o *store.Org) error {
		var created int64
		err := row.Scan(&o.ID, &o.Name, &o.OperatorUserID, &created)
		o.CreatedAt = timeOf(created)
		return err
	}, `SELECT id, name, operator_user_id, created_at FROM orgs ORDER BY created_at, id LIMIT 1`)
}

// InsertOrg makes the one organisation; there is never a second one.
func (t *tx) InsertOrg(ctx context.Context, o store.Org) error {
	n, err := t.q.exec(ctx, `INSERT INTO orgs (id, name, operator_user_id, created_at)
		SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT 1 FROM orgs)`,
		o.ID, o.Name, o.OperatorUserID, millis(o.CreatedAt))
	if err != nil {
		return fmt.Errorf("inserting the organisation: %w", err)
	}
	if n == 0 {
		return fmt.Errorf("inserting the organisation: %w", store.ErrConflict)
	}
	return nil
}

const projectColumns = `id, org_id, name, created_at`

func scanProject(row scanner, p *sandbox.Project) error {
	var created int64
	err := row.Scan(&p.ID, &p.OrgID, &p.Name, &created)
	p.CreatedAt = timeOf(created)
	return err
}

func (r queries) Project(ctx context.Context, id string) (sandbox.Project, error) {
	return one(ctx, r.q, "a project", scanProject,
		`SELECT `+projectColumns+` FROM projects WHERE id = $1`, id)
}

func (r queries) ProjectByName(ctx context.Context, orgID, name string) (sandbox.Project, error) {
	return one(ctx, r.q, "a project", scanProject,
		`SELECT `+projectColumns+` FROM projects WHERE org_id = $1 AND name = $2`, orgID, name)
}

func (r queries) Projects(ctx context.Context, orgID string, ids []string, p store.Page) ([]sandbox.Project, error) {
	if ids != nil && len(ids) == 0 {
		return nil, nil
	}
	ms, id := after(p)
	args := arguments{orgID, ms, id, p.Limit}
	text := `SELECT ` + projectColumns + ` FROM projects WHERE org_id = $1 AND (created_at, id) < ($2, $3)`
	if ids != nil {
		text += ` AND id IN (` + in(&args, ids) + `)`
	}
	return many(ctx, r.q, "projects", scanProject, text+` ORDER BY created_at DESC, id DESC LIMIT $4`, args...)
}

func (t *tx) InsertProject(ctx context.Context, p sandbox.Project) error {
	return insert(ctx, t.q, "a project",
		`INSERT INTO projects (`+projectColumns+`) VALUES ($1, $2, $3, $4)`,
		p.ID, p.OrgID, clean(p.Name), millis(p.CreatedAt))
}

const keyColumns = `id, org_id, name, prefix, last4, hash, project_ids, scopes, created_by_user_id,
	created_at, revoked_at, last_used_at`

func scanKey(row scanner, k *sandbox.Key) error {
	var created, revoked, used int64
	err := row.Scan(&k.ID, &k.OrgID, &k.Name, &k.Prefix, &k.Last4, &k.Hash, jsonOf{&k.ProjectIDs}, jsonOf{&k.Scopes},
		&k.CreatedByUserID, &created, &revoked, &used)
	k.CreatedAt, k.RevokedAt, k.LastUsedAt = timeOf(created), timeOf(revoked), timeOf(used)
	return err
}

func (r queries) Key(ctx context.Context, id string) (sandbox.Key, error) {
	return one(ctx, r.q, "a key", scanKey, `SELECT `+keyColumns+` FROM api_keys WHERE id = $1`, id)
}

func (r queries) KeyByHash(ctx context.Context, hash string) (sandbox.Key, error) {
	return one(ctx, r.q, "a key", scanKey, `SELECT `+keyColumns+` FROM api_keys WHERE hash = $1`, hash)
}

func (r queries) Keys(ctx context.Context, orgID string, p store.Page) ([]sandbox.Key, error) {
	ms, id := after(p)
	return many(ctx, r.q, "keys", scanKey, `SELECT `+keyColumns+` FROM api_keys
		WHERE org_id = $1 AND (created_at, id) < ($2, $3)
		ORDER BY created_at DESC, id DESC LIMIT $4`, orgID, ms, id, p.Limit)
}

func (t *tx) InsertKey(ctx context.Context, k sandbox.Key) error {
	return insert(ctx, t.q, "a key",
		`INSERT INTO api_keys (`+keyColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		k.ID, k.OrgID, clean(k.Name), k.Prefix, k.Last4, k.Hash, toJSON(k.ProjectIDs), toJSON(k.Scopes),
		k.CreatedByUserID, millis(k.CreatedAt), millis(k.RevokedAt), millis(k.LastUsedAt))
}

// RevokeKey keeps the time of the first revocation.
func (t *tx) RevokeKey(ctx context.Context, id string, at time.Time) error {
	return mustAffect(ctx, t.q, "a key",
		`UPDATE api_keys SET revoked_at = CASE WHEN revoked_at = 0 THEN $1 ELSE revoked_at END WHERE id = $2`,
		millis(at), id)
}

func (t *tx) TouchKeys(ctx context.Context, lastUsed map[string]time.Time) error {
	for id, at := range lastUsed {
		if _, err := t.q.exec(ctx, `UPDATE api_keys SET last_used_at = $1 WHERE id = $2 AND last_used_at < $1`,
			millis(at), id); err != nil {
			return fmt.Errorf("recording the last use of a key: %w", err)
		}
	}
	return nil
}

func (r queries) Secret(ctx context.Context, name string) ([]byte, error) {
	return one(ctx, r.q, "a server secret", into[[]byte], `SELECT value FROM server_secrets WHERE name = $1`, name)
}

func (t *tx) SetSecret(ctx context.Context, name string, value []byte) error {
	if _, err := t.q.exec(ctx, `INSERT INTO server_secrets (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value); err != nil {
		return fmt.Errorf("storing a server secret: %w", err)
	}
	return nil
}
