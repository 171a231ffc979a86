package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Keys calls fn with every key in the store, in no particular order of age, until
// fn fails.
func (s *Store) Keys(ctx context.Context, fn func(key string) error) error {
	for it := s.bucket.List(nil); ; {
		o, err := it.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("listing objects: %w", err)
		}
		if err := fn(o.Key); err != nil {
			return err
		}
	}
}
