package embedded

import (
	"errors"
	"strings"
	"testing"
)

// TestBinary holds whether or not the guest was built before.
func TestBinary(t *testing.T) {
	b, err := Binary()
	if err == nil {
		if len(b) < 100_000 {
			t.Errorf("a guest of %d bytes", len(b))
		}
		return
	}
	if !errors.Is(err, ErrNotBuilt) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("no remedy: %v", err)
	}
}
