// Package sqldb keeps the records of the service in SQLite or PostgreSQL, with
// one SQL text for both. It knows the store contract and the domain; it does not
// know who asks or why.
package sqldb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"crownest.dev/crownest/internal/store"
)

// DB is a store on one of the two engines.
type DB struct {
	queries
	engine engine
}

var _ store.Store = (*DB)(nil)

// engine is what the two databases do differently: how statements outside of
// transactions find a connection, and how a write transaction is run.
type engine interface {
	querier
	update(ctx context.Context, fn func(q querier) error) error
	close() error
}

// Open opens the database that dsn names, creating and migrating it as needed:
// a PostgreSQL URL, or the path of an SQLite file, with or without "sqlite:".
func Open(ctx context.Context, dsn string, log *slog.Logger) (*DB, error) {
	var (
		e   engine
		err error
	)
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		e, err = openPostgres(ctx, dsn)
	} else {
		e, err = openSQLite(ctx, strings.TrimPrefix(dsn, "sqlite:"), log)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	return &DB{queries: queries{q: e}, engine: e}, nil
}

// Update runs fn in one serializable read-write transaction.
func (d *DB) Update(ctx context.Context, fn func(tx store.Tx) error) error {
	return d.engine.update(ctx, func(q querier) error {
		return fn(&tx{queries{q: q}})
	})
}

// Close waits for the running write and closes all connections.
func (d *DB) Close() error { return d.engine.close() }

// queries answers the reading half of the contract through any querier.
type queries struct{ q querier }

// tx adds the writing half.
type tx struct{ queries }

var _ store.Tx = (*tx)(nil)

// errTxDone is returned to a caller that kept a Tx after its function returned.
var errTxDone = errors.New("transaction is over")

// millis is how a time is stored; zero means absent.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// timeOf is the inverse of millis.
func timeOf(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
