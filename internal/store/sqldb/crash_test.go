package sqldb_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pressly/goose/v3"

	"crownest.dev/crownest/internal/audit"
	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/store/migrations"
	"crownest.dev/crownest/internal/store/pgtest"
	"crownest.dev/crownest/internal/store/sqldb"
)

const testOrg = "org_00000000000000000000000001"

// crashDSN makes this test binary a writer that never ends; see TestKill.
const crashDSN = "SQLDB_TEST_CRASH_DSN"

// engines are the databases that every test of this file runs on: for each a
// function that makes an empty one, and the name of its plain driver.
var engines = []struct {
	name, driver string
	fresh        func(t *testing.T) (dsn string)
}{
	{"SQLite", "sqlite", func(t *testing.T) string { return filepath.Join(t.TempDir(), "store.db") }},
	{"PostgreSQL", "pgx", func(t *testing.T) string { return pgtest.New(t) }},
}

func command(id string) sandbox.Command {
	return sandbox.Command{
		ID: id, SandboxID: "sbx_1", OrgID: testOrg, ProjectID: "prj_1", Command: "echo hello", Cwd: "/workspace",
		Status: sandbox.CommandExited, Stdout: "hello\n", CreatedAt: time.Now(), FinishedAt: time.Now(),
	}
}

func event(id string) sandbox.AuditEvent {
	return sandbox.AuditEvent{
		ID: sandbox.NewID(sandbox.PrefixAudit), OrgID: testOrg, Actor: sandbox.AuditActor{Kind: "api_key", ID: "key_1"},
		Action: "command.run", ResourceType: "command", ResourceID: id, Outcome: sandbox.OutcomeSuccess,
		CreatedAt: time.Now(), Details: map[string]any{"exitCode": 0},
	}
}

// writeForever writes from several goroutines and prints the id of every record
// that was acknowledged.
func writeForever(dsn string) {
	ctx := context.Background()
	db, err := sqldb.Open(ctx, dsn, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	var (
		mu   sync.Mutex
		work sync.WaitGroup
	)
	for range 4 {
		work.Go(func() {
			for {
				id := sandbox.NewID(sandbox.PrefixCommand)
				err := db.Update(ctx, func(tx store.Tx) error {
					if err := tx.InsertCommand(ctx, command(id)); err != nil {
						return err
					}
					return tx.AppendAudit(ctx, event(id))
				})
				if err != nil {
					panic(err)
				}
				mu.Lock()
				fmt.Println(id)
				mu.Unlock()
			}
		})
	}
	work.Wait()
}

// TestKill kills a writing process at several points. What it had acknowledged is
// there, what it had not is there wholly or not at all, and the chain holds.
func TestKill(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			dsn := e.fresh(t)
			acknowledged := map[string]bool{}
			for round := range 5 {
				child := exec.Command(os.Args[0])
				child.Env = append(os.Environ(), crashDSN+"="+dsn)
				child.Stderr = os.Stderr
				child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				out, err := child.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := child.Start(); err != nil {
					t.Fatal(err)
				}
				lines := bufio.NewScanner(out)
				for n := 0; lines.Scan(); n++ {
					if id := lines.Text(); sandbox.ValidID(sandbox.PrefixCommand, id) { // the last line may be cut
						acknowledged[id] = true
					}
					if n == 10+round*37 {
						if err := child.Process.Kill(); err != nil {
							t.Fatal(err)
						}
					}
				}
				_ = child.Wait() // it was killed

				db := open(t, dsn)
				for id := range acknowledged {
					if _, err := db.Command(t.Context(), id); err != nil {
						t.Fatalf("acknowledged, but: %v", err)
					}
				}
				total, err := db.CommandTotals(t.Context(), "sbx_1")
				if err != nil {
					t.Fatal(err)
				}
				r, err := audit.Verify(t.Context(), db, testOrg)
				if err != nil || !r.OK {
					t.Fatalf("chain: %+v, %v", r, err)
				}
				if r.Checked != total {
					t.Fatalf("%d commands, %d audit events", total, r.Checked)
				}
			}
			if len(acknowledged) < 5*10 {
				t.Fatalf("only %d records acknowledged", len(acknowledged))
			}
		})
	}
}

