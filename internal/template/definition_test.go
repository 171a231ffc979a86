package template

import (
	"strings"
	"testing"
	"testing/fstest"

	"crownest.dev/crownest/internal/sandbox"
)

func TestBuiltInDefinitions(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var slugs []string
	for _, e := range s.Catalogue() {
		slugs = append(slugs, e.Slug)
		if !sandbox.ValidID(sandbox.PrefixTemplate, e.ID) || e.Name == "" || e.Description == "" {
			t.Errorf("entry %+v", e)
		}
	}
	if got, want := strings.Join(slugs, " "), "base node python python-node"; got != want {
		t.Errorf("catalogue %s, want %s", got, want)
	}
	if _, err := s.definition(Default); err != nil {
		t.Error(err)
	}
	// Identifiers are for ever: clients keep them.
	if got, want := templateID("python-node"), "tpl_ylhg7avr2s2u5hhouynu67hhud"; got != want {
		t.Errorf("template id %s, want %s", got, want)
	}
}

func TestExtends(t *testing.T) {
	files := fstest.MapFS{
		"a.yaml":   {Data: []byte("slug: a\nname: A\ndescription: A.\nsuite: s\npackages: [p, q]\nprepare: [one]\nruntimes: {r: print r}\ndisk_mib: 5\n")},
		"b.yaml":   {Data: []byte("slug: b\nname: B\ndescription: B.\nextends: [a]\npackages: [x, q]\nnpm: n\ndisk_mib: 9\n")},
		"c.yaml":   {Data: []byte("slug: c\nname: C\ndescription: C.\nextends: [a]\npackages: [y]\nprepare: [two]\n")},
		"b-c.yaml": {Data: []byte("slug: b-c\nname: BC\ndescription: BC.\nextends: [b, c]\n")},
		"n/x":      {Data: []byte("x")},
	}
	all, err := loadDefinitions(files)
	if err != nil {
		t.Fatal(err)
	}
	inputs := map[string]string{}
	for _, d := range all {
		inputs[d.Slug] = d.inputs
		if d.Slug != "b-c" {
			continue
		}
		if got, want := strings.Join(d.Packages, " "), "p q x y"; got != want {
			t.Errorf("packages %s, want %s", got, want)
		}
		if got, want := strings.Join(d.Prepare, " "), "one two"; got != want {
			t.Errorf("prepare %s, want %s", got, want)
		}
		if d.Name != "BC" || d.NPM != "n" || d.Suite != "s" || d.DiskMiB != 9 || d.Runtimes["r"] == "" {
			t.Errorf("definition %+v", d)
		}
	}
	// Every input counts, a file of a tree and a parent's package too.
	files["n/x"].Data = []byte("y")
	changed := map[string]bool{"a": false, "b": true, "c": false, "b-c": true}
	all, err = loadDefinitions(files)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if (d.inputs != inputs[d.Slug]) != changed[d.Slug] {
			t.Errorf("%s: inputs changed = %v", d.Slug, d.inputs != inputs[d.Slug])
		}
	}
}

func TestBadDefinitions(t *testing.T) {
	const head = "slug: a\nname: A\ndescription: A.\n"
	for name, tt := range map[string]struct{ text, want string }{
		"misspelt field":    {head + "suite: s\npakages: [p]\n", "pakages"},
		"path as slug":      {strings.Replace(head, "slug: a", "slug: ../a", 1), "slug"},
		"other slug":        {strings.Replace(head, "slug: a", "slug: b", 1), "file name"},
		"no packages":       {head + "suite: s\n", "required"},
		"no description":    {"slug: a\nname: A\n", "required"},
		"extends itself":    {head + "extends: [a]\n", "extends itself"},
		"extends nothing":   {head + "extends: [z]\n", "does not exist"},
		"missing rootfs":    {head + "suite: s\npackages: [p]\nrootfs: [none]\n", "none"},
		"two types":         {head + "suite: [s]\n", "cannot unmarshal"},
		"conflicting suite": {head + "extends: [o]\nsuite: t\n", "suite"},
	} {
		_, err := loadDefinitions(fstest.MapFS{
			"a.yaml": {Data: []byte(tt.text)},
			"o.yaml": {Data: []byte("slug: o\nname: O\ndescription: O.\nsuite: s\npackages: [p]\n")},
		})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
}
