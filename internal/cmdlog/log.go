package cmdlog

import (
	"container/list"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"

	"crownest.dev/crownest/internal/sandbox"
)

// errAgain says that a segment went away while a reader was on its way to it.
var errAgain = errors.New("segment was dropped meanwhile")

// log is what is known of one log in memory. It can be thrown away whenever
// nobody uses it: load makes it anew from the files.
type log struct {
	id    string
	store *Store

	// Guarded by Store.mu.
	users int
	idle  *list.Element

	// writing is held by whoever changes the files: load, append, seal, drop.
	// It is taken before mu.
	writing sync.Mutex
	loaded  atomic.Bool
	heads   counts // bytes kept in the head files

	mu       sync.Mutex
	segments []*segment // oldest first; only the last one grows
	lastSeq  int64
	total    counts // bytes ever appended
	sealed   bool
	dropped  bool
	changed  chan struct{} // closed at the next change; nil if nobody waits
}

func (l *log) firstPath() string { return l.store.path(l.id) + ".log" }
func (l *log) moreDir() string   { return l.store.path(l.id) + ".d" }
func (l *log) headPath(k kind) string {
	if k == kindStdout {
		return filepath.Join(l.moreDir(), "stdout.head")
	}
	return filepath.Join(l.moreDir(), "stderr.head")
}

