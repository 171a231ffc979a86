// Command bench measures CrowNest beside its peers, all in one run on one
// machine: what counts are the ratios. It drives the real server over HTTP on
// loopback and knows nothing of its inside; the one exception is the million
// command records, which it writes into the database of the stopped server.
//
//	bench [-quick] [-only REGEXP] [-out FILE] [-doc FILE]
//
// It prints a table and writes the same as JSON and, if asked to, into a page of
// the documentation.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"text/tabwriter"
	"time"

	"crownest.dev/crownest/test/testserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// bench is one run of the benchmarks.
type bench struct {
	quick bool
	only  *regexp.Regexp
	dir   string // scratch
	log   io.Writer
	began time.Time

	machine Machine
	rows    []Row
}

// Result is what a run writes.
type Result struct {
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds"`
	Quick   bool      `json:"quick"`
	Machine Machine   `json:"machine"`
	Rows    []Row     `json:"rows"`
	Goals   []Verdict `json:"goals"`
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	quick := flags.Bool("quick", false, "a smoke test: few repetitions, figures mean little")
	only := flags.String("only", "", "run the groups whose name matches this regular expression")
	out := flags.String("out", "bench/results.json", "file for the results")
	doc := flags.String("doc", "", "Markdown file whose part between the bench marks is written anew")
	limit := flags.Duration("limit", 10*time.Minute, "end by then, whatever is done")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	if why := testserver.Cannot(); why != "" {
		fmt.Fprintln(stderr, "bench:", why)
		return 1
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	b := &bench{quick: *quick, only: match, log: stderr, began: time.Now()}
	failed := b.all(ctx)
	goals := b.verdicts()
	b.print(stdout, goals)
	res := Result{
		At: b.began.UTC(), Seconds: time.Since(b.began).Seconds(), Quick: *quick,
		Machine: b.machine, Rows: b.rows, Goals: goals,
	}
	if err := write(*out, res); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	if *doc != "" {
		if err := document(*doc, res); err != nil {
			fmt.Fprintln(stderr, "bench:", err)
			return 1
		}
	}
	if failed > 0 {
		fmt.Fprintf(stderr, "bench: %d groups failed\n", failed)
		return 1
	}
	return 0
}

// all runs the groups one after the other and returns how many failed. One that
// fails does not hide the figures of the others.
func (b *bench) all(ctx context.Context) (failed int) {
	fail := func(name string, err error) {
		if err != nil {
			failed++
			fmt.Fprintf(b.log, "bench: %s: %v\n", name, err)
		}
	}
	dir, err := os.MkdirTemp("", "cnb-")
	if err != nil {
		fail("scratch directory", err)
		return failed
	}
	defer func() { fail("removing the scratch directory", os.RemoveAll(dir)) }()
	b.dir = dir
	b.machine = describe(ctx)
	for _, g := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"peers", b.peers},
		{"server", b.server},
		{"burst", b.burst},
		{"density", b.density},
		{"records", b.records},
	} {
		if !b.only.MatchString(g.name) || ctx.Err() != nil {
			continue
		}
		began := time.Now()
		fmt.Fprintf(b.log, "bench: %s ...\n", g.name)
		fail(g.name, g.run(ctx))
		fmt.Fprintf(b.log, "bench: %s took %.0f s\n", g.name, time.Since(began).Seconds())
	}
	fail("the time", ctx.Err())
	return failed
}

// n is the number of repetitions: full, or a few in a quick run.
func (b *bench) n(full, quick int) int {
	if b.quick {
		return quick
	}
	return full
}

func (b *bench) print(w io.Writer, goals []Verdict) {
	fmt.Fprintf(w, "\n%s\n\n", b.machine)
	t := tabwriter.NewWriter(w, 2, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "what\twho\tn\tmedian\tp99\tmin\tunit\t")
	for _, r := range b.rows {
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t\n", r.What, r.Who, r.N, short(r.Median), short(r.P99), short(r.Min), r.Unit)
	}
	_ = t.Flush() // the terminal's own trouble
	if len(goals) == 0 {
		return
	}
	fmt.Fprintln(w)
	t = tabwriter.NewWriter(w, 2, 4, 2, ' ', 0)
	fmt.Fprintln(t, "goal\twanted\tmeasured\t")
	for _, g := range goals {
		verdict := "met"
		if !g.Met {
			verdict = "MISSED"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", g.Goal, g.Wanted, g.Measured, verdict)
	}
	_ = t.Flush()
}

func write(path string, res Result) error {
	raw, err := json.MarshalIndent(res, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}
