package cmdlog

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"crownest.dev/crownest/internal/sandbox"
)

var (
	// ErrClosed says that the store is closed.
	ErrClosed = errors.New("command logs are closed")
	// ErrHole says that chunks do not continue the log.
	ErrHole = errors.New("chunks leave a hole")
	// ErrSealed says that a log that was ended got more chunks.
	ErrSealed = errors.New("log is sealed")
)

// Options bounds what a Store keeps. The zero value means the defaults.
type Options struct {
	// MaxBytes of output are kept per command, in the last segments. Default 64 MiB.
	MaxBytes int64
	// SegmentBytes is the size of a segment, what retention drops at a time.
	// Default 4 MiB, at most a quarter of MaxBytes.
	SegmentBytes int64
	// HeadBytes of each stream are kept whatever is dropped. Default 1 MiB.
	HeadBytes int64
	// OpenFiles is how many files stay open while nobody uses them. Default 128.
	OpenFiles int
	// CachedLogs is how many logs stay known while nobody uses them. Default 1,024.
	CachedLogs int
}

func (o *Options) setDefaults() {
	setDefault(&o.MaxBytes, 64<<20)
	setDefault(&o.SegmentBytes, 4<<20)
	setDefault(&o.HeadBytes, 1<<20)
	setDefault(&o.OpenFiles, 128)
	setDefault(&o.CachedLogs, 1024)
	o.SegmentBytes = max(1, min(o.SegmentBytes, o.MaxBytes/4))
}

func setDefault[T int | int64](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// pinnedDownloads bounds the downloads of logs that still grow: each holds the
// files it reads open, since retention may remove them at any moment.
const pinnedDownloads = 128

// pinPatience is how long a download waits for its turn among those.
const pinPatience = time.Second

// followBatch bounds what a follower gets at a time.
const followBatch = 256 << 10

// buffers are for putting records together; each holds a few of the largest.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, 256<<10)
	return &b
}}

// Store keeps the logs below one directory, which must belong to it alone.
type Store struct {
	dir   string
	opts  Options
	files *files
	pins  chan struct{}
	done  chan struct{} // closed by Close

	mu     sync.Mutex
	logs   map[string]*log
	idle   *list.List // *log that nobody uses, the one unused longest first
	closed bool
}

var _ Logs = (*Store)(nil)

// Open returns the store of a directory, which it makes if need be.
func Open(dir string, opts Options) (*Store, error) {
	opts.setDefaults()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of the command logs: %w", err)
	}
	return &Store{
		dir: dir, opts: opts,
		files: newFiles(opts.OpenFiles),
		pins:  make(chan struct{}, pinnedDownloads),
		done:  make(chan struct{}),
		logs:  map[string]*log{},
		idle:  list.New(),
	}, nil
}

// Close closes all files and ends the followers with ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.done)
		s.files.close()
	}
	return nil
}

// path is where the log's files are, without their extensions. They are spread
// over 256 directories: few enough that they are soon all there and a file system
// keeps them together (1,024 made each new file five times as expensive on ext4),
// enough for a million logs.
func (s *Store) path(id string) string {
	return filepath.Join(s.dir, fmt.Sprintf("%02x", byte(crc32.ChecksumIEEE([]byte(id)))), id)
}

// validID keeps everything out that could lead elsewhere in the file system.
func validID(id string) bool {
	if len(id) < 3 || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// use returns the log, loaded, until done is called.
func (s *Store) use(ctx context.Context, id string) (l *log, done func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if !validID(id) {
		return nil, nil, fmt.Errorf("%q cannot name a command log", id)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, nil, ErrClosed
	}
	l = s.logs[id]
	if l == nil {
		l = &log{id: id, store: s}
		s.logs[id] = l
	}
	if l.idle != nil {
		s.idle.Remove(l.idle)
		l.idle = nil
	}
	l.users++
	s.mu.Unlock()
	if err := l.ensureLoaded(); err != nil {
		s.unuse(l)
		return nil, nil, err
	}
	return l, func() { s.unuse(l) }, nil
}

func (s *Store) unuse(l *log) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.users--; l.users > 0 || s.logs[l.id] != l {
		return
	}
	l.idle = s.idle.PushBack(l)
	for s.idle.Len() > s.opts.CachedLogs {
		old := s.idle.Remove(s.idle.Front()).(*log)
		old.idle = nil
		delete(s.logs, old.id)
		for _, seg := range old.segments { // nobody uses it, so nobody changes it
			s.files.forget(seg)
		}
	}
}

// Append implements Logs.
func (s *Store) Append(ctx context.Context, commandID string, chunks []sandbox.LogChunk) error {
	l, done, err := s.use(ctx, commandID)
	if err != nil {
		return err
	}
	defer done()
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := l.load(); err != nil {
		return err
	}
	return l.append(chunks)
}

