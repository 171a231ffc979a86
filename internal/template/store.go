package template

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/templates"
)

const (
	imageName    = "image.erofs"
	manifestName = "manifest.json"
	lockName     = "lock"
	buildPrefix  = "build-"
)

// Store is a directory of built images:
//
//	SLUG/tplv_.../image.erofs, manifest.json   a version, complete since it appeared
//	SLUG/build-...                             a build that runs, or that died
//	SLUG/lock                                  held (flock) by the one who builds
//
// Its methods may be called concurrently, by several processes too.
type Store struct {
	dir         string
	definitions []*Definition
	build       builder
	now         func() time.Time
	free        func(dir string) (int64, error)

	mu    sync.Mutex
	cache map[string]listing
}

// listing is what a template's directory held when it had a modification time.
type listing struct {
	modified time.Time
	versions []Version // newest first
}

// Open opens the store in dir, which is made if need be, with the built-in
// definitions.
func Open(dir string) (*Store, error) {
	definitions, err := loadDefinitions(templates.Files)
	if err != nil {
		return nil, err
	}
	return open(dir, definitions, buildImage)
}

func open(dir string, definitions []*Definition, build builder) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open template store: %w", err)
	}
	return &Store{
		dir: dir, definitions: definitions, build: build,
		now: time.Now, free: freeBytes, cache: map[string]listing{},
	}, nil
}

// Dir is the directory of the store.
func (s *Store) Dir() string { return s.dir }

// Catalogue lists every template by slug, built or not.
func (s *Store) Catalogue() []Entry {
	out := make([]Entry, 0, len(s.definitions))
	for _, d := range s.definitions {
		out = append(out, Entry{ID: templateID(d.Slug), Slug: d.Slug, Name: d.Name, Description: d.Description})
	}
	return out
}

// Current returns the version that new sandboxes of the template get, the newest:
// ErrUnknown or ErrNotBuilt if there is none.
func (s *Store) Current(slug string) (Version, error) {
	versions, err := s.Versions(slug)
	if err != nil {
		return Version{}, err
	}
	if len(versions) == 0 {
		return Version{}, fmt.Errorf("template %s: %w", slug, ErrNotBuilt)
	}
	return versions[0], nil
}

// ByVersion returns a version by its tplv_ id; ErrUnknown if it is not there (any
// more).
func (s *Store) ByVersion(id string) (Version, error) {
	for _, d := range s.definitions {
		versions, err := s.Versions(d.Slug)
		if err != nil {
			return Version{}, err
		}
		for _, v := range versions {
			if v.ID == id {
				return v, nil
			}
		}
	}
	return Version{}, fmt.Errorf("template version %s: %w", id, ErrUnknown)
}

// UpToDate reports whether the template has been built from its present
// definition: Build would do nothing.
func (s *Store) UpToDate(slug string) (bool, error) {
	d, err := s.definition(slug)
	if err != nil {
		return false, err
	}
	_, ok, err := s.builtFrom(d)
	return ok, err
}

// Versions returns the built versions of a template, newest first.
func (s *Store) Versions(slug string) ([]Version, error) {
	if _, err := s.definition(slug); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, slug)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("template %s: %w", slug, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.cache[slug]; ok && l.modified.Equal(info.ModTime()) {
		return slices.Clone(l.versions), nil
	}
	versions, err := readVersions(dir)
	if err != nil {
		return nil, fmt.Errorf("template %s: %w", slug, err)
	}
	// A change within the clock tick of the last one leaves the time as it is, so a
	// directory that changed just now is not remembered.
	if time.Since(info.ModTime()) > 2*time.Second {
		s.cache[slug] = listing{info.ModTime(), versions}
	} else {
		delete(s.cache, slug)
	}
	return slices.Clone(versions), nil
}

func (s *Store) definition(slug string) (*Definition, error) {
	for _, d := range s.definitions {
		if d.Slug == slug {
			return d, nil
		}
	}
	return nil, fmt.Errorf("template %q: %w", slug, ErrUnknown)
}

// builtFrom returns the newest version that the definition's present inputs made.
func (s *Store) builtFrom(d *Definition) (Version, bool, error) {
	versions, err := s.Versions(d.Slug)
	if err != nil {
		return Version{}, false, err
	}
	for _, v := range versions {
		if v.InputsSHA256 == d.inputs {
			return v, true, nil
		}
	}
	return Version{}, false, nil
}

