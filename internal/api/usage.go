package api

import (
	"context"
	"math"
	"net/http"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
)

type wireUsagePeriod struct {
	Start   string `json:"start" format:"date-time"`
	End     string `json:"end" format:"date-time"`
	ResetAt string `json:"resetAt" format:"date-time"`
}

type wireUsageAmount struct {
	Used float64 `json:"used"`
}

type wireUsageCredits struct {
	Used      float64  `json:"used"`
	Remaining *float64 `json:"remaining,omitempty" doc:"Absent: no limit."`
}

type wireUsageQuota struct {
	Current   float64  `json:"current"`
	Limit     float64  `json:"limit"`
	Remaining *float64 `json:"remaining,omitempty" doc:"Absent: no limit but the host's capacity."`
	ResetAt   *string  `json:"resetAt" format:"date-time" nullable:"true" doc:"Null: never resets."`
}

type wireUsageEvent struct {
	Amount         float64 `json:"amount"`
	CreatedAt      string  `json:"createdAt" format:"date-time"`
	Metric         string  `json:"metric"`
	OrgID          string  `json:"orgId"`
	ProjectID      string  `json:"projectId,omitempty"`
	ResourceID     string  `json:"resourceId,omitempty"`
	PricingVersion string  `json:"pricingVersion,omitempty"`
}

type wireUsageSummary struct {
	Period                      wireUsagePeriod           `json:"period"`
	PricingVersion              string                    `json:"pricingVersion"`
	ComputeUnitSecondsPerCredit float64                   `json:"computeUnitSecondsPerCredit"`
	CurrencyPerCredit           float64                   `json:"currencyPerCredit"`
	ComputeUnitSeconds          wireUsageAmount           `json:"computeUnitSeconds"`
	Credits                     wireUsageCredits          `json:"credits"`
	Quotas                      map[string]wireUsageQuota `json:"quotas"`
	Events                      []wireUsageEvent          `json:"events,omitempty"`
}

func (s *Server) addUsage() {
	query(s, operation{
		id: "getUsage", method: http.MethodGet, path: "/v1/usage", tag: "Usage",
		summary: "Get what was used in the current period", scope: sandbox.ScopeUsageRead,
		params: []*param{enumParam("include", "events adds the latest 100 usage events.", "", "events")},
	}, func(ctx context.Context, rq *request, _ *noBody) (wireUsageSummary, error) {
		u, err := s.control.Usage(ctx, rq.call, rq.query.Get("include") == "events")
		if err != nil {
			return wireUsageSummary{}, err
		}
		return toUsage(u), nil
	})
}

// thousandths rounds to three decimals, as the contract counts.
func thousandths(v float64) float64 { return math.Round(v*1000) / 1000 }

func toUsage(u control.UsageSummary) wireUsageSummary {
	w := wireUsageSummary{
		Period:                      wireUsagePeriod{timestamp(u.Start), timestamp(u.End), timestamp(u.End)},
		PricingVersion:              u.PricingVersion,
		ComputeUnitSecondsPerCredit: u.ComputeUnitSecondsPerCredit,
		CurrencyPerCredit:           u.CurrencyPerCredit,
		ComputeUnitSeconds:          wireUsageAmount{thousandths(u.ComputeUnitSeconds)},
		Credits:                     wireUsageCredits{u.Credits, u.CreditsRemaining},
		Quotas:                      make(map[string]wireUsageQuota, len(u.Quotas)),
	}
	for name, q := range u.Quotas {
		wq := wireUsageQuota{Current: q.Current, Limit: q.Limit, Remaining: q.Remaining}
		if !q.ResetAt.IsZero() {
			wq.ResetAt = ptr(timestamp(q.ResetAt))
		}
		w.Quotas[name] = wq
	}
	for _, e := range u.Events {
		w.Events = append(w.Events, wireUsageEvent{
			Amount: thousandths(e.Amount), CreatedAt: timestamp(e.CreatedAt), Metric: e.Metric,
			OrgID: e.OrgID, ProjectID: e.ProjectID, ResourceID: e.ResourceID, PricingVersion: e.PricingVersion,
		})
	}
	return w
}
