package cmdlog

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"
	"time"

	"crownest.dev/crownest/internal/sandbox"
)

// BenchmarkStream is the way of a big output: an appender of 64 KiB chunks and
// one follower that reads them all.
func BenchmarkStream(b *testing.B) {
	s := open(b, b.TempDir(), Options{MaxBytes: 1 << 30})
	data := bytes.Repeat([]byte("0123456789abcdef"), MaxChunk/16)
	b.SetBytes(MaxChunk)
	began := cpuTime(b)
	defer func() { b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N), "cpu-ns/op") }()
	done := make(chan error)
	go func() {
		done <- s.Follow(b.Context(), id, -1, func([]sandbox.LogChunk) error { return nil })
	}()
	seq := int64(0)
	for b.Loop() {
		seq++
		err := s.Append(b.Context(), id, []sandbox.LogChunk{{CommandID: id, Seq: seq, Stream: sandbox.Stdout, Data: data, CreatedAt: time.Now()}})
		if err != nil {
			b.Fatal(err)
		}
	}
	if _, err := s.Seal(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// BenchmarkSmallCommand is what a command that prints one line costs.
func BenchmarkSmallCommand(b *testing.B) {
	s := open(b, b.TempDir(), Options{})
	began := cpuTime(b)
	defer func() { b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N), "cpu-ns/op") }()
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprintf("cmd_%020d%06x", i, i*7919)
		if err := s.Append(b.Context(), id, []sandbox.LogChunk{chunk(id, 1, sandbox.Stdout, "hello\n")}); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Seal(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}

// cpuTime tells what a benchmark costs on a machine that others use too.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
