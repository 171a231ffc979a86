package sqldb_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/store/pgtest"
	"crownest.dev/crownest/internal/store/sqldb"
)

// benchEngines runs a benchmark on both engines.
func benchEngines(b *testing.B, run func(b *testing.B, db *sqldb.DB)) {
	b.Run("SQLite", func(b *testing.B) { run(b, open(b, filepath.Join(b.TempDir(), "store.db"))) })
	b.Run("PostgreSQL", func(b *testing.B) { run(b, open(b, pgtest.New(b))) })
}

// quantiles reports the spread of single calls beside the mean.
func quantiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Nanoseconds()) / 1e6 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(at(1), "max-ms")
}

// timed measures every call of fn.
func timed(b *testing.B, fn func() error) {
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if err := fn(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	quantiles(b, took)
}

func newSandbox() sandbox.Sandbox {
	now := time.Now()
	return sandbox.Sandbox{
		ID: sandbox.NewID(sandbox.PrefixSandbox), OrgID: testOrg, ProjectID: "prj_1", Status: sandbox.StatusStarting,
		TemplateID: "tpl_1", TemplateSlug: "python-node", TemplateVersion: "1", TemplateVersionID: "tplv_1", TTL: time.Hour,
		CreatedAt: now, ExpiresAt: now.Add(time.Hour), Metadata: map[string]string{"team": "a"},
		Resources: sandbox.DefaultResources, Network: sandbox.Network{Egress: sandbox.EgressNone}, ComputeMultiplier: 1,
	}
}

func newOperation() store.Operation {
	id := sandbox.NewSuffix()
	return store.Operation{
		Namespace: id + id, Fingerprint: id + id, OperationID: id, Owner: "boot",
		CreatedAt: time.Now(), ExpiresAt: time.Now().Add(24 * time.Hour),
	}
}

// intend is the first transaction of a create: key, id and claim.
func intend(ctx context.Context, db *sqldb.DB, o store.Operation, s sandbox.Sandbox) error {
	return db.Update(ctx, func(tx store.Tx) error {
		if _, _, err := tx.BeginOperation(ctx, o); err != nil {
			return err
		}
		if _, err := tx.CountActiveSandboxes(ctx, testOrg, nil); err != nil {
			return err
		}
		return tx.InsertSandbox(ctx, s)
	})
}

// conclude is the second one: ready, audit, usage and answer.
func conclude(ctx context.Context, db *sqldb.DB, o store.Operation, s sandbox.Sandbox) error {
	s.Status, s.ReadyAt = sandbox.StatusReady, time.Now()
	o.Status, o.Body = 201, make([]byte, 900)
	return db.Update(ctx, func(tx store.Tx) error {
		if err := tx.UpdateSandbox(ctx, s, sandbox.StatusStarting); err != nil {
			return err
		}
		if err := tx.AppendAudit(ctx, event(s.ID)); err != nil {
			return err
		}
		if err := tx.InsertUsage(ctx, sandbox.UsageEvent{
			OrgID: testOrg, ProjectID: "prj_1", ResourceID: s.ID, Metric: sandbox.MetricSandboxCreates, Amount: 1,
			PricingVersion: "v1", CreatedAt: time.Now(),
		}); err != nil {
			return err
		}
		return tx.FinishOperation(ctx, o)
	})
}

// end keeps the number of active sandboxes steady.
func end(ctx context.Context, db *sqldb.DB, s sandbox.Sandbox) error {
	s.Status = sandbox.StatusDestroyed
	return db.Update(ctx, func(tx store.Tx) error { return tx.UpdateSandbox(ctx, s) })
}

func BenchmarkCreateIntent(b *testing.B) {
	benchEngines(b, func(b *testing.B, db *sqldb.DB) {
		timed(b, func() error { return intend(b.Context(), db, newOperation(), newSandbox()) })
	})
}

func BenchmarkCreateConclusion(b *testing.B) {
	benchEngines(b, func(b *testing.B, db *sqldb.DB) {
		var took []time.Duration
		for b.Loop() {
			b.StopTimer()
			o, s := newOperation(), newSandbox()
			if err := intend(b.Context(), db, o, s); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			start := time.Now()
			if err := conclude(b.Context(), db, o, s); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
			b.StopTimer()
			if err := end(b.Context(), db, s); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		quantiles(b, took)
	})
}

// BenchmarkCreateParallel is both transactions from 16 callers at once.
func BenchmarkCreateParallel(b *testing.B) {
	benchEngines(b, func(b *testing.B, db *sqldb.DB) {
		b.SetParallelism(8)
		var (
			mu   sync.Mutex
			took []time.Duration
		)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				o, s := newOperation(), newSandbox()
				start := time.Now()
				if err := intend(b.Context(), db, o, s); err != nil {
					b.Error(err)
				}
				if err := conclude(b.Context(), db, o, s); err != nil {
					b.Error(err)
				}
				d := time.Since(start)
				mu.Lock()
				took = append(took, d)
				mu.Unlock()
			}
		})
		quantiles(b, took)
	})
}

