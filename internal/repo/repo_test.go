package repo

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "crownest.dev/crownest/"

// goPackage is what the sources of one directory say, build tags ignored.
type goPackage struct {
	dir     string // slash-separated, relative to the root; "." is the root
	doc     bool
	imports map[string][]string // import path -> files, tests apart
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// packages parses every package of this module.
func packages(t *testing.T) []goPackage {
	t.Helper()
	top := root(t)
	byDir := map[string]*goPackage{}
	err := filepath.WalkDir(top, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			base := entry.Name()
			if name == top {
				return nil
			}
			if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil || base == "testdata" || base == "node_modules" || strings.HasPrefix(base, ".") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, filepath.Dir(name))
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(rel)
		p := byDir[dir]
		if p == nil {
			p = &goPackage{dir: dir, imports: map[string][]string{}}
			byDir[dir] = p
		}
		p.doc = p.doc || documented(file)
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			p.imports[imported] = append(p.imports[imported], path.Join(dir, entry.Name()))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var out []goPackage
	for _, p := range byDir {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b goPackage) int { return strings.Compare(a.dir, b.dir) })
	return out
}

// documented reports whether the file has a package comment of the usual form.
func documented(file *ast.File) bool {
	if file.Doc == nil {
		return false
	}
	text := file.Doc.Text()
	if file.Name.Name == "main" {
		return strings.TrimSpace(text) != ""
	}
	return strings.HasPrefix(text, "Package "+file.Name.Name+" ")
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		if !p.doc {
			t.Errorf("%s has no package comment (\"Package name ...\") that says what it is for", p.dir)
		}
	}
}

// rule forbids imports to the packages it is about.
type rule struct {
	name string
	// of says whether the rule is about the package in dir.
	of func(dir string) bool
	// imports matches what may not be imported.
	imports func(path string) bool
	why     string
}

// below matches a directory, or import path, and everything under it.
func below(prefixes ...string) func(string) bool {
	return func(s string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return s == p || strings.HasPrefix(s, p+"/") })
	}
}

func except(prefixes ...string) func(string) bool {
	in := below(prefixes...)
	return func(dir string) bool { return !in(dir) }
}

// ours matches this module's packages below the given directories.
func ours(dirs ...string) func(string) bool {
	in := below(dirs...)
	return func(imported string) bool {
		dir, ok := strings.CutPrefix(imported, module)
		return ok && in(dir)
	}
}

func notStandard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return strings.Contains(first, ".")
}

var rules = []rule{
	{"domain", below("internal/sandbox"), notStandard,
		"the domain imports the standard library only"},
	{"domain", below("internal/sandbox"), below("net/http", "database/sql", "os", "os/exec"),
		"the domain knows nothing of HTTP, SQL or files"},
	{"gVisor", except("internal/runtime/local"), below("gvisor.dev/gvisor"),
		"gVisor is the business of the local driver alone"},
	{"HTTP", except("internal/api", "internal/server", "internal/preview", "internal/cli", "internal/mcp", "internal/blob", "internal/network", "internal/obs", "bench", "test"), below("net/http"),
		"only the edges know HTTP"},
	{"SQL", except("internal/store", "bench"), below("database/sql", "modernc.org/sqlite", "github.com/jackc/pgx", "github.com/pressly/goose"),
		"only the store knows SQL"},
	{"control", below("internal/control"), ours("internal/api", "internal/cli", "internal/server", "internal/mcp", "internal/preview", "internal/store/sqldb", "internal/runtime/local", "internal/runtime/kube"),
		"the use cases declare what they need and know no implementation"},
	{"api", below("internal/api"), ours("internal/cli", "internal/server", "internal/store/sqldb", "internal/runtime", "internal/guest"),
		"the HTTP side must not be able to do what needs root"},
	{"driver", below("internal/runtime"), ours("internal/api", "internal/cli", "internal/server", "internal/control", "internal/store", "internal/blob"),
		"a driver makes sandboxes exist and knows nothing of what they are for"},
	{"guest", below("internal/guest"), ours("internal/api", "internal/cli", "internal/server", "internal/control", "internal/store", "internal/runtime", "internal/blob", "internal/template"),
		"the guest knows processes and files only"},
	{"store", below("internal/store"), ours("internal/api", "internal/cli", "internal/server", "internal/control", "internal/runtime", "internal/guest"),
		"the store keeps records and decides nothing"},
	{"template", below("internal/template", "templates"), ours("internal/api", "internal/cli", "internal/server", "internal/control", "internal/runtime", "internal/store", "internal/guest"),
		"templates are built and listed without knowing who uses them"},
	{"cli", below("internal/cli"), ours("internal/store/sqldb", "internal/runtime/local"),
		"the command line reaches them through package server"},
}

