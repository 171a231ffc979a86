package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSmall holds the guest to its size, and so to what it may import.
func TestSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crownest-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() >= 2_000_000 {
		t.Errorf("the guest has %d bytes; look at what it imports", st.Size())
	}
	list := exec.Command("go", "list", "-deps", ".")
	list.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		switch dep {
		case "net", "context", "encoding/json", "os/exec", "crypto/rand", "crypto/sha256", "log/slog":
			t.Errorf("the guest imports %s", dep)
		}
		if strings.HasPrefix(dep, "crownest.dev/") && !strings.HasPrefix(dep, "crownest.dev/crownest/internal/guest/") && dep != "crownest.dev/crownest/cmd/crownest-guest" {
			t.Errorf("the guest imports %s", dep)
		}
	}
}