// Last implements Logs.
func (s *Store) Last(ctx context.Context, commandID string) (int64, error) {
	l, done, err := s.use(ctx, commandID)
	if err != nil {
		return 0, err
	}
	defer done()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastSeq, nil
}

// Seal implements Logs. It may be repeated. A log without any output is written
// too, so that followers know of its end after a restart.
func (s *Store) Seal(ctx context.Context, commandID string) (Head, error) {
	l, done, err := s.use(ctx, commandID)
	if err != nil {
		return Head{}, err
	}
	defer done()
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := l.load(); err != nil {
		return Head{}, err
	}
	sealed := l.seal()
	h, err := l.head()
	for _, seg := range l.segments {
		s.files.forget(seg) // what is finished is rarely read
	}
	if err != nil {
		err = fmt.Errorf("reading the head of log %s: %w", commandID, err)
	}
	return h, errors.Join(sealed, err)
}

// Read implements Logs.
func (s *Store) Read(ctx context.Context, commandID string, afterSeq int64, limit, maxBytes int) ([]sandbox.LogChunk, bool, error) {
	l, done, err := s.use(ctx, commandID)
	if err != nil {
		return nil, false, err
	}
	defer done()
	c := cursor{next: afterSeq + 1}
	var all []sandbox.LogChunk
	for len(all) < limit && ctx.Err() == nil {
		chunks, err := l.batch(&c, limit-len(all), maxBytes)
		if err != nil {
			if len(all) > 0 {
				break // overtaken: what was read is good, the next call tells
			}
			return nil, false, err
		}
		if len(chunks) == 0 {
			return all, false, nil
		}
		for i := range chunks {
			if maxBytes -= len(chunks[i].Data); maxBytes < 0 && len(all) > 0 {
				return all, true, nil
			}
			all = append(all, chunks[i])
		}
		if maxBytes <= 0 {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return all, c.next <= l.lastSeq, nil
}

// Follow implements Logs. The chunks stay valid after fn returned.
func (s *Store) Follow(ctx context.Context, commandID string, afterSeq int64, fn func([]sandbox.LogChunk) error) error {
	l, done, err := s.use(ctx, commandID)
	if err != nil {
		return err
	}
	defer done()
	c := cursor{next: afterSeq + 1}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunks, err := l.batch(&c, followBatch, followBatch)
		if err != nil {
			return err
		}
		if len(chunks) > 0 {
			if err := fn(chunks); err != nil {
				return err
			}
			continue
		}
		l.mu.Lock()
		if c.next <= l.lastSeq || l.dropped {
			l.mu.Unlock()
			continue
		}
		if l.sealed {
			l.mu.Unlock()
			return nil
		}
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return ErrClosed
		}
	}
}

// Size implements Logs.
func (s *Store) Size(ctx context.Context, commandID string, stdout, stderr bool) (int64, error) {
	l, done, err := s.use(ctx, commandID)
	if err != nil {
		return 0, err
	}
	defer done()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segments) == 0 {
		return 0, nil
	}
	return l.total.minus(l.segments[0].before).of(stdout, stderr), nil
}

// Drop implements Logs. Followers end with not_found.
func (s *Store) Drop(ctx context.Context, commandID string) error {
	l, done, err := s.use(ctx, commandID)
	if err != nil {
		return err
	}
	defer done()
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := l.drop(); err != nil {
		return fmt.Errorf("dropping log %s: %w", commandID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.logs[commandID] == l {
		delete(s.logs, commandID)
	}
	return nil
}

// IDs implements Logs.
func (s *Store) IDs(ctx context.Context, fn func(commandID string) error) error {
	dirs, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("listing the command logs: %w", err)
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(filepath.Join(s.dir, dir.Name()))
		if err != nil {
			return fmt.Errorf("listing the command logs: %w", err)
		}
		// Sorted, so a log's file and directory are neighbours.
		last := ""
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			id, ext, _ := strings.Cut(e.Name(), ".")
			if id == last || (ext != "log" && ext != "d") || !validID(id) {
				continue
			}
			last = id
			if err := fn(id); err != nil {
				return err
			}
		}
	}
	return nil
}

