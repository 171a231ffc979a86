package template

import (
	"os"
	"testing"
	"time"
)

// TestBuildBase makes a real image with the host's tools, in the store that the
// end-to-end tests use as well: a second run finds it built. The others are built
// by those tests when they need them, or by naming them here.
func TestBuildBase(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if missing := MissingTools(); len(missing) > 0 {
		t.Skipf("needs %v", missing)
	}
	dir, err := DefaultDir()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	slug := "base"
	if other := os.Getenv("CROWNEST_TEST_BUILD"); other != "" {
		slug = other
	}
	began, phase := time.Now(), ""
	v, err := s.Build(t.Context(), slug, func(p Progress) {
		if p.Phase != phase {
			phase = p.Phase
			t.Logf("%6.1f s  %s", time.Since(began).Seconds(), phase)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s %s %d MiB %v", v.ImagePath, v.Version, v.Contents.OS, v.ImageSizeBytes>>20, v.Contents.Runtimes)
}
