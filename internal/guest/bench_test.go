//go:build linux

package guest_test

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/sandbox"
)

func BenchmarkPing(b *testing.B) {
	r := newRig(b)
	for b.Loop() {
		if err := r.Ping(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRun(b *testing.B) {
	for _, command := range []string{"true", "echo hi", "/bin/true"} {
		b.Run(command, func(b *testing.B) {
			r := newRig(b)
			for b.Loop() {
				res, err := r.run(guest.StartRequest{Command: command})
				if err != nil || res.exit.Code != 0 {
					b.Fatal(res, err)
				}
			}
		})
	}
}

// BenchmarkRunAtRest leaves the sandbox the time to get a shell ready, as commands
// of people and agents do.
func BenchmarkRunAtRest(b *testing.B) {
	for _, bm := range []struct{ name, command, env string }{
		{"waiting", "true", "X=1"}, {"waiting exec", "/bin/true", "X=1"}, {"fresh", "true", "LC_X=1"},
	} {
		b.Run(bm.name, func(b *testing.B) {
			r := newRig(b)
			for b.Loop() {
				b.StopTimer()
				time.Sleep(150 * time.Millisecond)
				b.StartTimer()
				res, err := r.run(guest.StartRequest{Command: bm.command, Env: []string{bm.env}})
				if err != nil || res.exit.Code != 0 {
					b.Fatal(res, err)
				}
			}
		})
	}
}

// BenchmarkFirstByte measures from a write in the sandbox to its arrival.
func BenchmarkFirstByte(b *testing.B) {
	r := newRig(b)
	run := r.start(guest.StartRequest{Command: "while :; do sleep 0.02; echo ${EPOCHREALTIME/./}; done"})
	var total, best time.Duration
	best = time.Hour
	n := 0
	for b.Loop() {
		<-run.seen
		now := time.Now()
		out := strings.Fields(run.output())
		at, err := strconv.ParseInt(out[len(out)-1], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		took := now.Sub(time.UnixMicro(at))
		total += took
		best = min(best, took)
		n++
	}
	b.ReportMetric(float64(total.Microseconds())/float64(n), "µs/first-byte")
	b.ReportMetric(float64(best.Microseconds()), "µs/best")
}

func BenchmarkOutput(b *testing.B) {
	for _, size := range []int{65536, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			r := newRig(b)
			const total = 64 << 20
			b.SetBytes(total)
			for b.Loop() {
				p, err := r.Start(b.Context(), guest.StartRequest{ID: sandbox.NewID("cmd"), Cwd: "/workspace",
					Command: fmt.Sprintf("dd if=/dev/zero bs=%d count=%d status=none", size, total/size)})
				if err != nil {
					b.Fatal(err)
				}
				n := 0
				exit, err := p.Output(b.Context(), 0, func(chunks []sandbox.LogChunk) error {
					for _, c := range chunks {
						n += len(c.Data)
					}
					return nil
				})
				if err != nil || exit.Code != 0 || n != total {
					b.Fatal(n, exit, err)
				}
				if err := r.Forget(b.Context(), p.ID()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// zeros is an endless file.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func BenchmarkFile(b *testing.B) {
	const total = 100 << 20
	r := newRig(b)
	write := func() {
		_, err := r.Write(b.Context(), guest.WriteRequest{Path: "f", Overwrite: true, Size: total, Max: total}, io.LimitReader(zeros{}, total))
		if err != nil {
			b.Fatal(err)
		}
	}
	b.Run("write", func(b *testing.B) {
		b.SetBytes(total)
		for b.Loop() {
			write()
		}
	})
	b.Run("read", func(b *testing.B) {
		write()
		b.SetBytes(total)
		for b.Loop() {
			f, err := r.Open(b.Context(), "f", 0)
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, f); err != nil || n != total {
				b.Fatal(n, err)
			}
			if err := f.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