// Open implements Logs.
func (s *Store) Open(ctx context.Context, commandID string, stdout, stderr bool, offset, length int64) (io.ReadCloser, error) {
	l, done, err := s.use(ctx, commandID)
	if err != nil {
		return nil, err
	}
	defer done()
	r := &reader{store: s, id: commandID, stdout: stdout, stderr: stderr, skip: offset, left: length}
	l.mu.Lock()
	sealed := l.sealed
	l.mu.Unlock()
	if !sealed {
		patience := time.NewTimer(pinPatience)
		defer patience.Stop()
		select {
		case s.pins <- struct{}{}:
			r.pinned = true
		case <-patience.C:
			return nil, sandbox.NewError(sandbox.CodeCapacityExhausted,
				"Too many downloads of logs that still grow are under way; try again, or read the log in pages.")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	for {
		l.mu.Lock()
		r.parts = r.parts[:0]
		for i, seg := range l.segments {
			end := l.total
			if i+1 < len(l.segments) {
				end = l.segments[i+1].before
			}
			r.parts = append(r.parts, part{segment: seg, size: seg.size, bytes: end.minus(seg.before).of(stdout, stderr)})
		}
		l.mu.Unlock()
		if !r.pinned {
			return r, nil
		}
		err := r.pin()
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, fs.ErrNotExist) { // else a segment was dropped: look again
			_ = r.Close()
			return nil, fmt.Errorf("opening log %s: %w", commandID, err)
		}
	}
}

// part is one segment of a download, as it was when the download began.
type part struct {
	*segment
	size  int64
	bytes int64 // of the chosen streams
}

// reader reads the bytes of a log's streams.
type reader struct {
	store          *Store
	id             string
	stdout, stderr bool
	skip, left     int64 // left -1 = to the end
	parts          []part
	pinned         bool // every part's file is acquired

	off    int64 // in the first part, 0 = before its header
	buf    []byte
	ready  [][]byte // pieces of buf that come next
	closed bool
}

func (r *reader) pin() error {
	for i, p := range r.parts {
		if _, err := r.store.files.acquire(p.segment); err != nil {
			r.unpin(r.parts[:i])
			return err
		}
	}
	return nil
}

func (r *reader) unpin(parts []part) {
	for _, p := range parts {
		r.store.files.release(p.segment)
	}
}

func (r *reader) Read(b []byte) (int, error) {
	if r.closed {
		return 0, fs.ErrClosed
	}
	for len(r.ready) == 0 {
		if r.left == 0 || len(r.parts) == 0 {
			return 0, io.EOF
		}
		if err := r.fill(); err != nil {
			return 0, fmt.Errorf("reading log %s: %w", r.id, err)
		}
	}
	if len(b) == 0 {
		return 0, nil
	}
	n := 0
	for len(r.ready) > 0 && n < len(b) {
		m := copy(b[n:], r.ready[0])
		n += m
		if r.ready[0] = r.ready[0][m:]; len(r.ready[0]) == 0 {
			r.ready = r.ready[1:]
		}
	}
	return n, nil
}

// fill reads the next records.
func (r *reader) fill() error {
	p := r.parts[0]
	if r.off == 0 && p.bytes <= r.skip {
		r.skip -= p.bytes
		r.next()
		return nil
	}
	r.off = max(r.off, int64(headerLen))
	f, err := r.store.files.acquire(p.segment)
	if err != nil {
		return err
	}
	defer r.store.files.release(p.segment)
	if r.buf == nil {
		r.buf = make([]byte, readSize)
	}
	b := r.buf[:min(readSize, p.size-r.off)]
	if _, err := f.ReadAt(b, r.off); err != nil {
		return err
	}
	r.ready = r.ready[:0]
	for read := 0; read < len(b); {
		rec, n, err := parseRecord(b[read:], p.seed)
		if errors.Is(err, errShort) && read > 0 {
			break
		}
		if err != nil {
			return err
		}
		read += n
		r.off += int64(n)
		if rec.kind == kindStdout && r.stdout || rec.kind == kindStderr && r.stderr {
			r.take(rec.data)
		}
	}
	if r.off >= p.size {
		r.next()
	}
	return nil
}

// take adds the part of a record's data that lies in the range asked for.
func (r *reader) take(data []byte) {
	n := min(r.skip, int64(len(data)))
	r.skip -= n
	data = data[n:]
	if r.left >= 0 {
		data = data[:min(r.left, int64(len(data)))]
		r.left -= int64(len(data))
	}
	if len(data) > 0 {
		r.ready = append(r.ready, data)
	}
}

func (r *reader) next() {
	if r.pinned {
		r.unpin(r.parts[:1])
	}
	r.parts, r.off = r.parts[1:], 0
}

func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	if r.pinned {
		r.unpin(r.parts)
		<-r.store.pins
	}
	r.parts = nil
	return nil
}

// cutHead makes the text of a head that holds the first of total bytes.
func cutHead(b []byte, total int64) (string, bool) {
	if int64(len(b)) >= total {
		return string(b), false
	}
	// A character that the cut went through goes altogether; what is not UTF-8
	// anyway stays as it is.
	for i := len(b) - 1; i >= 0 && i >= len(b)-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				b = b[:i]
			}
			break
		}
	}
	return string(b), true
}
