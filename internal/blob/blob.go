// Package blob keeps large objects, such as artifacts, under keys: on disk, or
// wherever else a bucket URL leads. It knows bytes and keys, not what they mean.
package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob" // file:// URLs
	"gocloud.dev/gcerrors"
)

// Errors of this package, wrapped with what was being done.
var (
	ErrNotFound = errors.New("no such object")
	ErrTooLarge = errors.New("object is larger than allowed")
)

// keyPattern bounds keys to what means the same to every kind of bucket.
var keyPattern = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,7}$`)

// Object describes what was written.
type Object struct {
	Size   int64
	SHA256 string // lower-case hex
}

// Store keeps objects. An object appears under its key wholly or not at all, and
// once Put returned it survives the end of the process at any moment.
type Store struct {
	bucket *blob.Bucket
}

// Open opens the bucket that location names: a directory, which is made if it is
// not there, or the URL of a bucket of a linked kind.
func Open(ctx context.Context, location string) (*Store, error) {
	if !strings.Contains(location, "://") {
		dir, err := filepath.Abs(location)
		if err != nil {
			return nil, fmt.Errorf("opening the object store: %w", err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("opening the object store: %w", err)
		}
		if err := sweep(dir); err != nil {
			return nil, fmt.Errorf("opening the object store: %w", err)
		}
		// Temporary files beside the objects: a rename does not cross file systems.
		location = (&url.URL{Scheme: "file", Path: dir}).String() + "?no_tmp_dir=true&metadata=skip&dir_file_mode=0700"
	}
	bucket, err := blob.OpenBucket(ctx, location)
	if err != nil {
		return nil, fmt.Errorf("opening the object store: %w", err)
	}
	return &Store{bucket: bucket}, nil
}

// Close closes the bucket.
func (s *Store) Close() error { return s.bucket.Close() }

func wrap(err error, doing, key string) error {
	if gcerrors.Code(err) == gcerrors.NotFound {
		return fmt.Errorf("%s object %s: %w", doing, key, ErrNotFound)
	}
	return fmt.Errorf("%s object %s: %w", doing, key, err)
}

func checkKey(key string) error {
	if !keyPattern.MatchString(key) {
		return fmt.Errorf("object key %q is not allowed", key)
	}
	return nil
}

// Put writes all of r under key, at most limit bytes; more is ErrTooLarge. What
// was there is replaced. Nothing is left behind when it fails.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, limit int64) (o Object, err error) {
	if err := checkKey(key); err != nil {
		return o, err
	}
	// A bucket drops what was written if its context has ended when it is closed.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var file *os.File // of a bucket on disk
	w, err := s.bucket.NewWriter(ctx, key, &blob.WriterOptions{
		ContentType: "application/octet-stream",
		BeforeWrite: func(as func(any) bool) error {
			if as(&file) {
				return claim(file)
			}
			return nil
		},
	})
	if err != nil {
		return o, wrap(err, "writing", key)
	}
	abandon := func(err error) (Object, error) {
		cancel()
		_ = w.Close() // returns the cancellation
		return Object{}, fmt.Errorf("writing object %s: %w", key, err)
	}
	sum := sha256.New()
	o.Size, err = io.Copy(io.MultiWriter(w, sum), io.LimitReader(r, limit))
	if err != nil {
		return abandon(err)
	}
	switch n, err := io.CopyN(io.Discard, r, 1); {
	case n > 0:
		return abandon(ErrTooLarge)
	case !errors.Is(err, io.EOF):
		return abandon(err)
	}
	if file != nil {
		// A power loss must not leave a name that leads to no bytes.
		if err := file.Sync(); err != nil {
			return abandon(err)
		}
	}
	if err := w.Close(); err != nil {
		return Object{}, wrap(err, "writing", key)
	}
	o.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return o, nil
}

// Reader reads an object or a part of it.
type Reader struct {
	*blob.Reader
}

// ObjectSize is the size of the whole object.
func (r Reader) ObjectSize() int64 { return r.Size() }

// Open reads length bytes from offset on, or to the end if length is negative.
func (s *Store) Open(ctx context.Context, key string, offset, length int64) (Reader, error) {
	if err := checkKey(key); err != nil {
		return Reader{}, err
	}
	r, err := s.bucket.NewRangeReader(ctx, key, offset, length, nil)
	if err != nil {
		return Reader{}, wrap(err, "reading", key)
	}
	return Reader{r}, nil
}

// Size returns the size of an object.
func (s *Store) Size(ctx context.Context, key string) (int64, error) {
	if err := checkKey(key); err != nil {
		return 0, err
	}
	a, err := s.bucket.Attributes(ctx, key)
	if err != nil {
		return 0, wrap(err, "reading", key)
	}
	return a.Size, nil
}

// Delete removes an object; one that is not there is no error, so that a deletion
// that was cut short can be repeated.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if err := s.bucket.Delete(ctx, key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return wrap(err, "deleting", key)
	}
	return nil
}