func TestImportsFollowTheArchitecture(t *testing.T) {
	for _, p := range packages(t) {
		for _, r := range rules {
			if !r.of(p.dir) {
				continue
			}
			for imported, files := range p.imports {
				if r.imports(imported) {
					t.Errorf("%s: %s may not be imported: %s", strings.Join(files, ", "), imported, r.why)
				}
			}
		}
	}
}

// TestRulesBite shows that the rules above forbid what they are there to forbid.
func TestRulesBite(t *testing.T) {
	tests := []struct {
		dir, imported string
		forbidden     bool
	}{
		{"internal/sandbox", "github.com/google/uuid", true},
		{"internal/sandbox", "time", false},
		{"internal/control", "gvisor.dev/gvisor/runsc/cli", true},
		{"internal/runtime/local/gvisor", "gvisor.dev/gvisor/runsc/cli", false},
		{"internal/control", "net/http", true},
		{"internal/api", "net/http", false},
		{"internal/control", module + "internal/store/sqldb", true},
		{"internal/control", module + "internal/store", false},
		{"internal/api", module + "internal/runtime/local", true},
		{"internal/usage", "database/sql", true},
		{"internal/store/sqldb", "database/sql", false},
	}
	for _, tt := range tests {
		forbidden := slices.ContainsFunc(rules, func(r rule) bool { return r.of(tt.dir) && r.imports(tt.imported) })
		if forbidden != tt.forbidden {
			t.Errorf("%s imports %s: forbidden = %v, want %v", tt.dir, tt.imported, forbidden, tt.forbidden)
		}
	}
}

// forbiddenWords may not be in any file: hosts of package registries and mirrors,
// which the user's own configuration names, and paths of one machine. They are
// written in pieces so that this file passes.
var forbiddenWords = []*regexp.Regexp{
	regexp.MustCompile(`(?i)\b(deb|security|ftp|snapshot)\.(debian)\.(org)\b`),
	regexp.MustCompile(`(?i)\b(archive|ports|security)\.(ubuntu)\.(com)\b`),
	regexp.MustCompile(`(?i)\bregistry\.(npmjs|yarnpkg)\.(org|com)\b`),
	regexp.MustCompile(`(?i)\b(files\.)?(pypi|pythonhosted)\.(org)\b`),
	regexp.MustCompile(`(?i)\b(proxy|sum)\.(golang)\.(org)\b`),
	regexp.MustCompile(`(?i)\b(deb|rpm)\.(nodesource)\.(com)\b`),
	regexp.MustCompile("(^|[\\s\"'`=(:])/(root|work)/[\\w.]"),
}

func TestNoFileNamesAMachineOrAMirror(t *testing.T) {
	top := root(t)
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = top
	out, err := list.Output()
	if err != nil {
		t.Skipf("not a git work tree: %v", err)
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		text, err := os.ReadFile(filepath.Join(top, name))
		if err != nil || bytes.IndexByte(text[:min(len(text), 8000)], 0) >= 0 {
			continue // deleted, a directory, or no text
		}
		for n, line := range strings.Split(string(text), "\n") {
			for _, word := range forbiddenWords {
				if found := word.FindString(line); found != "" {
					t.Errorf("%s:%d names %q", name, n+1, found)
				}
			}
		}
	}
}

func TestForbiddenWordsBite(t *testing.T) {
	for _, line := range []string{
		"see https://deb." + "debian.org/debian", "Registry." + "npmjs.org", "pypi" + ".org/simple", `"/ro` + `ot/x"`, "cd /wo" + "rk/main",
	} {
		if !slices.ContainsFunc(forbiddenWords, func(r *regexp.Regexp) bool { return r.MatchString(line) }) {
			t.Errorf("%q passes", line)
		}
	}
	for _, line := range []string{"/workspace/a", "HOME=/root", "https://pnpm.io", "a/root/b", "the debian.org archive"} {
		if slices.ContainsFunc(forbiddenWords, func(r *regexp.Regexp) bool { return r.MatchString(line) }) {
			t.Errorf("%q does not pass", line)
		}
	}
}
