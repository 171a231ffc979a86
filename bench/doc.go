package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

const (
	docBegin = "<!-- bench: written by go run ./bench -doc -->\n"
	docEnd   = "<!-- /bench -->\n"
)

// document replaces the part of a page between the marks with the results.
func document(path string, res Result) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(raw, []byte(docBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(docEnd))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks of the benchmarks", path)
	}
	page := string(before) + docBegin + markdown(res) + docEnd + string(after)
	return os.WriteFile(path, []byte(page), 0o644)
}

func markdown(res Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nMeasured %s in %.0f s on: %s.\n\n", res.At.Format("2006-01-02"), res.Seconds, res.Machine)
	if len(res.Goals) > 0 {
		b.WriteString("| Goal | Wanted | Measured | |\n|---|---|---|---|\n")
		for _, g := range res.Goals {
			verdict := "met"
			if !g.Met {
				verdict = fmt.Sprintf("**missed** by a factor of %s", short(max(g.Value/g.Limit, g.Limit/g.Value)))
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", g.Goal, g.Wanted, g.Measured, verdict)
		}
		b.WriteString("\n")
	}
	b.WriteString("| What | Who | n | Median | p99 | Min | Unit |\n|---|---|---|---|---|---|---|\n")
	for _, r := range res.Rows {
		fmt.Fprintf(&b, "| %s | %s | %d | %s | %s | %s | %s |\n", r.What, r.Who, r.N, short(r.Median), short(r.P99), short(r.Min), r.Unit)
	}
	b.WriteString("\n")
	return b.String()
}
