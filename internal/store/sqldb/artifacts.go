package sqldb

import (
	"context"
	"fmt"
	"time"

	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

const artifactColumns = `id, org_id, project_id, sandbox_id, command_id, name, object_key, size_bytes, sha256,
	content_type, source_path, created_at, deleted_at, retention_expires_at`

func scanArtifact(row scanner, a *sandbox.Artifact) error {
	var (
		created, deleted, retained int64
		path                       []byte
	)
	err := row.Scan(&a.ID, &a.OrgID, &a.ProjectID, &a.SandboxID, &a.CommandID, &a.Name, &a.ObjectKey, &a.Size, &a.SHA256,
		&a.ContentType, &path, &created, &deleted, &retained)
	a.SourcePath = string(path)
	a.CreatedAt, a.DeletedAt, a.RetentionExpiresAt = timeOf(created), timeOf(deleted), timeOf(retained)
	return err
}

func (r queries) Artifact(ctx context.Context, id string) (sandbox.Artifact, error) {
	return one(ctx, r.q, "an artifact", scanArtifact, `SELECT `+artifactColumns+` FROM artifacts WHERE id = $1`, id)
}

func (r queries) Artifacts(ctx context.Context, f store.ArtifactFilter) ([]sandbox.Artifact, error) {
	ms, id := after(f.Page)
	return many(ctx, r.q, "artifacts", scanArtifact, `SELECT `+artifactColumns+` FROM artifacts
		WHERE sandbox_id = $1 AND deleted_at = 0 AND (created_at, id) < ($2, $3)
		ORDER BY created_at DESC, id DESC LIMIT $4`, f.SandboxID, ms, id, f.Limit)
}

func (r queries) ExpiredArtifacts(ctx context.Context, t time.Time, limit int) ([]sandbox.Artifact, error) {
	return many(ctx, r.q, "expired artifacts", scanArtifact, `SELECT `+artifactColumns+` FROM artifacts
		WHERE deleted_at = 0 AND retention_expires_at > 0 AND retention_expires_at < $1
		ORDER BY retention_expires_at LIMIT $2`, millis(t), limit)
}

func (t *tx) InsertArtifact(ctx context.Context, a sandbox.Artifact) error {
	return insert(ctx, t.q, "an artifact", `INSERT INTO artifacts (`+artifactColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		a.ID, a.OrgID, a.ProjectID, a.SandboxID, a.CommandID, clean(a.Name), a.ObjectKey, a.Size, a.SHA256,
		clean(a.ContentType), []byte(a.SourcePath), millis(a.CreatedAt), millis(a.DeletedAt), millis(a.RetentionExpiresAt))
}

// DeleteArtifact keeps the record; a second deletion finds nothing.
func (t *tx) DeleteArtifact(ctx context.Context, id string, at time.Time) error {
	return mustAffect(ctx, t.q, "an artifact",
		`UPDATE artifacts SET deleted_at = $1 WHERE id = $2 AND deleted_at = 0`, millis(at), id)
}

const uploadColumns = `id, org_id, project_id, sandbox_id, path, size_bytes, sha256, create_parents, overwrite,
	status, created_at, expires_at`

func (r queries) Upload(ctx context.Context, id string) (sandbox.Upload, error) {
	return one(ctx, r.q, "an upload", func(row scanner, u *sandbox.Upload) error {
		var (
			parents, overwrite, created, expires int64
			path                                 []byte
		)
		err := row.Scan(&u.ID, &u.OrgID, &u.ProjectID, &u.SandboxID, &path, &u.Size, &u.SHA256, &parents, &overwrite,
			&u.Status, &created, &expires)
		u.Path = string(path)
		u.CreateParents, u.Overwrite = parents != 0, overwrite != 0
		u.CreatedAt, u.ExpiresAt = timeOf(created), timeOf(expires)
		return err
	}, `SELECT `+uploadColumns+` FROM uploads WHERE id = $1`, id)
}

func (t *tx) InsertUpload(ctx context.Context, u sandbox.Upload) error {
	return insert(ctx, t.q, "an upload", `INSERT INTO uploads (`+uploadColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		u.ID, u.OrgID, u.ProjectID, u.SandboxID, []byte(u.Path), u.Size, u.SHA256, flag(u.CreateParents),
		flag(u.Overwrite), string(u.Status), millis(u.CreatedAt), millis(u.ExpiresAt))
}

// UpdateUpload writes the state; a finalized upload never changes.
func (t *tx) UpdateUpload(ctx context.Context, u sandbox.Upload) error {
	n, err := t.q.exec(ctx, `UPDATE uploads SET status = $2, size_bytes = $3, sha256 = $4, expires_at = $5
		WHERE id = $1 AND status <> 'finalized'`,
		u.ID, string(u.Status), u.Size, u.SHA256, millis(u.ExpiresAt))
	if err != nil {
		return fmt.Errorf("updating an upload: %w", err)
	}
	if n == 0 {
		return t.whyNot(ctx, "an upload", `SELECT status FROM uploads WHERE id = $1`, u.ID)
	}
	return nil
}