// load reads what is on disk. The caller holds writing.
func (l *log) load() error {
	if l.dropped {
		return errGone(l.id)
	}
	if l.loaded.Load() {
		return nil
	}
	paths := []string{l.firstPath()}
	entries, err := os.ReadDir(l.moreDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking for segments of log %s: %w", l.id, err)
	}
	var heads counts
	for _, e := range entries { // sorted: names are of one length
		path := filepath.Join(l.moreDir(), e.Name())
		if segmentName(e.Name()) {
			paths = append(paths, path)
			continue
		}
		fi, err := e.Info()
		if err != nil {
			return fmt.Errorf("looking for the head of log %s: %w", l.id, err)
		}
		switch path {
		case l.headPath(kindStdout):
			heads.stdout = fi.Size()
		case l.headPath(kindStderr):
			heads.stderr = fi.Size()
		}
	}
	var segments []*segment
	for i, path := range paths {
		s, err := openSegment(path)
		switch {
		case err == nil:
			segments = append(segments, s)
		case errors.Is(err, fs.ErrNotExist) && i == 0: // dropped, or never was
		case i == len(paths)-1 && (errors.Is(err, errShort) || errors.Is(err, errCorrupt)):
			// Died while making it, before anything in it was acknowledged.
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("removing a torn segment: %w", err)
			}
		default:
			return fmt.Errorf("opening segment %s: %w", path, err)
		}
	}
	var t tail
	if n := len(segments); n > 0 {
		if t, err = segments[n-1].recover(); err != nil {
			return fmt.Errorf("recovering log %s: %w", l.id, err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segments { // of an earlier load
		l.store.files.forget(s)
	}
	l.heads = heads
	l.segments, l.lastSeq, l.total, l.sealed = segments, t.lastSeq, t.total, t.sealed
	l.loaded.Store(true)
	return nil
}

// ensureLoaded is load for those who do not hold writing.
func (l *log) ensureLoaded() error {
	if l.loaded.Load() {
		return nil // without waiting for an appender who waits for the disk
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.load()
}

// append adds chunks that continue the log. The caller holds writing; only
// holders of writing change what is read here without mu.
func (l *log) append(chunks []sandbox.LogChunk) error {
	next := l.lastSeq + 1
	for len(chunks) > 0 && chunks[0].Seq < next {
		chunks = chunks[1:]
	}
	for i, c := range chunks {
		switch {
		case c.Seq != next+int64(i):
			return fmt.Errorf("log %s: chunk %d follows %d: %w", l.id, c.Seq, next+int64(i)-1, ErrHole)
		case len(c.Data) > MaxChunk:
			return fmt.Errorf("log %s: chunk %d has %d bytes", l.id, c.Seq, len(c.Data))
		case c.Stream != sandbox.Stdout && c.Stream != sandbox.Stderr:
			return fmt.Errorf("log %s: chunk %d: unknown stream %q", l.id, c.Seq, c.Stream)
		}
	}
	if len(chunks) == 0 {
		return nil
	}
	if l.sealed {
		return fmt.Errorf("log %s: chunk %d: %w", l.id, chunks[0].Seq, ErrSealed)
	}
	for len(chunks) > 0 {
		n, err := l.writeSome(chunks)
		if err != nil {
			return err
		}
		chunks = chunks[n:]
	}
	return l.retain()
}

// writeSome writes as many chunks as go into one write and one segment.
func (l *log) writeSome(chunks []sandbox.LogChunk) (int, error) {
	s, made := l.current(chunks[0].Seq)
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	buf := (*bp)[:0]
	if made {
		buf = appendHeader(buf, s.header)
	}
	total, n := l.total, 0
	var index []indexEntry
	for _, c := range chunks {
		if n > 0 && (len(buf)+recordLen+len(c.Data) > cap(buf) || s.size+int64(len(buf)) >= l.store.opts.SegmentBytes) {
			break
		}
		k := kindStdout
		if c.Stream == sandbox.Stderr {
			k = kindStderr
		}
		index = append(index, indexEntry{c.Seq, s.size + int64(len(buf))})
		buf = appendRecord(buf, s.seed, record{seq: c.Seq, at: c.CreatedAt.UnixNano(), kind: k, data: c.Data})
		total.add(k, len(c.Data))
		n++
	}
	if err := l.write(s, made, buf); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if made {
		l.segments = append(l.segments, s)
	}
	for _, e := range index {
		s.note(e.seq, e.off)
	}
	s.size += int64(len(buf))
	l.lastSeq, l.total = chunks[n-1].Seq, total
	l.wake()
	return n, nil
}

// current returns the segment that takes the next record, and whether it is yet
// to be made.
func (l *log) current(seq int64) (s *segment, made bool) {
	path := l.firstPath()
	if n := len(l.segments); n > 0 {
		if s := l.segments[n-1]; s.size < l.store.opts.SegmentBytes {
			return s, false
		}
		path = filepath.Join(l.moreDir(), fmt.Sprintf("%016x", seq))
	}
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // crypto/rand.Read never fails
	s = &segment{path: path, header: header{firstSeq: seq, before: l.total, salt: binary.LittleEndian.Uint64(salt[:])}}
	// The seed is the header's own checksum.
	_, s.seed, _ = parseHeader(appendHeader(nil, s.header))
	return s, true
}

// write puts b at the end of the segment: all of it, or as if it had not been.
func (l *log) write(s *segment, made bool, b []byte) error {
	var f *os.File
	var err error
	if made {
		f, err = l.create(s)
	} else {
		f, err = l.store.files.acquire(s)
	}
	if err != nil {
		return fmt.Errorf("opening a segment of log %s: %w", l.id, err)
	}
	defer l.store.files.release(s)
	if _, err := f.WriteAt(b, s.size); err != nil {
		undo := f.Truncate(s.size)
		if made {
			undo = os.Remove(s.path)
			l.store.files.forget(s)
		}
		if undo != nil {
			// What is on disk is not what is in memory: look again next time.
			l.loaded.Store(false)
		}
		return fmt.Errorf("writing log %s: %w", l.id, err)
	}
	return nil
}

// create makes the file of a segment and the directories it needs.
func (l *log) create(s *segment) (*os.File, error) {
	const flags = os.O_CREATE | os.O_EXCL | os.O_RDWR
	f, err := os.OpenFile(s.path, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		// Asking first would cost every command a call; these are made once.
		if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(s.path, flags, 0o600)
	}
	if err != nil {
		return nil, err
	}
	return l.store.files.adopt(s, f)
}

// retain drops the oldest segments while the log is too big. The limit counts
// what the command wrote; records of a few bytes each are bounded by the files'
// size instead.
func (l *log) retain() error {
	for len(l.segments) > 1 {
		oldest := l.segments[0]
		var size int64
		for _, s := range l.segments {
			size += s.size
		}
		if l.total.minus(oldest.before).sum() <= l.store.opts.MaxBytes && size <= 2*l.store.opts.MaxBytes {
			return nil
		}
		if err := l.keepHead(oldest); err != nil {
			return fmt.Errorf("keeping the head of log %s: %w", l.id, err)
		}
		l.mu.Lock()
		err := os.Remove(oldest.path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			l.segments = l.segments[1:]
			err = nil
		}
		l.mu.Unlock()
		if err != nil {
			return fmt.Errorf("dropping a segment of log %s: %w", l.id, err)
		}
		l.store.files.forget(oldest)
	}
	return nil
}

// keepHead copies what a segment holds of the streams' beginnings to the head
// files. These hold plain bytes, so that however far a copy got before the
// process died, the file's length says what is missing.
func (l *log) keepHead(s *segment) error {
	if !l.holdsHead(s, l.heads) {
		return nil
	}
	var out [2][]byte
	if err := l.headOf(s, l.heads, func(k kind, data []byte) {
		out[k-kindStdout] = append(out[k-kindStdout], data...)
	}); err != nil {
		return err
	}
	for i, b := range out {
		if len(b) == 0 {
			continue
		}
		k := kindStdout + kind(i)
		f, err := os.OpenFile(l.headPath(k), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		n, err := f.Write(b)
		l.heads.add(k, n)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// end returns the counts up to the end of a segment.
func (l *log) end(s *segment) counts {
	for i, t := range l.segments {
		if t == s && i+1 < len(l.segments) {
			return l.segments[i+1].before
		}
	}
	return l.total
}

// holdsHead reports whether a segment holds bytes of a stream's beginning beyond
// those in have.
func (l *log) holdsHead(s *segment, have counts) bool {
	head, end := l.store.opts.HeadBytes, l.end(s)
	return min(end.stdout, head) > max(s.before.stdout, have.stdout) ||
		min(end.stderr, head) > max(s.before.stderr, have.stderr)
}

// headOf calls fn with the pieces of the streams' beginnings that a segment
// holds, without those in have.
func (l *log) headOf(s *segment, have counts, fn func(k kind, data []byte)) error {
	f, err := l.store.files.acquire(s)
	if err != nil {
		return err
	}
	defer l.store.files.release(s)
	at, head := s.before, l.store.opts.HeadBytes
	_, err = scan(f, s.seed, int64(headerLen), s.size, func(r record, _ int64) bool {
		from, upto := at.stdout, have.stdout
		if r.kind == kindStderr {
			from, upto = at.stderr, have.stderr
		}
		at.add(r.kind, len(r.data))
		lo, hi := max(upto-from, 0), min(int64(len(r.data)), head-from)
		if lo < hi {
			fn(r.kind, r.data[lo:hi])
		}
		return at.stdout < head || at.stderr < head
	})
	return err
}

// seal ends the log. The caller holds writing.
func (l *log) seal() error {
	if l.sealed {
		return nil
	}
	rec := sealRecord(l.lastSeq, l.total)
	s, made := l.segmentForSeal()
	var buf []byte
	if made {
		buf = appendHeader(buf, s.header)
	}
	headed := int64(len(buf))
	err := l.write(s, made, appendRecord(buf, s.seed, rec))
	l.mu.Lock()
	defer l.mu.Unlock()
	if made && err == nil {
		s.size = headed
		l.segments = append(l.segments, s)
	}
	// Even if the disk is too full to say so, no more will come.
	l.sealed = true
	l.wake()
	return err
}

// segmentForSeal is current, but a full segment takes the seal too.
func (l *log) segmentForSeal() (*segment, bool) {
	if n := len(l.segments); n > 0 {
		return l.segments[n-1], false
	}
	return l.current(l.lastSeq + 1)
}

// head returns the beginning of both streams. The caller holds writing.
func (l *log) head() (Head, error) {
	limit := l.store.opts.HeadBytes
	var out [2][]byte
	for i := range out {
		k := kindStdout + kind(i)
		if l.heads.of(k == kindStdout, k == kindStderr) == 0 {
			continue
		}
		b, err := os.ReadFile(l.headPath(k))
		if err != nil {
			return Head{}, err
		}
		out[i] = b[:min(int64(len(b)), limit)]
	}
	have := l.heads
	for _, s := range l.segments {
		if !l.holdsHead(s, have) {
			continue
		}
		if err := l.headOf(s, l.heads, func(k kind, data []byte) {
			out[k-kindStdout] = append(out[k-kindStdout], data...)
		}); err != nil {
			return Head{}, err
		}
	}
	h := Head{StdoutBytes: l.total.stdout, StderrBytes: l.total.stderr}
	h.Stdout, h.StdoutTruncated = cutHead(out[0], l.total.stdout)
	h.Stderr, h.StderrTruncated = cutHead(out[1], l.total.stderr)
	return h, nil
}

// wake tells followers of a change. The caller holds mu.
func (l *log) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// drop removes the files. The caller holds writing.
func (l *log) drop() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := os.Remove(l.firstPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(l.moreDir()); err != nil {
		return err
	}
	for _, s := range l.segments {
		l.store.files.forget(s)
	}
	l.segments, l.dropped = nil, true
	l.wake()
	return nil
}

// oldest is the first seq still there, or the first to come. The caller holds mu.
func (l *log) oldest() int64 {
	if len(l.segments) == 0 {
		return l.lastSeq + 1
	}
	return l.segments[0].firstSeq
}

func errGone(id string) error {
	return sandbox.NewError(sandbox.CodeNotFound, "The log of command %s is gone.", id)
}

func (l *log) gap(after int64) error {
	oldest := l.oldest()
	return sandbox.NewError(sandbox.CodeStreamGap,
		"The output after %d is no longer kept; the oldest chunk kept is %d.", after, oldest).
		With("oldestSeq", oldest)
}

// cursor is a reader's place in a log.
type cursor struct {
	next int64 // seq of the chunk wanted, 0 = the oldest there is
	// segment and off say where it begins, once that is known.
	segment *segment
	off     int64
}

// batch reads the chunks from the cursor on that lie in one segment, at most
// limit of them and maxBytes, but at least one, and moves the cursor on. It
// returns nothing at the end of what there is. Only files are read without mu.
func (l *log) batch(c *cursor, limit, maxBytes int) ([]sandbox.LogChunk, error) {
	for {
		l.mu.Lock()
		next := c.next
		if next == 0 {
			next = l.oldest()
		}
		switch {
		case l.dropped:
			l.mu.Unlock()
			return nil, errGone(l.id)
		case next < l.oldest():
			defer l.mu.Unlock()
			return nil, l.gap(next - 1)
		case next > l.lastSeq:
			c.next = next
			l.mu.Unlock()
			return nil, nil
		}
		i := sort.Search(len(l.segments), func(i int) bool { return l.segments[i].firstSeq > next }) - 1
		s := l.segments[i]
		size := s.size
		if c.segment != s {
			c.segment, c.off = s, 0
		}
		from := indexEntry{next, c.off}
		if c.off == 0 {
			from = s.near(next)
		}
		l.mu.Unlock()

		chunks, err := l.readBatch(c, next, from, size, limit, maxBytes)
		if !errors.Is(err, errAgain) {
			return chunks, err
		}
	}
}

// readBatch reads the chunks from seq next on from the cursor's segment, of which
// size bytes are good.
func (l *log) readBatch(c *cursor, next int64, from indexEntry, size int64, limit, maxBytes int) ([]sandbox.LogChunk, error) {
	s := c.segment
	f, err := l.store.files.acquire(s)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errAgain // the next look at the log tells why
	}
	if err != nil {
		return nil, fmt.Errorf("opening a segment of log %s: %w", l.id, err)
	}
	defer l.store.files.release(s)

	seq, off := from.seq, from.off
	if seq < next {
		var found []indexEntry
		off, err = scan(f, s.seed, off, size, func(r record, off int64) bool {
			if r.seq != seq || r.seq == next {
				return false
			}
			seq++
			found = append(found, indexEntry{r.seq, off})
			return true
		})
		if err != nil || seq != next {
			return nil, fmt.Errorf("looking for chunk %d of log %s: %w", next, l.id, errors.Join(err, errCorrupt))
		}
		l.mu.Lock()
		for _, e := range found {
			s.note(e.seq, e.off)
		}
		l.mu.Unlock()
	}

	// The chunks alias this buffer, so each batch has its own; it is just as big
	// as the caller wants, but holds the largest record.
	want := min(max(int64(maxBytes)+int64(recordLen), int64(MaxChunk+recordLen)), readSize, size-off)
	buf := make([]byte, want)
	if _, err := f.ReadAt(buf, off); err != nil {
		return nil, fmt.Errorf("reading log %s: %w", l.id, err)
	}
	var chunks []sandbox.LogChunk
	for read, sum := 0, 0; read < len(buf) && len(chunks) < limit; {
		r, n, err := parseRecord(buf[read:], s.seed)
		if errors.Is(err, errShort) && len(chunks) > 0 {
			break
		}
		if err == nil && (r.seq != next || r.kind == kindSeal) {
			err = errCorrupt
		}
		if err != nil {
			return nil, fmt.Errorf("reading chunk %d of log %s: %w", next, l.id, err)
		}
		if sum += len(r.data); sum > maxBytes && len(chunks) > 0 {
			break
		}
		chunks = append(chunks, r.chunk(l.id))
		read += n
		off += int64(n)
		next++
	}
	c.next, c.off = next, off
	return chunks, nil
}

// segmentName reports whether a file in a log's directory is a segment.
func segmentName(name string) bool {
	_, err := strconv.ParseUint(name, 16, 63)
	return len(name) == 16 && err == nil
}
