package blob_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"

	"crownest.dev/crownest/internal/blob"
)

// crashDir makes this test binary a writer that never ends; see TestCrash.
const crashDir = "BLOB_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		writeForever(dir)
	}
	goleak.VerifyTestMain(m)
}

// writeForever puts one whole object and then hangs in the middle of another.
func writeForever(dir string) {
	ctx := context.Background()
	s, err := blob.Open(ctx, dir)
	if err != nil {
		panic(err)
	}
	if _, err := s.Put(ctx, "whole", strings.NewReader("whole"), 10); err != nil {
		panic(err)
	}
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(make([]byte, 1<<20))
		fmt.Println("writing")
	}()
	_, err = s.Put(ctx, "a/half", r, 1<<30)
	panic(err)
}

func open(t testing.TB, dir string) *blob.Store {
	t.Helper()
	s, err := blob.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// files lists all regular files below dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			rel, _ := filepath.Rel(dir, path)
			list = append(list, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func read(t *testing.T, s *blob.Store, key string, offset, length int64) []byte {
	t.Helper()
	r, err := s.Open(t.Context(), key, offset, length)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPutAndOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "a dir?#%")
	s := open(t, dir)
	for _, size := range []int{0, 1, 511, 512, 513, 3 << 20} {
		data := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		key := fmt.Sprintf("art/org_1/%d.bin", size)
		o, err := s.Put(t.Context(), key, iotest.HalfReader(bytes.NewReader(data)), int64(size))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		if o.Size != int64(size) || o.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%d: got %+v", size, o)
		}
		if got := read(t, s, key, 0, -1); !bytes.Equal(got, data) {
			t.Errorf("%d: read %d other bytes", size, len(got))
		}
		if size > 500 {
			if got := read(t, s, key, 7, 100); !bytes.Equal(got, data[7:107]) {
				t.Errorf("%d: range read %q", size, got)
			}
		}
		if n, err := s.Size(t.Context(), key); err != nil || n != int64(size) {
			t.Errorf("%d: size %d, %v", size, n, err)
		}
	}
	if got := files(t, dir); len(got) != 6 {
		t.Errorf("files: %v", got)
	}
}

func TestFailedPutLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	broken := errors.New("broken")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		r    io.Reader
		want error
	}{
		"too large": {t.Context(), strings.NewReader("12345"), blob.ErrTooLarge},
		"broken":    {t.Context(), io.MultiReader(strings.NewReader("12"), iotest.ErrReader(broken)), broken},
		"late":      {t.Context(), io.MultiReader(strings.NewReader("1234"), iotest.ErrReader(broken)), broken},
		"canceled":  {canceled, strings.NewReader("12"), context.Canceled},
	} {
		if _, err := s.Put(c.ctx, "key", c.r, 4); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if got := files(t, dir); len(got) != 0 {
			t.Errorf("%s: left %v", name, got)
		}
		if _, err := s.Open(t.Context(), "key", 0, -1); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestReplaceAndDelete(t *testing.T) {
	s := open(t, t.TempDir())
	for _, text := range []string{"first", "second"} {
		if _, err := s.Put(t.Context(), "k", strings.NewReader(text), 100); err != nil {
			t.Fatal(err)
		}
		if got := read(t, s, "k", 0, -1); string(got) != text {
			t.Fatalf("got %q", got)
		}
	}
	for range 2 {
		if err := s.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Size(t.Context(), "k"); !errors.Is(err, blob.ErrNotFound) {
		t.Fatalf("got %v", err)
	}
}

func TestKeys(t *testing.T) {
	s := open(t, t.TempDir())
	for _, key := range []string{
		"", "/a", "a/", "a//b", "..", "a/../b", ".hidden", "a\x00", "a b", "ä", strings.Repeat("a", 129),
		strings.Repeat("a/", 8) + "a",
	} {
		_, err1 := s.Put(t.Context(), key, strings.NewReader("x"), 1)
		_, err2 := s.Open(t.Context(), key, 0, -1)
		_, err3 := s.Size(t.Context(), key)
		if err := s.Delete(t.Context(), key); err == nil || err1 == nil || err2 == nil || err3 == nil {
			t.Errorf("key %q is taken", key)
		}
	}
}

func TestCrash(t *testing.T) {
	dir := t.TempDir()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), crashDir+"="+dir)
	child.Stderr = os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("writing\n"))); err != nil {
		t.Fatal(err)
	}
	// While the writer lives, nothing of it is swept.
	open(t, dir)
	if got := files(t, dir); len(got) != 2 {
		t.Errorf("with a living writer: %v", got)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	s := open(t, dir)
	if got := files(t, dir); len(got) != 1 || got[0] != "whole" {
		t.Errorf("after the crash: %v", got)
	}
	if got := read(t, s, "whole", 0, -1); string(got) != "whole" {
		t.Errorf("got %q", got)
	}
}

func BenchmarkPut(b *testing.B) {
	s := open(b, b.TempDir())
	data := make([]byte, 64<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := s.Put(b.Context(), "k", bytes.NewReader(data), 1<<30); err != nil {
			b.Fatal(err)
		}
	}
}
