package sqldb

import (
	"context"
	"fmt"
	"time"

	"crownest.dev/crownest/internal/store"
)

const operationColumns = `namespace, fingerprint, operation_id, owner, done, status, sealed, created_at, expires_at, body`

func scanOperation(row scanner, o *store.Operation) error {
	var done, sealed, created, expires int64
	err := row.Scan(&o.Namespace, &o.Fingerprint, &o.OperationID, &o.Owner, &done, &o.Status, &sealed, &created, &expires, &o.Body)
	o.Done, o.Sealed = done != 0, sealed != 0
	o.CreatedAt, o.ExpiresAt = timeOf(created), timeOf(expires)
	return err
}

func (r queries) Operation(ctx context.Context, namespace string) (store.Operation, error) {
	return one(ctx, r.q, "an operation", scanOperation, `SELECT `+operationColumns+` FROM operations
		WHERE namespace = $1 AND expires_at > $2`, namespace, millis(time.Now()))
}

func (t *tx) BeginOperation(ctx context.Context, o store.Operation) (store.Operation, bool, error) {
	// The upsert replaces an expired record and leaves any other alone.
	n, err := t.q.exec(ctx, `INSERT INTO operations (`+operationColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
		ON CONFLICT (namespace) DO UPDATE SET fingerprint = excluded.fingerprint,
			operation_id = excluded.operation_id, owner = excluded.owner, done = excluded.done,
			status = excluded.status, sealed = excluded.sealed, created_at = excluded.created_at,
			expires_at = excluded.expires_at, body = excluded.body
		WHERE operations.expires_at <= $11`,
		o.Namespace, o.Fingerprint, o.OperationID, o.Owner, flag(o.Done), o.Status, flag(o.Sealed),
		millis(o.CreatedAt), millis(o.ExpiresAt), body(o), millis(time.Now()))
	if err != nil {
		return store.Operation{}, false, fmt.Errorf("beginning an operation: %w", err)
	}
	if n == 1 {
		return o, true, nil
	}
	stored, err := one(ctx, t.q, "an operation", scanOperation,
		`SELECT `+operationColumns+` FROM operations WHERE namespace = $1`, o.Namespace)
	if err != nil {
		return store.Operation{}, false, err
	}
	if stored.Done || stored.Owner == o.Owner || stored.Fingerprint != o.Fingerprint {
		return stored, false, nil
	}
	if _, err := t.q.exec(ctx, `UPDATE operations SET owner = $2 WHERE namespace = $1`, o.Namespace, o.Owner); err != nil {
		return store.Operation{}, false, fmt.Errorf("taking an operation over: %w", err)
	}
	stored.Owner = o.Owner
	return stored, true, nil
}

// body is never NULL.
func body(o store.Operation) []byte {
	if o.Body == nil {
		return []byte{}
	}
	return o.Body
}

func (t *tx) FinishOperation(ctx context.Context, o store.Operation) error {
	return mustAffect(ctx, t.q, "an operation", `UPDATE operations
		SET done = 1, owner = '', status = $2, sealed = $3, body = $4,
			expires_at = CASE WHEN CAST($5 AS BIGINT) > 0 THEN $5 ELSE expires_at END
		WHERE namespace = $1 AND done = 0`,
		o.Namespace, o.Status, flag(o.Sealed), body(o), millis(o.ExpiresAt))
}

func (t *tx) ReleaseOperation(ctx context.Context, namespace string) error {
	return mustAffect(ctx, t.q, "an operation",
		`UPDATE operations SET owner = '' WHERE namespace = $1 AND done = 0`, namespace)
}

func (t *tx) DropOperation(ctx context.Context, namespace string) error {
	if _, err := t.q.exec(ctx, `DELETE FROM operations WHERE namespace = $1 AND done = 0`, namespace); err != nil {
		return fmt.Errorf("dropping an operation: %w", err)
	}
	return nil
}

func (t *tx) PruneOperations(ctx context.Context, at time.Time, limit int) (int, error) {
	n, err := t.q.exec(ctx, `DELETE FROM operations WHERE namespace IN
		(SELECT namespace FROM operations WHERE expires_at < $1 ORDER BY expires_at LIMIT $2)`, millis(at), limit)
	if err != nil {
		return 0, fmt.Errorf("pruning operations: %w", err)
	}
	return int(n), nil
}
