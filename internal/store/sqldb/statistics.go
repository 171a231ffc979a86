package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// statistics tell the planner of SQLite how a large store looks: for each index
// the rows it holds and then, for each longer prefix of its columns, the rows
// that are alike. Without them it guesses, and takes an index over all records of
// the organisation to be as good as one over the few that are asked for.
// PostgreSQL gathers its own; SQLite would on demand only, and then plans would
// change with the day on which somebody asked it to.
var statistics = map[[2]string]string{
	{"sandboxes", "sandboxes_newest"}:         "1000000 1000000 2 1",
	{"sandboxes", "sandboxes_project"}:        "1000000 1000000 100000 2 1",
	{"sandboxes", "sandboxes_active"}:         "1000 1000 2 1 1 1",
	{"commands", "commands_newest"}:           "10000000 1000 2 1",
	{"commands", "commands_active"}:           "1000 2 1 1",
	{"audit_events", "audit_events_newest"}:   "10000000 10000000 2 1",
	{"audit_events", "audit_events_resource"}: "10000000 20 2 1",
	{"audit_events", "audit_events_actor"}:    "10000000 100000 2 1",
	{"audit_events", "audit_events_action"}:   "10000000 200000 2 1",
}

// adviseSQLite stores the statistics where the planner looks for them; each
// connection reads them when it opens the database.
func adviseSQLite(ctx context.Context, db *sql.DB) error {
	// Makes the table, and is quick: it looks at one small table only.
	if _, err := db.ExecContext(ctx, `ANALYZE orgs`); err != nil {
		return fmt.Errorf("preparing the statistics: %w", err)
	}
	if err := replaceStatistics(ctx, db); err != nil {
		return fmt.Errorf("storing the statistics: %w", err)
	}
	return nil
}

func replaceStatistics(ctx context.Context, db *sql.DB) (err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	if _, err := tx.ExecContext(ctx, `DELETE FROM sqlite_stat1`); err != nil {
		return err
	}
	for index, stat := range statistics {
		if _, err := tx.ExecContext(ctx, `INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ($1, $2, $3)`,
			index[0], index[1], stat); err != nil {
			return err
		}
	}
	return tx.Commit()
}