// readVersions reads the manifests in a template's directory. A version whose
// manifest does not fit, say of a later format, is passed over.
func readVersions(dir string) ([]Version, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var versions []Version
	for _, e := range entries {
		if !e.IsDir() || !sandbox.ValidID(sandbox.PrefixTemplateVersion, e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name(), manifestName))
		if errors.Is(err, fs.ErrNotExist) {
			continue // being pruned
		}
		if err != nil {
			return nil, err
		}
		var v Version
		if err := json.Unmarshal(text, &v); err != nil || v.ID != e.Name() {
			continue
		}
		v.ImagePath = filepath.Join(dir, v.ID, imageName)
		if info, err := os.Stat(v.ImagePath); err != nil || info.Size() != v.ImageSizeBytes {
			continue
		}
		versions = append(versions, v)
	}
	slices.SortFunc(versions, func(a, b Version) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.ID, a.ID))
	})
	return versions, nil
}

// Build makes the image of a template unless its present definition has been
// built. Of several builders one works and the others wait for its result.
// progress may be nil. Whatever goes wrong, nothing is left behind but, after a
// kill, a directory that the next build removes.
func (s *Store) Build(ctx context.Context, slug string, report func(Progress)) (Version, error) {
	return s.make(ctx, slug, report, false)
}

// Rebuild makes a new version even if the definition has not changed, to take in
// newer packages of the same names. Sandboxes of older versions go on.
func (s *Store) Rebuild(ctx context.Context, slug string, report func(Progress)) (Version, error) {
	return s.make(ctx, slug, report, true)
}

func (s *Store) make(ctx context.Context, slug string, report func(Progress), always bool) (Version, error) {
	d, err := s.definition(slug)
	if err != nil {
		return Version{}, err
	}
	if !always {
		if v, ok, err := s.builtFrom(d); err != nil || ok {
			return v, err
		}
	}
	p := newProgress(slug, report)
	v, err := s.buildLocked(ctx, d, p, always)
	if err != nil {
		err = fmt.Errorf("build template %s: %w", slug, err)
		if log := p.log.String(); log != "" && ctx.Err() == nil {
			err = fmt.Errorf("%w; the last output was:\n%s", err, log)
		}
		return Version{}, err
	}
	p.phase(PhaseDone)
	return v, nil
}

