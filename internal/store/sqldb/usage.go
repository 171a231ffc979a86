package sqldb

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"crownest.dev/crownest/internal/sandbox"
)

func (r queries) UsageTotals(ctx context.Context, orgID string, projectIDs []string, start, end time.Time) (map[string]float64, error) {
	type total struct {
		metric string
		amount float64
	}
	args := arguments{orgID, millis(start), millis(end)}
	text := `SELECT metric, SUM(amount) FROM usage_events WHERE org_id = $1 AND created_at >= $2 AND created_at < $3` +
		ofProjects(&args, `project_id`, projectIDs) + ` GROUP BY metric`
	totals, err := many(ctx, r.q, "usage totals", func(row scanner, t *total) error {
		return row.Scan(&t.metric, &t.amount)
	}, text, args...)
	if err != nil {
		return nil, err
	}
	sums := make(map[string]float64, len(totals))
	for _, t := range totals {
		sums[t.metric] = t.amount
	}
	return sums, nil
}

func (r queries) UsageEvents(ctx context.Context, orgID string, projectIDs []string, limit int) ([]sandbox.UsageEvent, error) {
	args := arguments{orgID, limit}
	text := `SELECT id, org_id, project_id, resource_id, metric, amount, pricing_version, created_at
		FROM usage_events WHERE org_id = $1` + ofProjects(&args, `project_id`, projectIDs) +
		` ORDER BY created_at DESC, id DESC LIMIT $2`
	return many(ctx, r.q, "usage events", func(row scanner, e *sandbox.UsageEvent) error {
		var created int64
		err := row.Scan(&e.ID, &e.OrgID, &e.ProjectID, &e.ResourceID, &e.Metric, &e.Amount, &e.PricingVersion, &created)
		e.CreatedAt = timeOf(created)
		return err
	}, text, args...)
}

func (r queries) UsageOfResource(ctx context.Context, resourceID, metric string) (float64, error) {
	return one(ctx, r.q, "usage", into[float64],
		`SELECT COALESCE(SUM(amount), 0.0) FROM usage_events WHERE resource_id = $1 AND metric = $2`, resourceID, metric)
}

func (t *tx) InsertUsage(ctx context.Context, events ...sandbox.UsageEvent) error {
	for _, e := range events {
		for {
			n, err := t.q.exec(ctx, `INSERT INTO usage_events
				(id, org_id, project_id, resource_id, metric, amount, pricing_version, created_at)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`,
				nextUsageID(), e.OrgID, e.ProjectID, e.ResourceID, e.Metric, e.Amount, e.PricingVersion, millis(e.CreatedAt))
			if err != nil {
				return fmt.Errorf("inserting usage: %w", err)
			}
			if n == 1 {
				break
			}
		}
	}
	return nil
}

var lastUsageID atomic.Int64

// nextUsageID returns a number that rises within this process and that another
// process is unlikely to pick: microseconds and 12 random bits. The engines agree
// on no way to number rows themselves, and a counter in a row would make every
// writer wait for every other.
func nextUsageID() int64 {
	for {
		last := lastUsageID.Load()
		id := max(time.Now().UnixMicro()<<12|rand.Int64N(1<<12), last+1)
		if lastUsageID.CompareAndSwap(last, id) {
			return id
		}
	}
}