// BenchmarkCommandEnd is the transaction that ends a short command.
func BenchmarkCommandEnd(b *testing.B) {
	benchEngines(b, func(b *testing.B, db *sqldb.DB) {
		timed(b, func() error {
			c := command(sandbox.NewID(sandbox.PrefixCommand))
			c.Status = sandbox.CommandRunning
			return db.Update(b.Context(), func(tx store.Tx) error {
				if err := tx.InsertCommand(b.Context(), c); err != nil {
					return err
				}
				c.Status = sandbox.CommandExited
				if err := tx.UpdateCommand(b.Context(), c); err != nil {
					return err
				}
				return tx.AppendAudit(b.Context(), event(c.ID))
			})
		})
	})
}

func BenchmarkKeyByHash(b *testing.B) {
	benchEngines(b, func(b *testing.B, db *sqldb.DB) {
		err := db.Update(b.Context(), func(tx store.Tx) error {
			return tx.InsertKey(b.Context(), sandbox.Key{ID: "key_1", Hash: "hash", Scopes: sandbox.DefaultScopes})
		})
		if err != nil {
			b.Fatal(err)
		}
		timed(b, func() error {
			_, err := db.KeyByHash(b.Context(), "hash")
			return err
		})
	})
}

// BenchmarkAmongMillion reads at a fixed rate with a million commands in the
// store, while commands go on being written.
func BenchmarkAmongMillion(b *testing.B) {
	const (
		records   = 1_000_000
		sandboxes = 1000
		rate      = 2000
	)
	benchEngines(b, func(b *testing.B, db *sqldb.DB) {
		ctx := b.Context()
		ids := make([]string, sandboxes)
		update := func(fn func(tx store.Tx) error) {
			if err := db.Update(ctx, fn); err != nil {
				b.Fatal(err)
			}
		}
		update(func(tx store.Tx) error {
			for i := range ids {
				s := newSandbox()
				ids[i] = s.ID
				if err := tx.InsertSandbox(ctx, s); err != nil {
					return err
				}
			}
			return nil
		})
		for done := 0; done < records; done += 10_000 {
			update(func(tx store.Tx) error {
				for i := range 10_000 {
					c := command(sandbox.NewID(sandbox.PrefixCommand))
					c.SandboxID = ids[i%sandboxes]
					if err := tx.InsertCommand(ctx, c); err != nil {
						return err
					}
				}
				return nil
			})
		}
		for name, read := range map[string]func(i int) error{
			"GetSandbox": func(i int) error { _, err := db.Sandbox(ctx, ids[i%sandboxes]); return err },
			"ListCommands": func(i int) error {
				l, err := db.Commands(ctx, ids[i%sandboxes], store.Page{Limit: 10})
				if len(l) != 10 {
					return fmt.Errorf("%d commands, %w", len(l), err)
				}
				return err
			},
			"ListSandboxes": func(int) error {
				_, err := db.Sandboxes(ctx, store.SandboxFilter{
					OrgID: testOrg, Metadata: map[string]string{"team": "a"}, Page: store.Page{Limit: 10},
				})
				return err
			},
			"WriteOnly": nil,
		} {
			b.Run(name, func(b *testing.B) {
				if read == nil {
					timed(b, func() error {
						c := command(sandbox.NewID(sandbox.PrefixCommand))
						c.SandboxID = ids[0]
						return db.Update(ctx, func(tx store.Tx) error { return tx.InsertCommand(ctx, c) })
					})
					return
				}
				writing, stop := context.WithCancel(ctx)
				var work sync.WaitGroup
				work.Go(func() {
					for pace := time.NewTicker(10 * time.Millisecond); writing.Err() == nil; <-pace.C {
						c := command(sandbox.NewID(sandbox.PrefixCommand))
						if err := db.Update(ctx, func(tx store.Tx) error { return tx.InsertCommand(ctx, c) }); err != nil {
							b.Error(err)
						}
					}
				})
				var (
					mu   sync.Mutex
					took []time.Duration
				)
				begin := time.Now()
				for i := 0; b.Loop(); i++ {
					due := begin.Add(time.Duration(i) * time.Second / rate)
					if wait := time.Until(due); wait > time.Millisecond {
						time.Sleep(wait)
					}
					work.Go(func() {
						if err := read(i); err != nil {
							b.Error(err)
						}
						d := time.Since(due) // a late start counts
						mu.Lock()
						took = append(took, d)
						mu.Unlock()
					})
				}
				stop()
				work.Wait()
				quantiles(b, took)
			})
		}
	})
}
