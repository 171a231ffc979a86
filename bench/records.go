package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // the server's embedded database
)

// records measures a read while the store holds a million commands, at a fixed
// rate: what waits because the server is slow counts as slow too.
func (b *bench) records(ctx context.Context) (err error) {
	r, err := b.serve(ctx, "records", 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Destroy()) }()
	sbx, err := r.CreateSandbox(ctx, "", template, nil)
	if err != nil {
		return err
	}
	if _, err := r.Run(ctx, "", sbx.ID, "true", 0); err != nil {
		return err
	}
	if err := r.Stop(ctx); err != nil {
		return err
	}
	if err := multiply(ctx, filepath.Join(r.Data, "crownest.db"), b.n(1_000_000, 10_000)); err != nil {
		return fmt.Errorf("filling the database: %w", err)
	}
	if err := r.Restart(ctx); err != nil {
		return err
	}

	const rate, connections = 2000, 64
	total := rate * b.n(8, 1)
	took := make([]float64, total)
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, connections)
	warm := rate / 4
	began := time.Now()
	for range connections {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= total || ctx.Err() != nil {
					return
				}
				due := began.Add(time.Duration(i) * time.Second / rate)
				rest(ctx, time.Until(due))
				if err := r.Do(ctx, http.MethodGet, "/v1/sandboxes/"+sbx.ID, "", nil, nil); err != nil {
					errs <- err
					return
				}
				took[i] = ms(time.Since(due))
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(began)
	select {
	case err := <-errs:
		return err
	default:
	}
	b.add(whatGet, crownest, "ms", took[warm:])
	b.add(whatGetAchieved, crownest, "1/s", []float64{float64(total) / elapsed.Seconds()})
	return nil
}

// multiply copies the one command of a database until there are n of it. It knows
// no more of the schema than that commands are in a table of that name.
func multiply(ctx context.Context, path string, n int) (err error) {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	rows, err := db.QueryContext(ctx, "SELECT name FROM pragma_table_info('commands')")
	if err != nil {
		return err
	}
	var columns, values []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return errors.Join(err, rows.Close())
		}
		value := name
		if name == "id" {
			value = "'cmd_' || printf('%026d', n)"
		}
		columns, values = append(columns, name), append(values, value)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if len(columns) == 0 {
		return errors.New("there is no table of commands")
	}
	query := fmt.Sprintf(`WITH RECURSIVE series(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < %d)
		INSERT INTO commands (%s) SELECT %s FROM series, (SELECT * FROM commands LIMIT 1)`,
		n, strings.Join(columns, ", "), strings.Join(values, ", "))
	_, err = db.ExecContext(ctx, query)
	return err
}
