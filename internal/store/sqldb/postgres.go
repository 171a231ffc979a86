package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

const (
	// maxAttempts bounds how often a transaction that lost a race is run again. One
	// that runs alone loses only to writers that do not keep to turns.
	maxAttempts = 10
	// maxTransaction bounds one attempt, its commit included.
	maxTransaction = time.Minute
	// calmDown is how long all writers of a process take turns after one of them
	// lost a race.
	calmDown = 200 * time.Millisecond
	// Processes that start together migrate in turn: each asks once a second, for
	// five minutes at most.
	lockPeriod, lockAttempts = 1, 300
)

// Both begin a transaction in one round trip. LOCK TABLE takes no snapshot, so
// one that had to wait for its turn sees all that went before. Those together run
// side by side with each other, the one alone with nobody.
const (
	beginTogether = `BEGIN ISOLATION LEVEL SERIALIZABLE; LOCK TABLE write_turns IN ROW EXCLUSIVE MODE`
	beginAlone    = `BEGIN ISOLATION LEVEL SERIALIZABLE; LOCK TABLE write_turns IN EXCLUSIVE MODE`
)

// postgres leaves statements and their caching to pgx, which prepares each text
// once on every connection.
//
// A write transaction first runs beside the others and is broken off by the
// engine if that would not be serializable. Nearly all of ours append to the same
// audit chain, so under load most would lose, again and again. Whoever lost
// therefore runs alone the next time, and so does everybody for a while.
type postgres struct {
	pool *pgxpool.Pool
	db   *sql.DB
	// contended is until when writers take turns, in Unix nanoseconds.
	contended atomic.Int64
}

func openPostgres(ctx context.Context, dsn string) (*postgres, error) {
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	p := &postgres{pool: pool, db: stdlib.OpenDBFromPool(pool)}
	locker, err := lock.NewPostgresSessionLocker(
		lock.WithLockTimeout(lockPeriod, lockAttempts), lock.WithUnlockTimeout(lockPeriod, lockAttempts))
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

func (p *postgres) query(ctx context.Context, text string, args ...any) (rows, error) {
	return p.db.QueryContext(ctx, text, args...) //nolint:rowserrcheck // one and many check it
}

func (p *postgres) close() error {
	err := p.db.Close()
	p.pool.Close()
	return err
}

func (p *postgres) update(ctx context.Context, fn func(q querier) error) error {
	var lost error
	for range maxAttempts {
		begin := beginTogether
		if lost != nil || time.Now().UnixNano() < p.contended.Load() {
			begin = beginAlone
		}
		err := p.attempt(ctx, begin, fn)
		if !errors.As(err, new(lostRaceError)) {
			return err
		}
		p.contended.Store(time.Now().Add(calmDown).UnixNano())
		lost = err
	}
	return fmt.Errorf("giving up after %d attempts: %w", maxAttempts, lost)
}

// lostRaceError says that the engine broke a transaction off in favour of another
// one: nothing happened, and it may be run again.
type lostRaceError struct{ error }

func (e lostRaceError) Unwrap() error { return e.error }

// lostRace marks such an error.
func lostRace(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01") {
		return lostRaceError{err}
	}
	return err
}

// attempt runs fn in a transaction.
func (p *postgres) attempt(ctx context.Context, begin string, fn func(q querier) error) (err error) {
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("connecting for a write: %w", err)
	}
	defer func() { _ = conn.Close() }() // hands it back
	// ctx cuts statements short, but not the commit: whoever gives up in the middle
	// of one could not know whether it happened.
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxTransaction)
	defer cancel()
	t := &postgresTx{conn: conn}
	committed := false
	defer func() {
		t.over = true
		if committed {
			return
		}
		if control(whole, conn, "ROLLBACK") != nil {
			// Broken; whoever gets it next must not find a transaction in it.
			_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		}
	}()
	if err := control(ctx, conn, begin); err != nil {
		return fmt.Errorf("beginning a write: %w", lostRace(err))
	}
	err = fn(t)
	if t.lost != nil { // whatever fn made of that
		return t.lost
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	if err := control(whole, conn, "COMMIT"); err != nil {
		return fmt.Errorf("committing: %w", lostRace(err))
	}
	committed = true
	return nil
}

// control runs statements without arguments, in one round trip.
func control(ctx context.Context, conn *sql.Conn, text string) error {
	return conn.Raw(func(c any) error {
		results, err := c.(*stdlib.Conn).Conn().PgConn().Exec(ctx, text).ReadAll()
		if err != nil {
			return err
		}
		// A transaction in which a statement failed answers COMMIT with ROLLBACK.
		if last := results[len(results)-1].CommandTag.String(); text == "COMMIT" && last != text {
			return fmt.Errorf("the transaction had failed: %s", last)
		}
		return nil
	})
}

type postgresTx struct {
	conn *sql.Conn
	lost error // of the first statement that lost a race
	over bool
}

func (t *postgresTx) exec(ctx context.Context, text string, args ...any) (int64, error) {
	if t.over {
		return 0, errTxDone
	}
	r, err := t.conn.ExecContext(ctx, text, args...)
	if err != nil {
		return 0, t.note(err)
	}
	return r.RowsAffected()
}

func (t *postgresTx) query(ctx context.Context, text string, args ...any) (rows, error) {
	if t.over {
		return nil, errTxDone
	}
	r, err := t.conn.QueryContext(ctx, text, args...) //nolint:rowserrcheck // one and many check it
	if err != nil {
		return nil, t.note(err)
	}
	return postgresRows{r, t}, nil
}

func (t *postgresTx) note(err error) error {
	err = lostRace(err)
	if t.lost == nil && errors.As(err, new(lostRaceError)) {
		t.lost = err
	}
	return err
}

// postgresRows notes a race that is lost while rows are read.
type postgresRows struct {
	*sql.Rows
	t *postgresTx
}

func (r postgresRows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return r.t.note(err)
	}
	return nil
}
