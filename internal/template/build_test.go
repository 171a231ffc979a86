package template

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func TestPackageCount(t *testing.T) {
	c := &packageCount{}
	var last float64
	known := false
	for _, line := range []string{
		"Get:1 http://mirror.invalid trixie InRelease [140 kB]",
		"Get:2 http://mirror.invalid trixie/main amd64 Packages [9,669 kB]",
		"0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.",
		"Get:1 http://mirror.invalid trixie/main amd64 bash amd64 5.2 [1,500 kB]",
		"Get:2 http://mirror.invalid trixie/main amd64 tar amd64 1.35 [800 kB]",
		"Unpacking bash (5.2) ...",
		"Unpacking tar (1.35) ...",
		"Setting up bash (5.2) ...",
		"Setting up tar (1.35) ...",
	} {
		percent, ok := c.line(line)
		if strings.HasPrefix(line, "0 upgraded") {
			known = true
			if percent != 0 {
				t.Errorf("package lists count as packages: %v", percent)
			}
		}
		if ok != known {
			t.Errorf("%q: known = %v, want %v", line, ok, known)
		}
		if percent < last {
			t.Errorf("%q: %v after %v", line, percent, last)
		}
		last = percent
	}
	if last < 99.9 || last > 100 {
		t.Errorf("at the end %v", last)
	}
	if _, ok := c.line("99999999999999999999 newly installed"); ok {
		t.Error("an absurd number is taken")
	}
}

func TestSourcesFor(t *testing.T) {
	for name, tt := range map[string]struct{ targets, want string }{
		"mirror of a company": {
			"http://m.invalid/debian bookworm main\nhttp://m.invalid/debian bookworm-updates main\nhttp://m.invalid/sec bookworm-security main\n" +
				"http://m.invalid/debian bookworm contrib\nhttp://other.invalid/apt nodistro main\n",
			"deb http://m.invalid/debian trixie main|deb http://m.invalid/debian trixie-updates main|deb http://m.invalid/sec trixie-security main",
		},
		"two mirrors, one twice": {
			"http://a.invalid bookworm main\nhttp://b.invalid bookworm main\nhttp://a.invalid bookworm main\n",
			"deb http://a.invalid trixie main|deb http://b.invalid trixie main",
		},
		// What is not understood is left to mmdebstrap's default.
		"only updates":      {"http://a.invalid bookworm-updates main\n", ""},
		"backports":         {"http://a.invalid bookworm-backports main\n", ""},
		"named by role":     {"http://a.invalid stable main\n", ""},
		"longer codename":   {"http://a.invalid bookworms main\n", ""},
		"nothing":           {"", ""},
		"too many words":    {"http://a.invalid x bookworm main\n", ""},
		"no final new line": {"http://a.invalid bookworm main", "deb http://a.invalid trixie main"},
	} {
		if got := strings.Join(sourcesFor(tt.targets, "bookworm", "trixie"), "|"); got != tt.want {
			t.Errorf("%s: %s\nwant %s", name, got, tt.want)
		}
	}
}

