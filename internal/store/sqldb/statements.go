package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"sync"
)

// statements keeps prepared statements by their text. It needs no bound: this
// package has few texts, and lists of values grow in powers of two (see in).
type statements struct {
	prepare func(ctx context.Context, text string) (*sql.Stmt, error)

	mu     sync.RWMutex
	byText map[string]*sql.Stmt
}

func (s *statements) get(ctx context.Context, text string) (*sql.Stmt, error) {
	s.mu.RLock()
	st := s.byText[text]
	s.mu.RUnlock()
	if st != nil {
		return st, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.byText[text]; st != nil {
		return st, nil
	}
	st, err := s.prepare(ctx, text) //nolint:sqlclosecheck // close does, with all others
	if err != nil {
		return nil, err
	}
	if s.byText == nil {
		s.byText = map[string]*sql.Stmt{}
	}
	s.byText[text] = st
	return st, nil
}

func (s *statements) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for text, st := range s.byText {
		errs = append(errs, st.Close())
		delete(s.byText, text)
	}
	return errors.Join(errs...)
}
