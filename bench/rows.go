package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// Row is one figure: what was measured, of whom.
type Row struct {
	What   string  `json:"what"`
	Who    string  `json:"who"`
	Unit   string  `json:"unit"`
	N      int     `json:"n"`
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// crownest is who the rows of our own server are about.
const crownest = "crownest"

func (b *bench) add(what, who, unit string, values []float64) {
	if len(values) == 0 {
		return
	}
	slices.Sort(values)
	b.rows = append(b.rows, Row{
		What: what, Who: who, Unit: unit, N: len(values),
		Median: quantile(values, 0.5), P99: quantile(values, 0.99), Min: values[0], Max: values[len(values)-1],
	})
}

// quantile of sorted values, the nearest rank.
func quantile(sorted []float64, q float64) float64 {
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// mbps is a rate in 10^6 bytes per second.
func mbps(bytes int, d time.Duration) float64 { return float64(bytes) / 1e6 / d.Seconds() }

// repeat measures fn n times, in milliseconds.
func repeat(n int, fn func() error) ([]float64, error) {
	var out []float64
	for range n {
		began := time.Now()
		if err := fn(); err != nil {
			return out, err
		}
		out = append(out, ms(time.Since(began)))
	}
	return out, nil
}

func (b *bench) row(what, who string) (Row, bool) {
	i := slices.IndexFunc(b.rows, func(r Row) bool { return r.What == what && r.Who == who })
	if i < 0 {
		return Row{}, false
	}
	return b.rows[i], true
}

func short(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// What is measured; the budgets refer to these names.
const (
	whatCold        = "cold start to the result of echo"
	whatTrue        = "run true"
	whatTrueB2B     = "run true, back to back"
	whatEcho        = "run echo hi"
	whatPython      = "run python3 -c 'print(1)'"
	whatCreate      = "create from the pool"
	whatFirst       = "create to the result of echo"
	whatFirstByte   = "first output byte on the stream"
	whatStream      = "stdout, 100 MB in 64 KiB writes"
	whatUpload      = "upload of 100 MiB"
	whatDownload    = "download of 100 MiB"
	whatBurst       = "burst of creates, all usable"
	whatIdle        = "memory of an idle sandbox"
	whatCreateFew   = "create with 10 live"
	whatCreateMany  = "create with many live"
	whatLive        = "sandboxes live at a time"
	whatGet         = "GET sandbox, 1 million command records, 2,000 req/s"
	whatGetAchieved = "GET sandbox, requests per second reached"
)

// Verdict says whether one goal of the design was met.
type Verdict struct {
	Goal     string  `json:"goal"`
	Wanted   string  `json:"wanted"`
	Measured string  `json:"measured"`
	Value    float64 `json:"value"`
	Limit    float64 `json:"limit"`
	Met      bool    `json:"met"`
}

// verdicts compares the rows with the budgets, those that were measured.
func (b *bench) verdicts() (out []Verdict) {
	atMost := func(goal, unit string, value, limit float64) {
		out = append(out, Verdict{goal, "<= " + short(limit) + unit, short(value) + unit, value, limit, value <= limit})
	}
	atLeast := func(goal, unit string, value, limit float64) {
		out = append(out, Verdict{goal, ">= " + short(limit) + unit, short(value) + unit, value, limit, value >= limit})
	}
	with := func(what string, fn func(Row)) {
		if r, ok := b.row(what, crownest); ok {
			fn(r)
		}
	}
	than := func(what, peer string, fn func(Row)) {
		if r, ok := b.row(what, peer); ok {
			fn(r)
		}
	}
	with(whatCreate, func(r Row) {
		atMost("create from the pool, p50", " ms", r.Median, 3)
		atMost("create from the pool, p99", " ms", r.P99, 15)
	})
	with(whatFirst, func(r Row) {
		atMost("create to first result, p50", " ms", r.Median, 12)
		atMost("create to first result, p99", " ms", r.P99, 50)
		than(whatCold, peerRunsc, func(p Row) {
			atMost("create to first result, against `runsc run` cold", " x", r.Median/p.Median, 0.12)
		})
	})
	with(whatTrue, func(r Row) {
		atMost("run true at rest, p50", " ms", r.Median, 8)
		than(whatTrue, peerRPC, func(p Row) {
			atMost("run true at rest, against the bare control RPC", " x", r.Median/p.Median, 1)
		})
	})
	with(whatFirstByte, func(r Row) { atMost("first output byte on the stream, p50", " ms", r.Median, 3) })
	with(whatStream, func(r Row) { atLeast("stdout through log and stream", " MB/s", r.Median, 100) })
	with(whatUpload, func(r Row) { atLeast("staged upload, checksum checked", " MB/s", r.Median, 150) })
	with(whatDownload, func(r Row) { atLeast("staged download, checksum checked", " MB/s", r.Median, 150) })
	with(whatBurst, func(r Row) {
		atMost(fmt.Sprintf("burst of %d creates, all usable", burstSize(b.quick)), " ms", r.Median, 500)
	})
	with(whatIdle, func(r Row) { atMost("idle sandbox, guest and gofer included", " MiB", r.Median, 18) })
	with(whatLive, func(r Row) {
		if !b.quick {
			atLeast("sandboxes live at a time", "", r.Median, 1000)
		}
	})
	with(whatCreateMany, func(r Row) {
		with(whatCreateFew, func(few Row) {
			atMost("create with many live, against 10 live", " x", r.Median/few.Median, 1.5)
		})
	})
	with(whatGet, func(r Row) { atMost("GET sandbox at 2,000 req/s, p99", " ms", r.P99, 10) })
	return out
}
