package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

// temporary matches what the bucket on disk calls a file that is being written:
// the name it will have, the time in hexadecimal, and .tmp.
var temporary = regexp.MustCompile(`\.[0-9a-f]{16}\.tmp$`)

// claim marks a file that is being written. The lock ends with the process, so a
// sweep tells the files of the dead from those of the living.
func claim(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("locking a temporary file: %w", err)
	}
	return nil
}

// sweep removes the temporary files that crashed writers left below dir.
func sweep(dir string) error {
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another process finished or removed it
		}
		if err != nil {
			return err
		}
		if !entry.Type().IsRegular() || !temporary.MatchString(entry.Name()) {
			return nil
		}
		return sweepFile(path)
	})
	if err != nil {
		return fmt.Errorf("removing what crashed writers left: %w", err)
	}
	return nil
}

func sweepFile(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	if err := claim(f); err != nil {
		return nil // somebody is writing it
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
