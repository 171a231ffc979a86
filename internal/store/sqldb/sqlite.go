package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"crownest.dev/crownest/internal/store/migrations"
)

const (
	// busyTimeout is how long a statement waits for another process, for instance
	// crownest admin, to finish its write.
	busyTimeout = 10 * time.Second
	// checkpointEvery is how often the write-ahead log is copied back.
	checkpointEvery = time.Second
	// checkpointPages is the size of the write-ahead log from which a commit copies
	// it back itself. It is the backstop of the background checkpoint, which keeps
	// the fsync of a checkpoint off the path of requests.
	checkpointPages = 16384
)

// sqlite runs all writes on one connection, one after the other, and reads on
// some more, which the write-ahead log lets run beside the writer.
type sqlite struct {
	readers *sql.DB
	reads   statements

	writers *sql.DB
	turn    chan struct{} // holds a token while somebody writes
	writer  *sqliteWriter // guarded by turn; nil after a broken connection
	closed  bool          // guarded by turn

	stop context.CancelFunc
	work sync.WaitGroup
}

func openSQLite(ctx context.Context, path string, log *slog.Logger) (*sqlite, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("finding %q: %w", path, err)
	}
	writers, err := sql.Open("sqlite", sqliteURL(path, url.Values{}))
	if err != nil {
		return nil, err
	}
	writers.SetMaxOpenConns(1)
	if err := migrateSQLite(ctx, writers, path); err != nil {
		return nil, errors.Join(err, writers.Close())
	}
	readers, err := sql.Open("sqlite", sqliteURL(path, url.Values{"_pragma": {"query_only(1)"}}))
	if err != nil {
		return nil, errors.Join(err, writers.Close())
	}
	n := max(4, 2*runtime.GOMAXPROCS(0))
	readers.SetMaxOpenConns(n)
	readers.SetMaxIdleConns(n)

	background, stop := context.WithCancel(context.Background())
	s := &sqlite{
		readers: readers,
		reads:   statements{prepare: readers.PrepareContext},
		writers: writers,
		turn:    make(chan struct{}, 1),
		stop:    stop,
	}
	s.work.Go(func() { s.checkpoint(background, path, log) })
	return s, nil
}

// sqliteURL spells path as a URI, so that no character in it can end the path.
func sqliteURL(path string, q url.Values) string {
	q.Set("_txlock", "immediate")
	q.Set("_busy_timeout", fmt.Sprint(busyTimeout.Milliseconds()))
	q["_pragma"] = append(q["_pragma"],
		"journal_mode(WAL)",
		// A commit is in the page cache of the kernel, which outlives this process;
		// the checkpoint fsyncs, so a power loss costs the last commits at most.
		"synchronous(NORMAL)",
		fmt.Sprintf("wal_autocheckpoint(%d)", checkpointPages),
		"cache_size(-8192)", // KiB, for each connection
		"temp_store(MEMORY)",
	)
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
}

// migrateSQLite brings the schema up to date. A lock beside the file makes
// processes that start together take turns.
func migrateSQLite(ctx context.Context, db *sql.DB, path string) (err error) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("locking the database: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking the database: %w", err)
	}
	// Made here and not by the engine, for the mode: it holds hashes and metadata.
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("creating the database: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("creating the database: %w", err)
	}
	if err := migrate(ctx, goose.DialectSQLite3, db); err != nil {
		return err
	}
	return adviseSQLite(ctx, db)
}

// migrate applies what is missing of the embedded schema.
func migrate(ctx context.Context, dialect goose.Dialect, db *sql.DB, opts ...goose.ProviderOption) error {
	p, err := goose.NewProvider(dialect, db, migrations.FS, append(opts, goose.WithLogger(goose.NopLogger()))...)
	if err != nil {
		return fmt.Errorf("reading the migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrating the schema: %w", err)
	}
	return nil
}

func (s *sqlite) exec(context.Context, string, ...any) (int64, error) {
	return 0, errors.New("a write outside of a transaction")
}

func (s *sqlite) query(ctx context.Context, text string, args ...any) (rows, error) {
	st, err := s.reads.get(ctx, text) //nolint:sqlclosecheck // the cache closes it
	if err != nil {
		return nil, err
	}
	return st.QueryContext(ctx, args...) //nolint:rowserrcheck // one and many check it
}

func (s *sqlite) update(ctx context.Context, fn func(q querier) error) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.closed {
		return sql.ErrConnDone
	}
	if s.writer == nil {
		w, err := newSQLiteWriter(ctx, s.writers)
		if err != nil {
			return fmt.Errorf("connecting for a write: %w", err)
		}
		s.writer = w
	}
	usable, err := s.writer.run(ctx, fn)
	if !usable {
		err = errors.Join(err, s.writer.close())
		s.writer = nil
	}
	return err
}