func (s *Store) buildLocked(ctx context.Context, d *Definition, p *progress, always bool) (_ Version, err error) {
	home := filepath.Join(s.dir, d.Slug)
	if err := os.MkdirAll(home, 0o755); err != nil {
		return Version{}, err
	}
	lock, err := lockFile(ctx, filepath.Join(home, lockName), func() { p.phase(PhaseWaiting) })
	if err != nil {
		return Version{}, err
	}
	defer lock.Close()

	if err := sweep(home); err != nil {
		return Version{}, fmt.Errorf("remove what an earlier build left: %w", err)
	}
	if !always {
		if v, ok, err := s.builtFrom(d); err != nil || ok {
			return v, err // the one we waited for made it
		}
	}
	free, err := s.free(home)
	if err != nil {
		return Version{}, err
	}
	if need := d.DiskMiB << 20; free < need {
		return Version{}, fmt.Errorf("%s has %d MiB free, the build needs %d MiB", home, free>>20, d.DiskMiB)
	}
	work, err := os.MkdirTemp(home, buildPrefix)
	if err != nil {
		return Version{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()

	b, err := s.build(ctx, d, work, p)
	if err != nil {
		return Version{}, err
	}
	p.phase("store")
	return s.keep(ctx, d, work, b)
}

// keep puts a built image in place as a version.
func (s *Store) keep(ctx context.Context, d *Definition, work string, b built) (Version, error) {
	home := filepath.Join(s.dir, d.Slug)
	digest, size, err := digestFile(ctx, b.image)
	if err != nil {
		return Version{}, err
	}
	existing, err := readVersions(home)
	if err != nil {
		return Version{}, err
	}
	now := s.now().UTC().Truncate(time.Millisecond)
	v := Version{
		ID:                derivedID(sandbox.PrefixTemplateVersion, d.Slug+" "+d.inputs+" "+digest),
		TemplateID:        templateID(d.Slug),
		Slug:              d.Slug,
		Version:           nextVersion(existing, now),
		CreatedAt:         now,
		ImageSizeBytes:    size,
		ImageSHA256:       digest,
		InputsSHA256:      d.inputs,
		Resources:         sandbox.DefaultResources,
		ComputeMultiplier: 1,
		Contents:          b.contents,
	}
	for _, same := range existing {
		if same.ID == v.ID {
			return same, nil
		}
	}
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return Version{}, err
	}
	out := filepath.Join(work, "version")
	if err := os.Mkdir(out, 0o755); err != nil {
		return Version{}, err
	}
	if err := os.Rename(b.image, filepath.Join(out, imageName)); err != nil {
		return Version{}, err
	}
	if err := os.WriteFile(filepath.Join(out, manifestName), append(text, '\n'), 0o444); err != nil {
		return Version{}, err
	}
	if err := os.Chmod(filepath.Join(out, imageName), 0o444); err != nil {
		return Version{}, err
	}
	// Everything is on the disk before it has its name.
	for _, name := range []string{filepath.Join(out, imageName), filepath.Join(out, manifestName), out} {
		if err := syncPath(name); err != nil {
			return Version{}, err
		}
	}
	final := filepath.Join(home, v.ID)
	// Only a version with an unreadable manifest can be in the way.
	if err := os.RemoveAll(final); err != nil {
		return Version{}, err
	}
	if err := os.Rename(out, final); err != nil {
		return Version{}, err
	}
	if err := syncPath(home); err != nil {
		return Version{}, err
	}
	v.ImagePath = filepath.Join(final, imageName)
	return v, nil
}

// Prune removes the versions of a template that are neither current nor in use,
// and returns them.
func (s *Store) Prune(ctx context.Context, slug string, inUse func(id string) bool) ([]Version, error) {
	if _, err := s.definition(slug); err != nil {
		return nil, err
	}
	home := filepath.Join(s.dir, slug)
	if _, err := os.Stat(home); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	lock, err := lockFile(ctx, filepath.Join(home, lockName), func() {})
	if err != nil {
		return nil, fmt.Errorf("prune template %s: %w", slug, err)
	}
	defer lock.Close()
	versions, err := readVersions(home)
	if err != nil || len(versions) == 0 {
		return nil, err
	}
	var pruned []Version
	for _, v := range versions[1:] {
		if inUse(v.ID) {
			continue
		}
		// It stops being a version first: then its removal may be cut short.
		doomed := filepath.Join(home, buildPrefix+"pruned-"+v.ID)
		if err := os.Rename(filepath.Join(home, v.ID), doomed); err != nil {
			return pruned, fmt.Errorf("prune template %s: %w", slug, err)
		}
		if err := os.RemoveAll(doomed); err != nil {
			return pruned, fmt.Errorf("prune template %s: %w", slug, err)
		}
		pruned = append(pruned, v)
	}
	return pruned, nil
}

// nextVersion names a version for people: the day and a number.
func nextVersion(existing []Version, now time.Time) string {
	day := now.Format("2006.01.02") + "-"
	last := 0
	for _, v := range existing {
		if n, err := strconv.Atoi(strings.TrimPrefix(v.Version, day)); err == nil {
			last = max(last, n)
		}
	}
	return day + strconv.Itoa(last+1)
}

// sweep removes the builds that died; the caller holds the lock.
func sweep(home string) error {
	entries, err := os.ReadDir(home)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), buildPrefix) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(home, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// lockPoll is how often a waiting builder looks whether the lock is free: a
// blocking flock could not be given up when the context ends.
const lockPoll = 200 * time.Millisecond

// lockFile takes an exclusive lock, which ends with the file's closing or with
// this process, and calls waiting once if it is not free.
func lockFile(ctx context.Context, name string, waiting func()) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for first := true; ; first = false {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if first {
			waiting()
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func digestFile(ctx context.Context, name string) (digest string, size int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return "", 0, context.Cause(ctx)
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		size += int64(n)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), size, nil
		}
		if err != nil {
			return "", 0, err
		}
	}
}

func syncPath(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
