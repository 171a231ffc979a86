package local

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"crownest.dev/crownest/internal/sandbox"
)

// meta is what is written about an instance before the first side effect, and
// again when it runs.
type meta struct {
	ID             string            `json:"id"`
	ImageID        string            `json:"imageId"`
	ImagePath      string            `json:"imagePath"`
	Resources      sandbox.Resources `json:"resources"`
	CreatedAt      time.Time         `json:"createdAt"`
	BootID         string            `json:"bootId"`
	RuntimeVersion string            `json:"runtimeVersion"`
	Sentry         process           `json:"sentry"`
	Gofer          process           `json:"gofer"`
	Mould          process           `json:"mould"`
	ControlSocket  string            `json:"controlSocket,omitempty"`
	GuestDir       string            `json:"guestDir"`
}

const (
	metaFile    = "meta.json"
	claimedFile = "claimed"
	rootfsDir   = "rootfs"
	maxMeta     = 64 << 10
)

// writeMeta replaces the record. It survives the death of this process; after a
// power loss the instance is gone anyway, so nothing is synced to the disk.
func writeMeta(dir string, m meta) error {
	raw, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return fmt.Errorf("writing instance record: %w", err)
	}
	tmp := filepath.Join(dir, metaFile+".tmp")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("writing instance record: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, metaFile)); err != nil {
		return fmt.Errorf("writing instance record: %w", err)
	}
	return nil
}

func readMeta(dir string) (meta, error) {
	var m meta
	raw, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		return m, fmt.Errorf("reading instance record: %w", err)
	}
	if len(raw) > maxMeta {
		return m, fmt.Errorf("reading instance record: %d bytes", len(raw))
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("reading instance record: %w", err)
	}
	return m, nil
}

// bootID tells this boot of the machine from others: a pid means nothing after one.
func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading boot id: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
