package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, tc := range []struct {
		sorted []float64
		q      float64
		want   float64
	}{
		{[]float64{7}, 0.5, 7},
		{[]float64{7}, 0.99, 7},
		{[]float64{1, 2, 3}, 0.5, 2},
		{[]float64{1, 2, 3, 4}, 0.5, 2},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 0, 1},
	} {
		if got := quantile(tc.sorted, tc.q); got != tc.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", tc.sorted, tc.q, got, tc.want)
		}
	}
}

func TestVerdicts(t *testing.T) {
	b := &bench{}
	if got := b.verdicts(); len(got) != 0 {
		t.Errorf("verdicts on nothing: %v", got)
	}
	b.add(whatCreate, crownest, "ms", []float64{1, 2, 30})
	b.add(whatStream, crownest, "MB/s", []float64{99})
	b.add(whatTrue, crownest, "ms", []float64{5})
	b.add(whatTrue, peerRPC, "ms", []float64{10})
	var got []string
	for _, v := range b.verdicts() {
		if v.Met {
			got = append(got, v.Goal)
		}
	}
	want := "create from the pool, p50; run true at rest, p50; run true at rest, against the bare control RPC"
	if s := strings.Join(got, "; "); s != want {
		t.Errorf("met: %s", s)
	}
}

func TestDocument(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(path, []byte("before\n"+docBegin+"old\n"+docEnd+"after\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := &bench{}
	b.add(whatCreate, crownest, "ms", []float64{6})
	for range 2 {
		if err := document(path, Result{At: time.Unix(0, 0), Rows: b.rows, Goals: b.verdicts()}); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	if strings.Contains(page, "old") || !strings.HasPrefix(page, "before\n") || !strings.HasSuffix(page, "after\n") ||
		strings.Count(page, "| create from the pool, p50 | <= 3.00 ms | 6.00 ms | **missed** by a factor of 2.00 |") != 1 {
		t.Error(page)
	}
	if err := document(filepath.Join(t.TempDir(), "none.md"), Result{}); err == nil {
		t.Error("a page that is not there was written")
	}
}