// TestTampering changes the chain behind the store's back.
func TestTampering(t *testing.T) {
	const events = 7
	for _, e := range engines {
		for name, c := range map[string]struct {
			text   string
			broken int // index of the event that is named
		}{
			"details":     {`UPDATE audit_events SET details = '{"exitCode":1}' WHERE seq = 3`, 2},
			"actor":       {`UPDATE audit_events SET actor_id = 'key_2' WHERE seq = 1`, 0},
			"time":        {`UPDATE audit_events SET created_at = created_at + 1 WHERE seq = 7`, 6},
			"hash":        {`UPDATE audit_events SET hash = prev_hash WHERE seq = 4`, 3},
			"removed":     {`DELETE FROM audit_events WHERE seq = 4`, 4},
			"removed 1st": {`DELETE FROM audit_events WHERE seq = 1`, 1},
			"removed end": {`DELETE FROM audit_events WHERE seq > 5`, 4},
			"exchanged":   {`UPDATE audit_events SET seq = CASE seq WHEN 2 THEN -5 ELSE seq END WHERE seq = 2`, 2},
		} {
			t.Run(e.name+"/"+name, func(t *testing.T) {
				dsn := e.fresh(t)
				db := open(t, dsn)
				var ids []string
				for i := range events {
					ev := event(fmt.Sprint("cmd_", i))
					ids = append(ids, ev.ID)
					err := db.Update(t.Context(), func(tx store.Tx) error { return tx.AppendAudit(t.Context(), ev) })
					if err != nil {
						t.Fatal(err)
					}
				}
				raw, err := sql.Open(e.driver, dsn)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := raw.Exec(c.text); err != nil {
					t.Fatal(err)
				}
				if err := raw.Close(); err != nil {
					t.Fatal(err)
				}
				r, err := audit.Verify(t.Context(), db, testOrg)
				if err != nil {
					t.Fatal(err)
				}
				if r.OK || r.BrokenAtID != ids[c.broken] {
					t.Errorf("got %+v, want broken at %s", r, ids[c.broken])
				}
			})
		}
	}
}

// TestOpenTogether opens one new database many times at once: it is migrated once,
// and all write to it.
func TestOpenTogether(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			dsn := e.fresh(t)
			var work sync.WaitGroup
			for range 8 {
				work.Go(func() {
					db, err := sqldb.Open(t.Context(), dsn, slog.New(slog.DiscardHandler))
					if err != nil {
						t.Error(err)
						return
					}
					for range 10 {
						id := sandbox.NewID(sandbox.PrefixCommand)
						err := db.Update(t.Context(), func(tx store.Tx) error { return tx.InsertCommand(t.Context(), command(id)) })
						if err != nil {
							t.Error(err)
						}
						if _, err := db.Command(t.Context(), id); err != nil {
							t.Error(err)
						}
					}
					if err := db.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			work.Wait()
			if n, err := open(t, dsn).CommandTotals(t.Context(), "sbx_1"); err != nil || n != 80 {
				t.Errorf("%d commands, %v", n, err)
			}
		})
	}
}

// TestOpenRefuses names what is no database.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	notADatabase := filepath.Join(dir, "text")
	if err := os.WriteFile(notADatabase, []byte(strings.Repeat("no database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dsn := range []string{
		filepath.Join(dir, "no", "such", "dir"), dir, notADatabase, "postgres://127.0.0.1:1/x?connect_timeout=1",
		"postgres://%zz",
	} {
		db, err := sqldb.Open(t.Context(), dsn, slog.New(slog.DiscardHandler))
		if err == nil {
			t.Errorf("%s: opened", dsn)
			_ = db.Close()
		}
	}
}

// TestUseAfterClose gives errors, and does not hang.
func TestUseAfterClose(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			db, err := sqldb.Open(t.Context(), e.fresh(t), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Org(t.Context()); err == nil {
				t.Error("read after Close")
			}
			if err := db.Update(t.Context(), func(store.Tx) error { return nil }); err == nil {
				t.Error("wrote after Close")
			}
		})
	}
}

// TestMigrateBack takes the schema back to nothing and brings it up again.
func TestMigrateBack(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			dsn := e.fresh(t)
			if err := open(t, dsn).Close(); err != nil {
				t.Fatal(err)
			}
			raw, err := sql.Open(e.driver, dsn)
			if err != nil {
				t.Fatal(err)
			}
			dialect := map[string]goose.Dialect{"sqlite": goose.DialectSQLite3, "pgx": goose.DialectPostgres}[e.driver]
			p, err := goose.NewProvider(dialect, raw, migrations.FS, goose.WithLogger(goose.NopLogger()))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.DownTo(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if _, err := raw.Exec(`SELECT * FROM orgs`); err == nil {
				t.Error("a table is left")
			}
			if err := raw.Close(); err != nil {
				t.Fatal(err)
			}
			if _, _, err := auth.EnsureOrg(t.Context(), open(t, dsn)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestBusy gives up waiting for another process that writes, and goes on once
// that one is done.
func TestBusy(t *testing.T) {
	dsn := filepath.Join(t.TempDir(), "store.db")
	db := open(t, dsn)
	raw, err := sql.Open("sqlite", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	other, err := raw.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for range 3 {
		if _, err := other.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		err := db.Update(ctx, func(store.Tx) error { return nil })
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		// Readers do not wait for writers.
		if _, err := db.CommandTotals(t.Context(), "sbx_1"); err != nil {
			t.Error(err)
		}
		if _, err := other.ExecContext(t.Context(), "ROLLBACK"); err != nil {
			t.Fatal(err)
		}
		c := command(sandbox.NewID(sandbox.PrefixCommand))
		if err := db.Update(t.Context(), func(tx store.Tx) error { return tx.InsertCommand(t.Context(), c) }); err != nil {
			t.Error(err)
		}
	}
}
