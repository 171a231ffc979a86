package cmdlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"crownest.dev/crownest/internal/sandbox"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("CMDLOG_CRASH_DIR"); dir != "" {
		writeUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

// small makes logs of many segments out of little output.
var small = Options{MaxBytes: 64 << 10, SegmentBytes: 4 << 10, HeadBytes: 6 << 10, OpenFiles: 4, CachedLogs: 4}

func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func chunk(id string, seq int64, stream sandbox.Stream, data string) sandbox.LogChunk {
	return sandbox.LogChunk{CommandID: id, Seq: seq, Stream: stream, Data: []byte(data), CreatedAt: time.UnixMilli(1_700_000_000_000 + seq).UTC()}
}

// output is a reproducible series of n chunks over both streams.
func output(id string, n int, seed uint64) []sandbox.LogChunk {
	r := rand.New(rand.NewPCG(seed, 0))
	out := make([]sandbox.LogChunk, n)
	for i := range out {
		stream := sandbox.Stdout
		if r.IntN(4) == 0 {
			stream = sandbox.Stderr
		}
		line := fmt.Sprintf("%d %s\n", i+1, strings.Repeat("é", r.IntN(200)))
		out[i] = chunk(id, int64(i+1), stream, line)
	}
	return out
}

func appendAll(t testing.TB, s *Store, chunks []sandbox.LogChunk, batch int) {
	t.Helper()
	for len(chunks) > 0 {
		n := min(batch, len(chunks))
		if err := s.Append(t.Context(), chunks[0].CommandID, chunks[:n]); err != nil {
			t.Fatal(err)
		}
		chunks = chunks[n:]
	}
}

func readAll(t testing.TB, s *Store, id string, after int64) []sandbox.LogChunk {
	t.Helper()
	var all []sandbox.LogChunk
	for {
		page, more, err := s.Read(t.Context(), id, after, 7, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page...)
		if !more {
			return all
		}
		after = page[len(page)-1].Seq
	}
}

func content(chunks []sandbox.LogChunk, streams ...sandbox.Stream) string {
	var b strings.Builder
	for _, c := range chunks {
		for _, s := range streams {
			if c.Stream == s {
				b.Write(c.Data)
			}
		}
	}
	return b.String()
}

// diffChunks is cmp.Diff for long logs: it looks closely only where they differ.
func diffChunks(want, got []sandbox.LogChunk) string {
	for i := range min(len(want), len(got)) {
		w, g := want[i], got[i]
		if w.CommandID != g.CommandID || w.Seq != g.Seq || w.Stream != g.Stream || !w.CreatedAt.Equal(g.CreatedAt) || !bytes.Equal(w.Data, g.Data) {
			return cmp.Diff(w, g)
		}
	}
	if len(want) != len(got) {
		return fmt.Sprintf("%d chunks, want %d", len(got), len(want))
	}
	return ""
}

const id = "cmd_00000000000000000000000001"

func TestAppendReadAndReopen(t *testing.T) {
	want := output(id, 300, 1)
	for _, batch := range []int{1, 3, 300} {
		t.Run(fmt.Sprint("batch ", batch), func(t *testing.T) {
			dir := t.TempDir()
			o := small
			o.MaxBytes = 1 << 30 // keep all
			o.SegmentBytes = 4 << 10
			s := open(t, dir, o)
			appendAll(t, s, want[:200], batch)
			if err := s.Append(t.Context(), id, want[150:220]); err != nil { // overlaps
				t.Fatal(err)
			}
			_ = s.Close()
			s = open(t, dir, o)
			appendAll(t, s, want[220:], batch)
			if last, err := s.Last(t.Context(), id); err != nil || last != 300 {
				t.Fatalf("Last = %d, %v", last, err)
			}
			for _, after := range []int64{-1, 0, 1, 150, 299, 300} {
				got := readAll(t, s, id, after)
				if diff := diffChunks(want[max(after, 0):], got); diff != "" {
					t.Fatalf("after %d: %s", after, diff)
				}
			}
			if got, more, err := s.Read(t.Context(), id, 1000, 10, 10); len(got) > 0 || more || err != nil {
				t.Fatalf("behind the end: %v %v %v", got, more, err)
			}
		})
	}
}

func TestReadLimits(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	for i := range 10 {
		appendAll(t, s, []sandbox.LogChunk{chunk(id, int64(i+1), sandbox.Stdout, strings.Repeat("x", 1000))}, 1)
	}
	for _, tc := range []struct {
		after           int64
		limit, maxBytes int
		want            int
		more            bool
	}{
		{-1, 3, 1 << 20, 3, true},
		{-1, 10, 1 << 20, 10, false},
		{7, 3, 1 << 20, 3, false},
		{-1, 10, 2500, 2, true},
		{-1, 10, 2000, 2, true},
		{-1, 10, 1, 1, true},
		{9, 10, 1, 1, false},
	} {
		got, more, err := s.Read(t.Context(), id, tc.after, tc.limit, tc.maxBytes)
		if err != nil || len(got) != tc.want || more != tc.more {
			t.Errorf("Read(%d, %d, %d) = %d chunks, %v, %v; want %d, %v", tc.after, tc.limit, tc.maxBytes, len(got), more, err, tc.want, tc.more)
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	appendAll(t, s, output(id, 3, 1), 3)
	for name, chunks := range map[string][]sandbox.LogChunk{
		"hole":          {chunk(id, 5, sandbox.Stdout, "x")},
		"hole inside":   {chunk(id, 4, sandbox.Stdout, "x"), chunk(id, 6, sandbox.Stdout, "x")},
		"too big":       {chunk(id, 4, sandbox.Stdout, strings.Repeat("x", MaxChunk+1))},
		"unknown steam": {chunk(id, 4, "stdin", "x")},
	} {
		if err := s.Append(t.Context(), id, chunks); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if last, _ := s.Last(t.Context(), id); last != 3 {
		t.Errorf("Last = %d after refused chunks", last)
	}
	for _, bad := range []string{"", "x", "../../etc/passwd", "cmd_..", "cmd/x", "cmd_\x00aa", strings.Repeat("a", 65)} {
		if err := s.Append(t.Context(), bad, output(bad, 1, 1)); err == nil {
			t.Errorf("id %q: accepted", bad)
		}
	}
}

func TestSealAndHead(t *testing.T) {
	for name, tc := range map[string]struct {
		chunks []sandbox.LogChunk
		want   Head
	}{
		"nothing": {nil, Head{}},
		"little": {
			[]sandbox.LogChunk{chunk(id, 1, sandbox.Stdout, "out"), chunk(id, 2, sandbox.Stderr, "err\xff"), chunk(id, 3, sandbox.Stdout, "put")},
			Head{Stdout: "output", Stderr: "err\xff", StdoutBytes: 6, StderrBytes: 4},
		},
		"exactly the limit": {
			[]sandbox.LogChunk{chunk(id, 1, sandbox.Stdout, strings.Repeat("x", 6<<10))},
			Head{Stdout: strings.Repeat("x", 6<<10), StdoutBytes: 6 << 10},
		},
		"cut inside a character": {
			[]sandbox.LogChunk{chunk(id, 1, sandbox.Stdout, strings.Repeat("x", 6<<10-2)+"€uro")},
			Head{Stdout: strings.Repeat("x", 6<<10-2), StdoutBytes: 6<<10 + 4, StdoutTruncated: true},
		},
		"cut behind a character": {
			[]sandbox.LogChunk{chunk(id, 1, sandbox.Stderr, strings.Repeat("x", 6<<10-3)+"€"), chunk(id, 2, sandbox.Stderr, "uro")},
			Head{Stderr: strings.Repeat("x", 6<<10-3) + "€", StderrBytes: 6<<10 + 3, StderrTruncated: true},
		},
		"cut inside garbage": {
			[]sandbox.LogChunk{chunk(id, 1, sandbox.Stdout, strings.Repeat("\x80", 7<<10))},
			Head{Stdout: strings.Repeat("\x80", 6<<10), StdoutBytes: 7 << 10, StdoutTruncated: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, small)
			appendAll(t, s, tc.chunks, 2)
			for range 2 { // repeatable, also over a restart
				for range 2 {
					got, err := s.Seal(t.Context(), id)
					if err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(tc.want, got); diff != "" {
						t.Fatal(diff)
					}
				}
				_ = s.Close()
				s = open(t, dir, small)
			}
			if err := s.Follow(t.Context(), id, int64(len(tc.chunks)), func([]sandbox.LogChunk) error { return nil }); err != nil {
				t.Fatal("Follow of a finished log:", err)
			}
			err := s.Append(t.Context(), id, []sandbox.LogChunk{chunk(id, int64(len(tc.chunks)+1), sandbox.Stdout, "late")})
			if !errors.Is(err, ErrSealed) {
				t.Fatalf("Append after Seal: %v", err)
			}
			if err := s.Append(t.Context(), id, tc.chunks); err != nil {
				t.Fatal("repeated chunks after Seal:", err)
			}
		})
	}
}

func TestRetention(t *testing.T) {
	want := output(id, 2000, 7)
	out, errs := content(want, sandbox.Stdout), content(want, sandbox.Stderr)
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, small)
			for i := 0; i < len(want); i += 50 {
				appendAll(t, s, want[i:i+50], 5)
				if restart {
					_ = s.Close()
					s = open(t, dir, small)
				}
			}
			head, err := s.Seal(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			wantOut, _ := cutHead([]byte(out[:small.HeadBytes]), int64(len(out)))
			wantErr, _ := cutHead([]byte(errs[:small.HeadBytes]), int64(len(errs)))
			if diff := cmp.Diff(Head{Stdout: wantOut, Stderr: wantErr, StdoutTruncated: true, StderrTruncated: true,
				StdoutBytes: int64(len(out)), StderrBytes: int64(len(errs))}, head); diff != "" {
				t.Fatal(diff)
			}

			kept := readAll(t, s, id, -1)
			oldest := kept[0].Seq
			if diff := diffChunks(want[oldest-1:], kept); diff != "" {
				t.Fatal(diff)
			}
			size := int64(len(content(kept, sandbox.Stdout, sandbox.Stderr)))
			if size > small.MaxBytes || size < small.MaxBytes-small.SegmentBytes-1000 {
				t.Errorf("kept %d of %d bytes", size, small.MaxBytes)
			}
			if n, err := s.Size(t.Context(), id, true, true); n != size || err != nil {
				t.Errorf("Size = %d, %v; want %d", n, err, size)
			}
			for _, after := range []int64{0, oldest - 2} {
				_, _, err = s.Read(t.Context(), id, after, 1, 1)
				var e *sandbox.Error
				if !errors.As(err, &e) || e.Code != sandbox.CodeStreamGap || e.Details["oldestSeq"] != oldest {
					t.Errorf("Read after %d: %v", after, err)
				}
				err = s.Follow(t.Context(), id, after, func([]sandbox.LogChunk) error { return nil })
				if !sandbox.CodeStreamGap.Is(err) {
					t.Errorf("Follow after %d: %v", after, err)
				}
			}
			if got, _, err := s.Read(t.Context(), id, oldest-1, 1, 1); err != nil || got[0].Seq != oldest {
				t.Errorf("Read of the oldest: %v, %v", got, err)
			}
			if n := len(filesBelow(t, dir)); n > 22 {
				t.Errorf("%d files on disk", n)
			}
		})
	}
}

