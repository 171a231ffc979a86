package cmdlog

import (
	"container/list"
	"os"
	"sync"
)

// files hands out the open files of segments and keeps a bounded number of those
// that nobody uses at the moment open for the next one. What is open beyond the
// bound is in use right now, which the number of concurrent calls limits.
type files struct {
	limit int

	mu     sync.Mutex
	idle   *list.List // *segment, the one unused longest first
	closed bool
}

func newFiles(limit int) *files { return &files{limit: limit, idle: list.New()} }

// acquire returns the segment's file, opening it if it is not open. The caller
// releases it.
func (fs *files) acquire(s *segment) (*os.File, error) {
	fs.mu.Lock()
	if f := fs.takeOpen(s); f != nil {
		fs.mu.Unlock()
		return f, nil
	}
	fs.mu.Unlock()
	// Opening may wait for a disk, so not under the lock everybody needs.
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return fs.adopt(s, f)
}

// adopt makes f the segment's file, in use by the caller, unless somebody else
// opened it in the meantime.
func (fs *files) adopt(s *segment, f *os.File) (*os.File, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if g := fs.takeOpen(s); g != nil {
		_ = f.Close()
		return g, nil
	}
	if fs.closed {
		_ = f.Close()
		return nil, ErrClosed
	}
	s.file, s.users = f, 1
	return f, nil
}

func (fs *files) takeOpen(s *segment) *os.File {
	if s.file == nil {
		return nil
	}
	if s.idle != nil {
		fs.idle.Remove(s.idle)
		s.idle = nil
	}
	s.users++
	return s.file
}

func (fs *files) release(s *segment) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	s.users--
	if s.users > 0 {
		return
	}
	if s.discard || fs.closed {
		fs.shut(s)
		return
	}
	s.idle = fs.idle.PushBack(s)
	for fs.idle.Len() > fs.limit {
		fs.shut(fs.idle.Front().Value.(*segment))
	}
}

// forget closes the segment's file as soon as nobody uses it.
func (fs *files) forget(s *segment) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	switch {
	case s.file == nil:
	case s.users > 0:
		s.discard = true
	default:
		fs.shut(s)
	}
}

func (fs *files) shut(s *segment) {
	if s.idle != nil {
		fs.idle.Remove(s.idle)
		s.idle = nil
	}
	_ = s.file.Close() // all was written by write(2): closing has nothing left to fail at
	s.file, s.discard = nil, false
}

// close closes every idle file; those in use are closed on release.
func (fs *files) close() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.closed = true
	for e := fs.idle.Front(); e != nil; e = fs.idle.Front() {
		fs.shut(e.Value.(*segment))
	}
}
