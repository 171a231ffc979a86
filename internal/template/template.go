// Package template turns the built-in template definitions into immutable root
// file system images and hands out their versions. An image is an EROFS file
// beside a manifest that names it (tplv_...); both are written once, put in
// place with one rename, and never changed. A store may be shared by several
// servers and builders.
//
// The package knows Debian, npm and EROFS. It may not know sandboxes that run,
// the runtime that boots the images, the database or HTTP.
package template

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"crownest.dev/crownest/internal/sandbox"
)

// Errors of a Store, wrapped with what was being done.
var (
	// ErrUnknown says that there is no such template or version.
	ErrUnknown = errors.New("no such template")
	// ErrNotBuilt says that the template is defined but has no image yet.
	ErrNotBuilt = errors.New("template not built yet")
)

// Default is the slug of the template that a sandbox gets when none is asked for.
const Default = "python-node"

// Path is the PATH that commands in every template get: what the sandbox user
// installed for itself comes first.
const Path = "/home/sandbox/.local/bin:/home/sandbox/.npm-global/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Entry is one template of the catalogue, built or not.
type Entry struct {
	ID          string
	Slug        string
	Name        string
	Description string
}

// Version is one built image. It never changes.
type Version struct {
	ID                string            `json:"id"` // tplv_..., made from the digests of inputs and image
	TemplateID        string            `json:"templateId"`
	Slug              string            `json:"slug"`
	Version           string            `json:"version"` // for people: 2026.11.22-1
	CreatedAt         time.Time         `json:"createdAt"`
	ImageSizeBytes    int64             `json:"imageSizeBytes"`
	ImageSHA256       string            `json:"imageSha256"`
	InputsSHA256      string            `json:"inputsSha256"` // of all that was built from
	Resources         sandbox.Resources `json:"resources"`
	ComputeMultiplier float64           `json:"computeMultiplier"`
	Contents          Contents          `json:"contents"`

	// ImagePath is the EROFS file on this host.
	ImagePath string `json:"-"`
}

// Contents says what is inside an image, as read from the image itself.
type Contents struct {
	OS       string            `json:"os"`
	Runtimes map[string]string `json:"runtimes"` // name -> version
	Packages []string          `json:"packages"` // name=version, sorted
}

// DefaultDir is the store that everything on this host shares unless told
// otherwise: CROWNEST_TEMPLATE_DIR, else /var/lib/crownest/templates for root,
// else the user's cache directory. It does not depend on a server's data
// directory: images are big, immutable and the same for every server.
func DefaultDir() (string, error) {
	if dir := os.Getenv("CROWNEST_TEMPLATE_DIR"); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/lib/crownest/templates", nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "crownest", "templates"), nil
}

// templateID is the identifier of a template: the same on every host and for ever.
func templateID(slug string) string {
	return derivedID(sandbox.PrefixTemplate, "crownest template "+slug)
}

// derivedID makes a well-formed identifier out of what it names.
func derivedID(prefix, of string) string {
	sum := sha256.Sum256([]byte(of))
	text := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))
	return sandbox.ID(prefix, text[:sandbox.SuffixLen])
}
