package template

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Definition is one template as its file declares it. After loading, a
// definition that extends others holds everything of theirs as well.
type Definition struct {
	Slug        string   `yaml:"slug"`
	Name        string   `yaml:"name"`
	Description string   `yaml:"description"`
	Extends     []string `yaml:"extends"`

	// Suite is the Debian suite, Packages are names in it. Which mirror they come
	// from is the host's business.
	Suite    string   `yaml:"suite"`
	Packages []string `yaml:"packages"`
	// Leave and Keep are path patterns of dpkg: files of packages to leave out,
	// and those among them to keep all the same.
	Leave []string `yaml:"leave"`
	Keep  []string `yaml:"keep"`
	// Rootfs are directories beside the definition copied over the packages.
	Rootfs []string `yaml:"rootfs"`
	// NPM is a directory beside the definition with package.json and
	// package-lock.json: installed into the image, with the hashes verified.
	NPM string `yaml:"npm"`
	// Prepare are shell lines run as root in the image, Verify as the sandbox
	// user: a line that fails fails the build. Neither has a network.
	Prepare []string `yaml:"prepare"`
	Verify  []string `yaml:"verify"`
	// Runtimes maps names to shell lines that print a version.
	Runtimes map[string]string `yaml:"runtimes"`
	// DiskMiB is how much free space a build needs.
	DiskMiB int64 `yaml:"disk_mib"`

	files  fs.FS
	inputs string
}

// builderVersion is part of every inputs digest: raise it when the way images
// are made changes in a way that matters to what is in them.
const builderVersion = "1"

// slugPattern also keeps slugs usable as file names.
var slugPattern = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

// loadDefinitions reads every *.yaml at the top of files.
func loadDefinitions(files fs.FS) ([]*Definition, error) {
	names, err := fs.Glob(files, "*.yaml")
	if err != nil {
		return nil, err
	}
	bySlug := map[string]*Definition{}
	for _, name := range names {
		d, err := parseDefinition(files, name)
		if err != nil {
			return nil, fmt.Errorf("template definition %s: %w", name, err)
		}
		bySlug[d.Slug] = d
	}
	var out []*Definition
	for _, slug := range slices.Sorted(maps.Keys(bySlug)) {
		d, err := resolve(bySlug, slug, nil)
		if err != nil {
			return nil, fmt.Errorf("template definition %s: %w", slug, err)
		}
		d.files = files
		if d.inputs, err = d.digest(); err != nil {
			return nil, fmt.Errorf("template definition %s: %w", slug, err)
		}
		out = append(out, d)
	}
	return out, nil
}

func parseDefinition(files fs.FS, name string) (*Definition, error) {
	text, err := fs.ReadFile(files, name)
	if err != nil {
		return nil, err
	}
	d := &Definition{}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true) // a misspelt field must not be ignored
	if err := dec.Decode(d); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if !slugPattern.MatchString(d.Slug) {
		return nil, fmt.Errorf("slug %q is not of the form %s", d.Slug, slugPattern)
	}
	if d.Slug != strings.TrimSuffix(path.Base(name), ".yaml") {
		return nil, fmt.Errorf("slug %q does not match the file name", d.Slug)
	}
	if d.Name == "" || d.Description == "" {
		return nil, errors.New("name and description are required")
	}
	return d, nil
}

// resolve returns the definition joined with those it extends, which come first.
func resolve(all map[string]*Definition, slug string, path []string) (*Definition, error) {
	if slices.Contains(path, slug) {
		return nil, fmt.Errorf("extends itself: %s", strings.Join(append(path, slug), " -> "))
	}
	own, ok := all[slug]
	if !ok {
		return nil, fmt.Errorf("extends %q, which does not exist", slug)
	}
	d := &Definition{Slug: own.Slug, Name: own.Name, Description: own.Description, Runtimes: map[string]string{}}
	for _, parent := range own.Extends {
		p, err := resolve(all, parent, append(path, slug))
		if err != nil {
			return nil, err
		}
		if err := d.add(p); err != nil {
			return nil, err
		}
	}
	if err := d.add(own); err != nil {
		return nil, err
	}
	if d.Suite == "" || len(d.Packages) == 0 {
		return nil, errors.New("suite and packages are required")
	}
	return d, nil
}

// add joins the contents of other to d, each thing once and in order.
func (d *Definition) add(other *Definition) error {
	for _, f := range []struct {
		into *string
		from string
		name string
	}{{&d.Suite, other.Suite, "suite"}, {&d.NPM, other.NPM, "npm"}} {
		switch {
		case *f.into == "":
			*f.into = f.from
		case f.from != "" && f.from != *f.into:
			return fmt.Errorf("%s is both %q and %q", f.name, *f.into, f.from)
		}
	}
	d.Packages = union(d.Packages, other.Packages)
	d.Leave = union(d.Leave, other.Leave)
	d.Keep = union(d.Keep, other.Keep)
	d.Rootfs = union(d.Rootfs, other.Rootfs)
	d.Prepare = union(d.Prepare, other.Prepare)
	d.Verify = union(d.Verify, other.Verify)
	maps.Copy(d.Runtimes, other.Runtimes)
	d.DiskMiB = max(d.DiskMiB, other.DiskMiB)
	return nil
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// digest covers all that decides what is in the image, apart from the state of
// the Debian mirror: a build for newer packages is asked for with Rebuild.
func (d *Definition) digest() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "builder %s, %s\n", builderVersion, debianArch())
	declared, err := yaml.Marshal(d)
	if err != nil {
		return "", err
	}
	h.Write(declared)
	trees := slices.Clone(d.Rootfs)
	if d.NPM != "" {
		trees = append(trees, d.NPM)
	}
	for _, tree := range trees {
		err := fs.WalkDir(d.files, tree, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			text, err := fs.ReadFile(d.files, name)
			if err != nil {
				return err
			}
			fmt.Fprintf(h, "%s %d\n", name, len(text))
			h.Write(text)
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("read %s: %w", tree, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
