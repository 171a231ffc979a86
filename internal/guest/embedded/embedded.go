// Package embedded carries the guest's binary inside the server's. It knows
// nothing of how the guest is started.
package embedded

import (
	"embed"
	"errors"
	"fmt"
)

// files holds the guest once it is built. The note beside it, which the pattern
// matches too, lets the module build without it.
//
//go:embed crownest-guest*
var files embed.FS

// ErrNotBuilt says that this binary was built without the guest.
var ErrNotBuilt = errors.New("the guest is not part of this binary: build with `make build`")

// Binary returns the guest, a static executable for Linux.
func Binary() ([]byte, error) {
	b, err := files.ReadFile("crownest-guest")
	if err != nil || len(b) == 0 {
		return nil, ErrNotBuilt
	}
	if string(b[:min(len(b), 4)]) != "\x7fELF" {
		return nil, fmt.Errorf("%w (what is there is no executable)", ErrNotBuilt)
	}
	return b, nil
}