func (s *sqlite) close() error {
	s.stop()
	s.work.Wait()
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.closed = true
	var err error
	if s.writer != nil {
		err = s.writer.close()
		s.writer = nil
	}
	// The writer goes last: the connection that is last to close a database
	// copies the write-ahead log back, which a reader may not.
	return errors.Join(err, s.reads.close(), s.readers.Close(), s.writers.Close())
}

// checkpoint copies the write-ahead log back now and then, without blocking
// readers or the writer, so that commits seldom have to.
func (s *sqlite) checkpoint(ctx context.Context, path string, log *slog.Logger) {
	db, err := sql.Open("sqlite", sqliteURL(path, url.Values{}))
	if err != nil {
		log.ErrorContext(ctx, "background checkpoints are off", "error", err)
		return
	}
	defer func() { _ = db.Close() }() // it wrote nothing of its own
	db.SetMaxOpenConns(1)
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	var seen int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		info, err := os.Stat(path + "-wal")
		if err != nil {
			continue // no write yet
		}
		// The log is written over from its start once it was copied back wholly, so
		// its time tells, not its size.
		at := info.ModTime().UnixNano()
		if at == seen {
			continue
		}
		seen = at
		if _, err := db.ExecContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)"); err != nil && ctx.Err() == nil {
			log.WarnContext(ctx, "copying the write-ahead log back failed", "error", err)
		}
	}
}

// sqliteWriter is the connection that writes. It begins and ends transactions
// itself: database/sql would prepare every statement anew in each of them.
type sqliteWriter struct {
	conn  *sql.Conn
	stmts statements
}

func newSQLiteWriter(ctx context.Context, db *sql.DB) (*sqliteWriter, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &sqliteWriter{conn: conn, stmts: statements{prepare: conn.PrepareContext}}, nil
}

func (w *sqliteWriter) close() error { return errors.Join(w.stmts.close(), w.conn.Close()) }

// run runs fn in a transaction and reports whether the connection is fit for
// another one.
func (w *sqliteWriter) run(ctx context.Context, fn func(q querier) error) (usable bool, err error) {
	// Only the wait for the lock may be cut short by ctx. A statement that is
	// interrupted in the middle may take the whole transaction with it; ours are
	// short, so ctx is asked between them instead.
	if err := w.control(ctx, "BEGIN IMMEDIATE"); err != nil {
		// Whether an interrupted one began after all is not known.
		return false, fmt.Errorf("beginning a write: %w", err)
	}
	t := &sqliteTx{w: w}
	committed := false
	defer func() {
		t.over = true
		if committed {
			return
		}
		if rerr := w.control(context.WithoutCancel(ctx), "ROLLBACK"); rerr != nil {
			usable = false
			err = errors.Join(err, fmt.Errorf("rolling back: %w", rerr))
		}
	}()
	if err := fn(t); err != nil {
		return true, err
	}
	if err := ctx.Err(); err != nil {
		return true, err
	}
	if err := w.control(context.WithoutCancel(ctx), "COMMIT"); err != nil {
		return true, fmt.Errorf("committing: %w", err)
	}
	committed = true
	return true, nil
}

func (w *sqliteWriter) control(ctx context.Context, text string) error {
	st, err := w.stmts.get(ctx, text) //nolint:sqlclosecheck // the cache closes it
	if err != nil {
		return err
	}
	_, err = st.ExecContext(ctx)
	return err
}

type sqliteTx struct {
	w    *sqliteWriter
	over bool
}

func (t *sqliteTx) statement(ctx context.Context, text string) (*sql.Stmt, context.Context, error) {
	if t.over {
		return nil, nil, errTxDone
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	ctx = context.WithoutCancel(ctx)
	st, err := t.w.stmts.get(ctx, text)
	return st, ctx, err
}

func (t *sqliteTx) exec(ctx context.Context, text string, args ...any) (int64, error) {
	st, ctx, err := t.statement(ctx, text) //nolint:sqlclosecheck // the cache closes it
	if err != nil {
		return 0, err
	}
	r, err := st.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (t *sqliteTx) query(ctx context.Context, text string, args ...any) (rows, error) {
	st, ctx, err := t.statement(ctx, text) //nolint:sqlclosecheck // the cache closes it
	if err != nil {
		return nil, err
	}
	return st.QueryContext(ctx, args...) //nolint:rowserrcheck // one and many check it
}