// A log of tiny chunks takes far more disk than it holds output: that is bounded too.
func TestRetentionOfTinyChunks(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small)
	chunks := make([]sandbox.LogChunk, 20_000)
	for i := range chunks {
		chunks[i] = chunk(id, int64(i+1), sandbox.Stdout, "x")
	}
	appendAll(t, s, chunks, 1000)
	var size int64
	for _, f := range filesBelow(t, dir) {
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size += fi.Size()
	}
	if size > 2*small.MaxBytes+small.HeadBytes+small.SegmentBytes+300<<10 {
		t.Errorf("%d bytes on disk", size)
	}
}

func filesBelow(t testing.TB, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			paths = append(paths, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestOpen(t *testing.T) {
	want := output(id, 400, 3)
	for name, sealed := range map[string]bool{"live": false, "sealed": true} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), small)
			appendAll(t, s, want, 9)
			if sealed {
				if _, err := s.Seal(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			kept := readAll(t, s, id, -1)
			for _, streams := range [][]sandbox.Stream{{sandbox.Stdout}, {sandbox.Stderr}, {sandbox.Stdout, sandbox.Stderr}} {
				all := content(kept, streams...)
				stdout, stderr := streams[0] == sandbox.Stdout, streams[len(streams)-1] == sandbox.Stderr
				for _, r := range [][2]int64{{0, -1}, {0, 0}, {0, 5}, {10_000, -1}, {9_999, 2}, {int64(len(all)) - 1, -1}, {int64(len(all)), -1}, {1 << 40, 10}} {
					rc, err := s.Open(t.Context(), id, stdout, stderr, r[0], r[1])
					if err != nil {
						t.Fatal(err)
					}
					got, err := io.ReadAll(rc)
					if err != nil {
						t.Fatal(err)
					}
					_ = rc.Close()
					w := all[min(r[0], int64(len(all))):]
					if r[1] >= 0 {
						w = w[:min(r[1], int64(len(w)))]
					}
					if string(got) != w {
						t.Errorf("streams %v range %v: %d bytes, want %d", streams, r, len(got), len(w))
					}
				}
			}
		})
	}
}