func TestProxyOption(t *testing.T) {
	for name, want := range map[string]bool{
		"Acquire::http::Proxy": true, "Acquire::https::Proxy": true, "Acquire::http::proxy::m.invalid": true,
		"Acquire::http::Timeout": false, "DPkg::Pre-Install-Pkgs": false,
	} {
		if got := proxyOption.MatchString(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestLineWriter(t *testing.T) {
	var lines []string
	w := &lineWriter{emit: func(s string) { lines = append(lines, s) }}
	for _, part := range []string{"one\ntw", "o\r", "\r\n\n  \n", "bad \xff byte\n", strings.Repeat("x", 3*maxLine), "xx\nlast"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	w.flush()
	want := []string{"one", "two", "bad ? byte", strings.Repeat("x", maxLine), "last"}
	if strings.Join(lines, "|") != strings.Join(want, "|") {
		t.Errorf("lines %q", lines)
	}
}

func TestTailKeepsTheLast(t *testing.T) {
	var log tail
	for i := range 3 * tailLines {
		log.add(strconv.Itoa(i))
	}
	lines := strings.Split(log.String(), "\n")
	if len(lines) != tailLines || lines[0] != strconv.Itoa(2*tailLines) || lines[tailLines-1] != strconv.Itoa(3*tailLines-1) {
		t.Errorf("kept %v", lines)
	}
}

func TestCopyTreeReplacesLinks(t *testing.T) {
	root, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("host"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{"tree/etc/resolv.conf": {Data: []byte("image")}, "tree/etc/deep/x": {Data: []byte("x")}}
	if err := copyTree(files, "tree", root); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{outside: "host", filepath.Join(root, "etc/resolv.conf"): "image", filepath.Join(root, "etc/deep/x"): "x"} {
		if text, err := os.ReadFile(name); err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
}

func TestLockedOnly(t *testing.T) {
	const want = `{"packages": {"": {}, "node_modules/a": {"version": "1.0.0", "integrity": "sha512-aa"}, "node_modules/b": {"version": "1.0.0", "integrity": "sha512-bb"}, "node_modules/a/node_modules/c": {"version": "2.0.0", "inBundle": true}}}`
	for name, tt := range map[string]struct{ got, err, gone string }{
		"as locked":         {got: `{"packages": {"node_modules/a": {"version": "1.0.0", "integrity": "sha512-aa"}, "node_modules/a/node_modules/c": {"version": "2.0.0", "inBundle": true}}}`},
		"other bytes":       {got: `{"packages": {"node_modules/a": {"version": "1.0.0", "integrity": "sha512-xx"}}}`, err: "sha512-xx"},
		"other version":     {got: `{"packages": {"node_modules/b": {"version": "1.0.1", "integrity": "sha512-bb"}}}`, err: "1.0.1"},
		"no hash":           {got: `{"packages": {"node_modules/a": {"version": "1.0.0"}}}`, err: "node_modules/a"},
		"one more":          {got: `{"packages": {"node_modules/musl": {"version": "1.0.0", "integrity": "sha512-aa"}}}`, gone: "node_modules/musl"},
		"out of the tree":   {got: `{"packages": {"node_modules/../../x": {"version": "1.0.0", "integrity": "sha512-aa"}}}`, err: "outside"},
		"not a lock at all": {got: `[]`, err: "lock"},
	} {
		t.Run(name, func(t *testing.T) {
			work := t.TempDir()
			for _, dir := range []string{"node_modules/a", "node_modules/musl"} {
				if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for file, text := range map[string]string{"package-lock.json": want, "node_modules/.package-lock.json": tt.got} {
				if err := os.WriteFile(filepath.Join(work, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := lockedOnly(work)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if tt.gone != "" {
				if _, err := os.Stat(filepath.Join(work, tt.gone)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is still there", tt.gone)
				}
			}
			if _, err := os.Stat(filepath.Join(work, "node_modules/a")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCommandEndsWithItsTree shows that nothing a program started, and no mount
// it made, outlives it, even when it is ended by force.
func TestCommandEndsWithItsTree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pipe, inside, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	err = command{
		// A daemon of its own session holds the pipe, on a mount of its own.
		argv: []string{"/bin/sh", "-c", `mount -t tmpfs none "$1" && touch "$1/mounted" && setsid sleep 600 & echo started >&2; sleep 600`, "sh", dir},
		env:  os.Environ(), offline: true, stdout: inside,
		lines: func(string) { cancel() }, // it has started
	}.run(ctx)
	inside.Close()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	// The pipe ends when its last holder is gone.
	if err := pipe.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 16); ; {
		if _, err := pipe.Read(buf); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a process of the tree is alive")
			}
			break
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the mount is visible outside: %v, %v", entries, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("the mount is still there (%v)", err)
	}
}
