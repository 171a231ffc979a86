package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

const (
	commandColumns = `id, sandbox_id, org_id, project_id, status, command, cwd, cancel_mode, canceled_at, exit_code,
	stdout_truncated, stderr_truncated, created_at, started_at, finished_at, duration_ms, timeout_ms, collect,
	collect_on, collect_status, collect_errors, artifact_ids, killed_reason, termination_signal, failure_cause`
	// unfinished is spelled like the condition of the partial index.
	unfinished = `status IN ('queued', 'starting', 'running')`
)

// commandFields reads the columns of commandColumns and then more.
func commandFields(row scanner, c *sandbox.Command, more ...any) error {
	var (
		exit                                                                sql.NullInt64
		canceled, created, started, finished, duration, timeout, cut1, cut2 int64
		command, cwd                                                        []byte
	)
	err := row.Scan(append([]any{
		&c.ID, &c.SandboxID, &c.OrgID, &c.ProjectID, &c.Status, &command, &cwd, &c.CancelMode, &canceled, &exit,
		&cut1, &cut2, &created, &started, &finished, &duration, &timeout, jsonOf{&c.Collect},
		&c.CollectOn, &c.CollectStatus, jsonOf{&c.CollectErrors}, jsonOf{&c.ArtifactIDs},
		&c.KilledReason, &c.TerminationSignal, &c.FailureCause,
	}, more...)...)
	if err != nil {
		return err
	}
	if exit.Valid {
		code := int(exit.Int64)
		c.ExitCode = &code
	}
	c.Command, c.Cwd = string(command), string(cwd)
	c.StdoutTruncated, c.StderrTruncated = cut1 != 0, cut2 != 0
	c.CanceledAt, c.CreatedAt, c.StartedAt, c.FinishedAt = timeOf(canceled), timeOf(created), timeOf(started), timeOf(finished)
	c.Duration, c.Timeout = time.Duration(duration)*time.Millisecond, time.Duration(timeout)*time.Millisecond
	return nil
}

func scanCommand(row scanner, c *sandbox.Command) error { return commandFields(row, c) }

func scanCommandWithOutput(row scanner, c *sandbox.Command) error {
	var stdout, stderr []byte
	err := commandFields(row, c, &stdout, &stderr)
	c.Stdout, c.Stderr = string(stdout), string(stderr)
	return err
}

func (r queries) Command(ctx context.Context, id string) (sandbox.Command, error) {
	return one(ctx, r.q, "a command", scanCommandWithOutput,
		`SELECT `+commandColumns+`, stdout, stderr FROM commands WHERE id = $1`, id)
}

func (r queries) Commands(ctx context.Context, sandboxID string, p store.Page) ([]sandbox.Command, error) {
	ms, id := after(p)
	return many(ctx, r.q, "commands", scanCommand, `SELECT `+commandColumns+` FROM commands
		WHERE sandbox_id = $1 AND (created_at, id) < ($2, $3)
		ORDER BY created_at DESC, id DESC LIMIT $4`, sandboxID, ms, id, p.Limit)
}

func (r queries) ActiveCommands(ctx context.Context, sandboxID string) ([]sandbox.Command, error) {
	return many(ctx, r.q, "commands", scanCommand, `SELECT `+commandColumns+` FROM commands
		WHERE sandbox_id = $1 AND `+unfinished+` ORDER BY created_at, id`, sandboxID)
}

func (r queries) CommandTotals(ctx context.Context, sandboxID string) (int, error) {
	return one(ctx, r.q, "the number of commands", into[int],
		`SELECT COUNT(*) FROM commands WHERE sandbox_id = $1`, sandboxID)
}

func (r queries) ExpiredCommandLogs(ctx context.Context, t time.Time, limit int) ([]string, error) {
	return many(ctx, r.q, "expired logs", into[string], `SELECT id FROM commands
		WHERE log_dropped = 0 AND finished_at > 0 AND finished_at < $1 AND NOT (`+unfinished+`)
		ORDER BY finished_at LIMIT $2`, millis(t), limit)
}

func exitCode(c sandbox.Command) sql.NullInt64 {
	if c.ExitCode == nil {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: int64(*c.ExitCode), Valid: true}
}

func (t *tx) InsertCommand(ctx context.Context, c sandbox.Command) error {
	return insert(ctx, t.q, "a command", `INSERT INTO commands (`+commandColumns+`, stdout, stderr)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
			$21, $22, $23, $24, $25, $26, $27)`,
		c.ID, c.SandboxID, c.OrgID, c.ProjectID, string(c.Status), []byte(c.Command), []byte(c.Cwd),
		string(c.CancelMode), millis(c.CanceledAt), exitCode(c), flag(c.StdoutTruncated), flag(c.StderrTruncated),
		millis(c.CreatedAt), millis(c.StartedAt), millis(c.FinishedAt), c.Duration.Milliseconds(),
		c.Timeout.Milliseconds(), toJSON(c.Collect), string(c.CollectOn), string(c.CollectStatus),
		toJSON(c.CollectErrors), toJSON(c.ArtifactIDs), c.KilledReason, c.TerminationSignal, clean(c.FailureCause),
		[]byte(c.Stdout), []byte(c.Stderr))
}

func (t *tx) UpdateCommand(ctx context.Context, c sandbox.Command) error {
	n, err := t.q.exec(ctx, `UPDATE commands SET status = $2, cancel_mode = $3, canceled_at = $4, exit_code = $5,
		stdout_truncated = $6, stderr_truncated = $7, started_at = $8, finished_at = $9, duration_ms = $10,
		collect_status = $11, collect_errors = $12, artifact_ids = $13, killed_reason = $14,
		termination_signal = $15, failure_cause = $16, stdout = $17, stderr = $18
		WHERE id = $1 AND `+unfinished,
		c.ID, string(c.Status), string(c.CancelMode), millis(c.CanceledAt), exitCode(c),
		flag(c.StdoutTruncated), flag(c.StderrTruncated), millis(c.StartedAt), millis(c.FinishedAt),
		c.Duration.Milliseconds(), string(c.CollectStatus), toJSON(c.CollectErrors), toJSON(c.ArtifactIDs),
		c.KilledReason, c.TerminationSignal, clean(c.FailureCause), []byte(c.Stdout), []byte(c.Stderr))
	if err != nil {
		return fmt.Errorf("updating a command: %w", err)
	}
	if n == 0 {
		return t.whyNot(ctx, "a command", `SELECT status FROM commands WHERE id = $1`, c.ID)
	}
	return nil
}

func (t *tx) MarkCommandLogDropped(ctx context.Context, id string) error {
	return mustAffect(ctx, t.q, "a command", `UPDATE commands SET log_dropped = 1 WHERE id = $1`, id)
}
