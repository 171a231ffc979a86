package cmdlog

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
)

const (
	// indexEvery is how many bytes of a segment a reader may have to skip over.
	indexEvery = 256 << 10
	// readSize is how much is read at a time; the largest record must fit.
	readSize = 256 << 10
)

// segment is one file of a log.
type segment struct {
	path string
	header
	seed uint32

	// Guarded by the log's lock. Readers use a copy of size: what lies below it
	// never changes.
	size  int64 // bytes that hold valid records
	index []indexEntry

	// Guarded by files.
	file    *os.File
	users   int
	idle    *list.Element
	discard bool
}

// indexEntry says where in a segment the record with a seq begins.
type indexEntry struct{ seq, off int64 }

// note remembers where a record begins, if that is far enough behind the last
// place remembered.
func (s *segment) note(seq, off int64) {
	last := int64(headerLen)
	if n := len(s.index); n > 0 {
		last = s.index[n-1].off
	}
	if off >= last+indexEvery {
		s.index = append(s.index, indexEntry{seq, off})
	}
}

// near returns the last known place at or before the record with the seq.
func (s *segment) near(seq int64) indexEntry {
	i := sort.Search(len(s.index), func(i int) bool { return s.index[i].seq > seq })
	if i == 0 {
		return indexEntry{s.firstSeq, int64(headerLen)}
	}
	return s.index[i-1]
}

// openSegment reads a segment's header.
func openSegment(path string) (*segment, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b [headerLen]byte
	if _, err := io.ReadFull(f, b[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errShort
		}
		return nil, err
	}
	s := &segment{path: path}
	if s.header, s.seed, err = parseHeader(b[:]); err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s.size = fi.Size()
	return s, nil
}

// tail is what the end of the last segment tells of a log.
type tail struct {
	lastSeq int64
	total   counts
	sealed  bool
}

// recover finds the end of a log in its last segment and cuts off what comes
// behind it: a record that was being written when the process died.
func (s *segment) recover() (tail, error) {
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return tail{}, err
	}
	defer f.Close()
	if s.size >= int64(headerLen+sealLen) {
		var b [sealLen]byte
		if _, err := f.ReadAt(b[:], s.size-sealLen); err != nil {
			return tail{}, err
		}
		if r, _, err := parseRecord(b[:], s.seed); err == nil && r.kind == kindSeal {
			s.size -= sealLen
			return tail{r.seq, r.sealed(), true}, nil
		}
	}
	t := tail{lastSeq: s.firstSeq - 1, total: s.before}
	end, err := scan(f, s.seed, int64(headerLen), s.size, func(r record, off int64) bool {
		if r.kind == kindSeal || r.seq != t.lastSeq+1 {
			return false
		}
		t.lastSeq = r.seq
		t.total.add(r.kind, len(r.data))
		s.note(r.seq, off)
		return true
	})
	if err != nil && !errors.Is(err, errCorrupt) && !errors.Is(err, errShort) {
		return tail{}, err
	}
	if end < s.size {
		if err := f.Truncate(end); err != nil {
			return tail{}, fmt.Errorf("cutting off a torn record: %w", err)
		}
		s.size = end
	}
	return t, nil
}

// scan calls fn for the records between off and end until fn returns false, and
// returns where it stopped. The data is valid during the call only.
func scan(f io.ReaderAt, seed uint32, off, end int64, fn func(r record, off int64) bool) (int64, error) {
	buf := make([]byte, min(readSize, end-off))
	for off < end {
		b := buf[:min(int64(len(buf)), end-off)]
		if _, err := f.ReadAt(b, off); err != nil {
			return off, err
		}
		read := 0
		for read < len(b) {
			r, n, err := parseRecord(b[read:], seed)
			if errors.Is(err, errShort) && read > 0 {
				break // the rest comes with the next read
			}
			if err != nil {
				return off, err
			}
			if !fn(r, off) {
				return off, nil
			}
			read += n
			off += int64(n)
		}
	}
	return off, nil
}
