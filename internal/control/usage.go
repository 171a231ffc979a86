package control

import (
	"context"
	"fmt"
	"math"
	"time"

	"crownest.dev/crownest/internal/sandbox"
)

// usageEventsShown is how many of the latest events a summary carries if asked.
const usageEventsShown = 100

func (s *Service) usageEvent(sb sandbox.Sandbox, metric string, amount float64) sandbox.UsageEvent {
	return sandbox.UsageEvent{
		OrgID: sb.OrgID, ProjectID: sb.ProjectID, ResourceID: sb.ID, Metric: metric, Amount: amount,
		PricingVersion: s.cfg.PricingVersion, CreatedAt: now(),
	}
}

// Usage sums up the current calendar month.
func (s *Service) Usage(ctx context.Context, c Call, events bool) (UsageSummary, error) {
	t := time.Now().UTC()
	start := time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
	end := start.AddDate(0, 1, 0)
	projects, err := s.projectFilter(c, "")
	if err != nil {
		return UsageSummary{}, err
	}
	totals, err := s.store.UsageTotals(ctx, c.OrgID, projects, start, end)
	if err != nil {
		return UsageSummary{}, fmt.Errorf("summing usage: %w", err)
	}
	active, err := s.store.CountActiveSandboxes(ctx, c.OrgID, projects)
	if err != nil {
		return UsageSummary{}, fmt.Errorf("counting sandboxes: %w", err)
	}
	per := s.cfg.ComputeUnitSecondsPerCredit
	used := math.Round(totals[sandbox.MetricComputeUnitSeconds]*1000) / 1000
	capacity := float64(s.driver.Capacity())
	out := UsageSummary{
		Start: start, End: end, PricingVersion: s.cfg.PricingVersion,
		ComputeUnitSecondsPerCredit: per,
		CurrencyPerCredit:           math.Round(s.cfg.SandboxHourUSD*per/3600*10_000) / 10_000,
		ComputeUnitSeconds:          used,
		Credits:                     math.Round(used/per*1e6) / 1e6,
		// Without a plan's limit the host's capacity is the limit, and there is no
		// remainder to promise: others share it.
		Quotas: map[string]Quota{
			"active_sandboxes": {Current: float64(active), Limit: capacity},
			"active_previews":  {Current: 0, Limit: capacity},
		},
	}
	if events {
		if out.Events, err = s.store.UsageEvents(ctx, c.OrgID, projects, usageEventsShown); err != nil {
			return out, fmt.Errorf("listing usage events: %w", err)
		}
	}
	return out, nil
}
