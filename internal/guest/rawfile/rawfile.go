//go:build linux

// Package rawfile reads and writes small files and lists directories by system
// calls alone. The functions of package os that do so bring in the formatting of
// times, a twentieth of the guest's size. It knows nothing of what it reads.
package rawfile

import "golang.org/x/sys/unix"

// retry repeats a call that a signal interrupted.
func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// Open is open(2) with O_CLOEXEC.
func Open(path string, flags int, mode uint32) (int, error) {
	return retry(func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC, mode) })
}

// Exists says whether there is something of that name.
func Exists(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil
}

// Read returns what is in a file, at most 1 MiB.
func Read(path string) ([]byte, error) {
	fd, err := Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 1024)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := retry(func() (int, error) { return unix.Read(fd, buf[len(buf):cap(buf)]) })
		if err != nil {
			return nil, err
		}
		buf = buf[:len(buf)+n]
		if n == 0 || len(buf) >= 1<<20 {
			return buf, nil
		}
	}
}

// Write writes to a file that it opens with flags.
func Write(path, content string, flags int, mode uint32) error {
	fd, err := Open(path, unix.O_WRONLY|flags, mode)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return WriteAll(fd, []byte(content))
}

// WriteAll writes all of b.
func WriteAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := retry(func() (int, error) { return unix.Write(fd, b) })
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// Names calls f with the names in an open directory, some at a time, until f
// returns false. A directory that was removed meanwhile has none.
func Names(dir int, f func(names []string) bool) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := retry(func() (int, error) { return unix.ReadDirent(dir, buf) })
		if err == unix.ENOENT || (err == nil && n == 0) {
			return nil
		}
		if err != nil {
			return err
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		if !f(names) {
			return nil
		}
	}
}

// MakeDir creates a directory unless there is one.
func MakeDir(path string, mode uint32) error {
	if err := unix.Mkdir(path, mode); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}