// A download keeps what it began with, however much the command writes meanwhile.
func TestOpenIsASnapshot(t *testing.T) {
	s := open(t, t.TempDir(), small)
	want := output(id, 2000, 5)
	appendAll(t, s, want[:300], 10)
	all := content(readAll(t, s, id, -1), sandbox.Stdout, sandbox.Stderr)
	rc, err := s.Open(t.Context(), id, true, true, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, s, want[300:], 10)
	got, err := io.ReadAll(rc)
	if err != nil || string(got) != all {
		t.Fatalf("%d bytes, %v; want %d", len(got), err, len(all))
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(s.pins); n != 0 {
		t.Errorf("%d pins left", n)
	}
}

func TestFollowersSeeEverything(t *testing.T) {
	s := open(t, t.TempDir(), Options{SegmentBytes: 64 << 10})
	want := output(id, 3000, 11)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			after := int64(i * 100)
			if i == 0 {
				after = -1
			}
			var got []sandbox.LogChunk
			err := s.Follow(t.Context(), id, after, func(c []sandbox.LogChunk) error {
				got = append(got, c...)
				return nil
			})
			if err != nil {
				t.Errorf("follower %d: %v", i, err)
			}
			if diff := diffChunks(want[max(after, 0):], got); diff != "" {
				t.Errorf("follower %d: %s", i, diff)
			}
		})
	}
	appendAll(t, s, want, 3)
	if _, err := s.Seal(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

func TestFollowEnds(t *testing.T) {
	stop := errors.New("stop")
	for name, tc := range map[string]struct {
		act  func(s *Store, cancel context.CancelFunc)
		fn   error
		want func(error) bool
	}{
		"sealed":   {func(s *Store, _ context.CancelFunc) { _, _ = s.Seal(context.Background(), id) }, nil, func(err error) bool { return err == nil }},
		"canceled": {func(_ *Store, cancel context.CancelFunc) { cancel() }, nil, func(err error) bool { return errors.Is(err, context.Canceled) }},
		"closed":   {func(s *Store, _ context.CancelFunc) { _ = s.Close() }, nil, func(err error) bool { return errors.Is(err, ErrClosed) }},
		"dropped":  {func(s *Store, _ context.CancelFunc) { _ = s.Drop(context.Background(), id) }, nil, sandbox.CodeNotFound.Is},
		"fn fails": {func(s *Store, _ context.CancelFunc) {
			_ = s.Append(context.Background(), id, output(id, 1, 1))
		}, stop, func(err error) bool { return errors.Is(err, stop) }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				s := open(t, dir, small)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error)
				go func() { done <- s.Follow(ctx, id, 0, func([]sandbox.LogChunk) error { return tc.fn }) }()
				synctest.Wait() // it waits for output
				tc.act(s, cancel)
				if err := <-done; !tc.want(err) {
					t.Errorf("Follow = %v", err)
				}
			})
		})
	}
}

