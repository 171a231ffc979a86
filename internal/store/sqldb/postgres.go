package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

const (
	// maxAttempts bounds how often a transaction that lost a race is run again.
	maxAttempts = 50
	// maxPause is the longest pause before a further attempt.
	maxPause = 50 * time.Millisecond
	// maxTransaction bounds one attempt, its commit included.
	maxTransaction = time.Minute
)

// postgres leaves statements and their caching to pgx, which prepares each text
// once on every connection.
type postgres struct {
	pool *pgxpool.Pool
	db   *sql.DB
	// again lets one transaction at a time be run again: those that lost a race
	// would otherwise go on to lose it to each other.
	again chan struct{}
}

func openPostgres(ctx context.Context, dsn string) (*postgres, error) {
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	p := &postgres{pool: pool, db: stdlib.OpenDBFromPool(pool), again: make(chan struct{}, 1)}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking the schema: %w", err), p.close())
	}
	if err := migrate(ctx, goose.DialectPostgres, p.db, goose.WithSessionLocker(locker)); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *postgres) exec(context.Context, string, ...any) (int64, error) {
	return 0, errors.New("a write outside of a transaction")
}

func (p *postgres) query(ctx context.Context, text string, args ...any) (*sql.Rows, error) {
	return p.db.QueryContext(ctx, text, args...)
}

func (p *postgres) update(ctx context.Context, fn func(q querier) error) error {
	lost, err := p.attempt(ctx, fn)
	if !lost {
		return err
	}
	select {
	case p.again <- struct{}{}:
		defer func() { <-p.again }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for n := 1; n < maxAttempts; n++ {
		if lost, err = p.attempt(ctx, fn); !lost {
			return err
		}
		pause := min(maxPause, time.Duration(n)*time.Millisecond)
		select {
		case <-time.After(rand.N(pause)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("giving up after %d attempts: %w", maxAttempts, err)
}

// attempt runs fn in a transaction and reports whether it lost a race, so that
// nothing happened and it may be run again.
func (p *postgres) attempt(ctx context.Context, fn func(q querier) error) (lost bool, err error) {
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return false, fmt.Errorf("connecting for a write: %w", err)
	}
	defer func() { _ = conn.Close() }() // hands it back; a broken one is dropped there
	// ctx cuts statements short, but not the commit: whoever gives up in the middle
	// of one could not know whether it happened.
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxTransaction)
	defer cancel()
	begun, err := conn.BeginTx(whole, &sql.TxOptions{Isolation: sql.LevelSerializable})
	if err != nil {
		return false, fmt.Errorf("beginning a write: %w", err)
	}
	t := &postgresTx{tx: begun}
	defer func() {
		t.over = true
		_ = begun.Rollback() // a no-op after a commit; the connection is dropped if it fails
	}()
	if err := fn(t); err != nil || t.lost {
		return t.lost || lostRace(err), err
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := begun.Commit(); err != nil {
		return lostRace(err), fmt.Errorf("committing: %w", err)
	}
	return false, nil
}

// lostRace reports whether the engine broke a transaction off in favour of
// another one.
func lostRace(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

func (p *postgres) close() error {
	err := p.db.Close()
	p.pool.Close()
	return err
}

type postgresTx struct {
	tx   *sql.Tx
	lost bool // a statement failed for a lost race, whatever fn made of that
	over bool
}

func (t *postgresTx) exec(ctx context.Context, text string, args ...any) (int64, error) {
	if t.over {
		return 0, errTxDone
	}
	r, err := t.tx.ExecContext(ctx, text, args...)
	if err != nil {
		t.lost = t.lost || lostRace(err)
		return 0, err
	}
	return r.RowsAffected()
}

func (t *postgresTx) query(ctx context.Context, text string, args ...any) (*sql.Rows, error) {
	if t.over {
		return nil, errTxDone
	}
	rows, err := t.tx.QueryContext(ctx, text, args...)
	if err != nil {
		t.lost = t.lost || lostRace(err)
	}
	return rows, err
}