// A follower that stands still does not stop the appender, and learns that it was
// overtaken.
func TestSlowFollowerIsOvertaken(t *testing.T) {
	s := open(t, t.TempDir(), small)
	want := output(id, 2000, 5)
	started, resume := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		first := true
		done <- s.Follow(t.Context(), id, -1, func([]sandbox.LogChunk) error {
			if first {
				first = false
				close(started)
				<-resume
			}
			return nil
		})
	}()
	appendAll(t, s, want[:1], 1)
	<-started
	appendAll(t, s, want[1:], 10)
	close(resume)
	if err := <-done; !sandbox.CodeStreamGap.Is(err) {
		t.Fatalf("Follow = %v", err)
	}
}

func TestDropAndIDs(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small)
	var ids []string
	for i := range 10 {
		ids = append(ids, fmt.Sprintf("cmd_%026d", i))
		appendAll(t, s, output(ids[i], 1+i*100, 5), 50)
	}
	list := func() (got []string) {
		if err := s.IDs(t.Context(), func(id string) error { got = append(got, id); return nil }); err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := list()
	slices.Sort(got)
	if diff := cmp.Diff(ids, got); diff != "" {
		t.Fatal(diff)
	}
	for _, id := range ids {
		for range 2 {
			if err := s.Drop(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if last, err := s.Last(t.Context(), id); last != 0 || err != nil {
			t.Fatalf("Last = %d, %v after Drop", last, err)
		}
	}
	if got = list(); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
	if left := filesBelow(t, dir); len(left) > 0 {
		t.Errorf("left on disk: %v", left)
	}
	appendAll(t, s, output(ids[0], 2, 1), 1) // a new log under an old name
	if last, err := s.Last(t.Context(), ids[0]); last != 2 || err != nil {
		t.Fatalf("Last = %d, %v", last, err)
	}
}

func TestClosedStoreRefuses(t *testing.T) {
	s := open(t, t.TempDir(), small)
	appendAll(t, s, output(id, 5, 1), 1)
	_ = s.Close()
	if err := s.Append(t.Context(), id, output(id, 6, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("Append = %v", err)
	}
	if _, _, err := s.Read(t.Context(), id, -1, 1, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("Read = %v", err)
	}
}

// However many logs there are, few stay in memory and few files stay open.
func TestBounds(t *testing.T) {
	s := open(t, t.TempDir(), small)
	for i := range 50 {
		name := fmt.Sprintf("cmd_%026d", i)
		appendAll(t, s, output(name, 100, 5), 50)
		if len(s.logs) > small.CachedLogs || s.files.idle.Len() > small.OpenFiles {
			t.Fatalf("%d logs in memory, %d files open", len(s.logs), s.files.idle.Len())
		}
	}
	for i := range 50 {
		if got := readAll(t, s, fmt.Sprintf("cmd_%026d", i), -1); len(got) != 100 {
			t.Fatalf("log %d has %d chunks", i, len(got))
		}
	}
	if n := openFiles(t, s.dir); n > small.OpenFiles {
		t.Errorf("%d files open", n)
	}
}

// openFiles counts this process's open files below dir.
func openFiles(t testing.TB, dir string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc:", err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, dir) {
			n++
		}
	}
	return n
}

// A write that fails half way leaves no trace.
func TestFullDisk(t *testing.T) {
	s := open(t, t.TempDir(), small)
	appendAll(t, s, output(id, 3, 1), 1)
	l := s.logs[id]
	seg := l.segments[0]
	// A file that takes no writes stands in for a disk that takes no more.
	s.files.forget(seg)
	ro, err := os.Open(seg.path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.files.adopt(seg, ro); err != nil {
		t.Fatal(err)
	}
	s.files.release(seg)
	want := output(id, 6, 1)
	if err := s.Append(t.Context(), id, want); err == nil {
		t.Fatal("Append succeeded on a file that cannot be written")
	}
	s.files.forget(seg)
	if err := s.Append(t.Context(), id, want); err != nil {
		t.Fatal(err)
	}
	if diff := diffChunks(want, readAll(t, s, id, -1)); diff != "" {
		t.Fatal(diff)
	}
}

func TestRecoveryCutsTornTail(t *testing.T) {
	want := output(id, 20, 9)
	whole := t.TempDir()
	o := Options{}
	s := open(t, whole, o)
	appendAll(t, s, want, 1)
	_ = s.Close()
	file := filesBelow(t, whole)[0]
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rel, _ := filepath.Rel(whole, file)
	for cut := len(b); cut >= 0; cut -= 37 {
		for _, junk := range []string{"", "junk", strings.Repeat("\x00", 100)} {
			dir := t.TempDir()
			path := filepath.Join(dir, rel)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, append(bytes.Clone(b[:cut]), junk...), 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, dir, o)
			last, err := s.Last(t.Context(), id)
			if err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			if diff := diffChunks(want[:last], readAll(t, s, id, -1)); diff != "" {
				t.Fatalf("cut at %d: %s", cut, diff)
			}
			if err := s.Append(t.Context(), id, want); err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
			s = open(t, dir, o)
			if diff := diffChunks(want, readAll(t, s, id, -1)); diff != "" {
				t.Fatalf("cut at %d: %s", cut, diff)
			}
			_ = s.Close()
		}
	}
}

// Output that looks like a record of the log, even like its end, is only output.
func TestOutputCannotForgeRecords(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	forged := appendRecord(nil, 0, sealRecord(99, counts{1, 1}))
	appendAll(t, s, []sandbox.LogChunk{chunk(id, 1, sandbox.Stdout, string(forged))}, 1)
	_ = s.Close()
	s = open(t, dir, Options{})
	if last, err := s.Last(t.Context(), id); last != 1 || err != nil {
		t.Fatalf("Last = %d, %v", last, err)
	}
}
