package template

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// built is what a builder made.
type built struct {
	image    string // path of the image file
	contents Contents
}

// builder makes the image of a definition below dir, which is its own.
type builder func(ctx context.Context, d *Definition, dir string, p *progress) (built, error)

const phaseNPM = "npm packages"

// sourceDate is the time stamp of every file in an image, so that equal contents
// make equal images. The value means nothing; it only has to stay.
const sourceDate = 1767225600 // 2026-01-01

// tools are the programs a build runs, with the Debian package that has each.
var tools = []struct{ program, pkg string }{
	{"mmdebstrap", "mmdebstrap"}, {"mkfs.erofs", "erofs-utils"}, {"npm", "npm"},
}

// MissingTools lists the Debian packages that building the built-in templates
// needs and that this host lacks.
func MissingTools() []string {
	var missing []string
	for _, t := range tools {
		if _, err := exec.LookPath(t.program); err != nil {
			missing = append(missing, t.pkg)
		}
	}
	return missing
}

// buildImage makes an image with the host's own tools: Debian packages by
// mmdebstrap, npm packages by npm, the file system by mkfs.erofs.
func buildImage(ctx context.Context, d *Definition, dir string, p *progress) (built, error) {
	if os.Geteuid() != 0 {
		return built{}, errors.New("building a template needs root")
	}
	if missing := MissingTools(); len(missing) > 0 {
		return built{}, fmt.Errorf("programs are missing; remedy: apt-get install %s", strings.Join(missing, " "))
	}
	b := &imageBuild{d: d, dir: dir, root: filepath.Join(dir, "root"), p: p}
	for _, step := range []struct {
		phase string
		do    func(context.Context) error
	}{
		{phaseNPM, b.installNPM},
		{"packages", b.installDebian},
		{"configure", b.configure},
		{"verify", b.verify},
		{"record contents", b.record},
		{"image", b.pack},
	} {
		if step.phase == phaseNPM && d.NPM == "" {
			continue
		}
		p.phase(step.phase)
		if err := step.do(ctx); err != nil {
			return built{}, fmt.Errorf("%s: %w", step.phase, err)
		}
	}
	return built{image: b.image(), contents: b.contents}, nil
}

type imageBuild struct {
	d         *Definition
	dir, root string
	p         *progress
	contents  Contents
}

func (b *imageBuild) image() string { return filepath.Join(b.dir, "root.erofs") }

// installNPM runs before anything slow: a package that is gone fails at once. The
// lock file has the integrity hash of every package, which npm verifies, and no
// address, so that the host's npm configuration says where they come from.
//
// It is npm install and not npm ci, which wants packages of every platform in the
// lock file, also those that a registry does not have; lockedOnly makes up for it.
func (b *imageBuild) installNPM(ctx context.Context) error {
	work := filepath.Join(b.dir, "npm")
	files, err := fs.Sub(b.d.files, b.d.NPM)
	if err != nil {
		return err
	}
	if err := os.CopyFS(work, files); err != nil {
		return err
	}
	err = command{
		argv: []string{
			"npm", "install", "--no-save", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund",
			"--no-update-notifier", "--engine-strict=false", "--loglevel=error",
		},
		dir: work, env: os.Environ(), lines: b.p.line,
	}.run(ctx)
	if err != nil {
		return err
	}
	return lockedOnly(work)
}

// npmLock is the part of npm's lock files that matters here.
type npmLock struct {
	Packages map[string]struct {
		Version   string `json:"version"`
		Integrity string `json:"integrity"`
		InBundle  bool   `json:"inBundle"`
	} `json:"packages"`
}

func readNPMLock(name string) (npmLock, error) {
	var lock npmLock
	text, err := os.ReadFile(name)
	if err != nil {
		return lock, err
	}
	if err := json.Unmarshal(text, &lock); err != nil {
		return lock, fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return lock, nil
}

// lockedOnly fails if npm installed a package otherwise than the lock file in work
// says, and removes those that it does not name: an older npm also installs
// optional packages that are for another C library.
func lockedOnly(work string) error {
	want, err := readNPMLock(filepath.Join(work, "package-lock.json"))
	if err != nil {
		return err
	}
	got, err := readNPMLock(filepath.Join(work, "node_modules", ".package-lock.json"))
	if err != nil {
		return err
	}
	for name, p := range got.Packages {
		locked, ok := want.Packages[name]
		switch {
		case !ok:
			if !filepath.IsLocal(name) || !strings.HasPrefix(name, "node_modules/") {
				return fmt.Errorf("npm installed outside of node_modules: %s", name)
			}
			if err := os.RemoveAll(filepath.Join(work, name)); err != nil {
				return err
			}
		case p.Version != locked.Version || p.Integrity != locked.Integrity || p.Integrity == "" && !p.InBundle:
			return fmt.Errorf("npm installed %s %s %s, the lock file has %s %s", name, p.Version, p.Integrity, locked.Version, locked.Integrity)
		}
	}
	return nil
}

func (b *imageBuild) installDebian(ctx context.Context) error {
	argv := []string{
		"mmdebstrap", "--verbose", "--mode=root", "--variant=minbase", "--format=directory",
		"--include=" + strings.Join(b.d.Packages, ","),
		`--aptopt=Acquire::Languages "none"`,
		`--aptopt=Acquire::Retries "3"`,
	}
	// dpkg lets the last matching pattern win.
	for _, pattern := range b.d.Leave {
		argv = append(argv, "--dpkgopt=path-exclude="+pattern)
	}
	for _, pattern := range b.d.Keep {
		argv = append(argv, "--dpkgopt=path-include="+pattern)
	}
	for _, option := range aptProxies(ctx) {
		argv = append(argv, "--aptopt="+option)
	}
	argv = append(argv, b.d.Suite, b.root)
	argv = append(argv, aptSources(ctx, b.d.Suite)...)

	count := &packageCount{}
	return command{
		argv: argv,
		env:  append(os.Environ(), "LC_ALL=C", "SOURCE_DATE_EPOCH="+strconv.Itoa(sourceDate)),
		lines: func(line string) {
			b.p.line(line)
			if percent, ok := count.line(line); ok {
				b.p.percent(percent)
			}
		},
	}.run(ctx)
}

func (b *imageBuild) configure(ctx context.Context) error {
	for _, tree := range b.d.Rootfs {
		if err := copyTree(b.d.files, tree, b.root); err != nil {
			return err
		}
	}
	if b.d.NPM != "" {
		if err := b.placeNPM(); err != nil {
			return err
		}
	}
	for _, line := range b.d.Prepare {
		if err := b.inRoot(ctx, "0:0", line, nil); err != nil {
			return err
		}
	}
	return nil
}

// placeNPM moves what npm installed to where global packages live, and links their
// programs. Of Node.js only the program stays.
func (b *imageBuild) placeNPM() error {
	lib := filepath.Join(b.root, "usr/local/lib/node_modules")
	if err := os.Rename(filepath.Join(b.dir, "npm/node_modules"), lib); err != nil {
		return err
	}
	bin := filepath.Join(lib, ".bin")
	links, err := os.ReadDir(bin)
	if err != nil {
		return err
	}
	for _, link := range links {
		target, err := os.Readlink(filepath.Join(bin, link.Name()))
		if err != nil {
			return err
		}
		inLib := path.Join(".bin", target)
		if err := os.Symlink(path.Join("../lib/node_modules", inLib), filepath.Join(b.root, "usr/local/bin", link.Name())); err != nil {
			return err
		}
	}
	remove := []string{bin, filepath.Join(lib, ".package-lock.json")}
	node, err := filepath.Glob(filepath.Join(lib, "node-linux-*"))
	if err != nil {
		return err
	}
	for _, dir := range node {
		remove = append(remove, filepath.Join(dir, "include"), filepath.Join(dir, "share"), filepath.Join(dir, "CHANGELOG.md"))
	}
	for _, name := range remove {
		if err := os.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

func (b *imageBuild) verify(ctx context.Context) error {
	for _, line := range b.d.Verify {
		if err := b.inRoot(ctx, "1000:1000", line, nil); err != nil {
			return err
		}
	}
	return nil
}

func (b *imageBuild) record(ctx context.Context) error {
	release, err := osRelease(filepath.Join(b.root, "etc/os-release"))
	if err != nil {
		return err
	}
	b.contents = Contents{OS: release["PRETTY_NAME"], Runtimes: map[string]string{}}
	if point, err := os.ReadFile(filepath.Join(b.root, "etc/debian_version")); err == nil {
		b.contents.OS = release["NAME"] + " " + strings.TrimSpace(string(point)) + " (" + release["VERSION_CODENAME"] + ")"
	}
	for _, name := range slices.Sorted(maps.Keys(b.d.Runtimes)) {
		var out bytes.Buffer
		if err := b.inRoot(ctx, "1000:1000", b.d.Runtimes[name], &out); err != nil {
			return err
		}
		version := strings.TrimSpace(out.String())
		if version == "" || strings.ContainsAny(version, "\n\r") {
			return fmt.Errorf("runtime %s: no version in %q", name, version)
		}
		b.contents.Runtimes[name] = version
	}
	var out bytes.Buffer
	if err := b.inRoot(ctx, "0:0", `dpkg-query -W -f '${Package}=${Version}\n'`, &out); err != nil {
		return err
	}
	b.contents.Packages = strings.Fields(out.String())
	slices.Sort(b.contents.Packages)
	return nil
}

// inRoot runs a shell line inside the image as it stands, without a network.
func (b *imageBuild) inRoot(ctx context.Context, user, line string, stdout *bytes.Buffer) error {
	home, name := "/root", "root"
	if user != "0:0" {
		home, name = "/home/sandbox", "sandbox"
	}
	const enter = `mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount -t tmpfs -o mode=1777 tmpfs "$1/tmp" &&
exec chroot --userspec="$2" "$1" /bin/bash -euo pipefail -c "$3"`
	c := command{
		argv:    []string{"/bin/sh", "-c", enter, "sh", b.root, user, line},
		offline: true,
		env: []string{
			"PATH=" + Path, "HOME=" + home, "USER=" + name, "LANG=C.UTF-8",
			"SOURCE_DATE_EPOCH=" + strconv.Itoa(sourceDate), "PYTHONDONTWRITEBYTECODE=1",
		},
		lines: b.p.line,
	}
	if stdout != nil {
		c.stdout = stdout
	}
	if err := c.run(ctx); err != nil {
		return fmt.Errorf("%q: %w", line, err)
	}
	return nil
}

func (b *imageBuild) pack(ctx context.Context) error {
	if err := b.tidy(); err != nil {
		return err
	}
	// gVisor maps the image: no compression, and no tail packing, which it does not
	// know. A UUID is needed that is the same for the same inputs.
	uuid := fmt.Sprintf("%s-%s-4%s-8%s-%s", b.d.inputs[:8], b.d.inputs[8:12], b.d.inputs[12:15], b.d.inputs[15:18], b.d.inputs[18:30])
	return command{
		argv: []string{
			"mkfs.erofs", "-d0", "-x-1", "-Enoinline_data", "-T" + strconv.Itoa(sourceDate), "-U" + uuid,
			b.image(), b.root,
		},
		env: os.Environ(), lines: b.p.line,
	}.run(ctx)
}

// tidy empties what must not be in an image: traces of the build, of this host
// and of its mirrors, and devices.
func (b *imageBuild) tidy() error {
	empty := []string{
		"dev", "proc", "sys", "run", "tmp", "var/tmp", "var/log", "var/cache/apt", "var/lib/apt/lists",
		"etc/apt/sources.list.d", "root", "home/sandbox/.npm",
	}
	gone := []string{
		"etc/apt/sources.list", "etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
		"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "etc/machine-id",
		"var/cache/ldconfig/aux-cache", "var/cache/debconf/config.dat-old", "var/cache/debconf/templates.dat-old",
		"var/lib/dpkg/status-old", "var/lib/dpkg/diversions-old", "var/lib/dpkg/statoverride-old", "var/lib/dpkg/lock",
		"var/lib/dpkg/lock-frontend", "var/lib/dpkg/triggers/Lock", "var/lib/systemd/deb-systemd-helper-enabled",
	}
	for _, dir := range empty {
		entries, err := os.ReadDir(filepath.Join(b.root, dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			gone = append(gone, filepath.Join(dir, e.Name()))
		}
	}
	for _, name := range gone {
		if err := os.RemoveAll(filepath.Join(b.root, name)); err != nil {
			return err
		}
	}
	return nil
}

// copyTree copies a tree of plain files over root; what is there gives way, a
// link too.
func copyTree(files fs.FS, tree, root string) error {
	return fs.WalkDir(files, tree, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(root, strings.TrimPrefix(name, tree))
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.WriteFile(target, text, 0o644)
	})
}

// aptSources returns the sources that have the suite: those of a Debian host with
// the suite's name put in, so that a company's mirror is honoured; none
// elsewhere, which makes mmdebstrap take its own default.
func aptSources(ctx context.Context, suite string) []string {
	release, err := osRelease("/etc/os-release")
	if err != nil || release["ID"] != "debian" || release["VERSION_CODENAME"] == "" {
		return nil
	}
	// apt itself reads its sources, in every format it knows.
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets",
		"--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages").Output()
	if err != nil {
		return nil
	}
	return sourcesFor(string(out), release["VERSION_CODENAME"], suite)
}

// sourcesFor turns lines of "site release component" of a host that runs the
// release codename into source lines for suite.
func sourcesFor(targets, codename, suite string) []string {
	var lines []string
	main := false
	for line := range strings.Lines(targets) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "main" {
			continue
		}
		pocket, ok := strings.CutPrefix(f[1], codename)
		if !ok || pocket != "" && pocket != "-updates" && pocket != "-security" {
			continue
		}
		main = main || pocket == ""
		source := "deb " + f[0] + " " + suite + pocket + " main"
		if !slices.Contains(lines, source) {
			lines = append(lines, source)
		}
	}
	if !main {
		return nil
	}
	return lines
}

// aptProxies returns the host's proxy settings as apt options.
func aptProxies(ctx context.Context) []string {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return nil
	}
	var options []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(strings.TrimSpace(line), ";")
		if name, _, ok := strings.Cut(line, " "); ok && proxyOption.MatchString(name) {
			options = append(options, line)
		}
	}
	return options
}

var proxyOption = regexp.MustCompile(`^Acquire::https?::[Pp]roxy`)

// osRelease reads a file of NAME=value lines.
func osRelease(name string) (map[string]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	values := map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), "="); ok {
			values[k] = strings.Trim(v, `"'`)
		}
	}
	return values, nil
}

// debianArch is Debian's name of the architecture this program was built for.
func debianArch() string {
	if runtime.GOARCH == "386" {
		return "i386"
	}
	return runtime.GOARCH
}

// packageCount reads how far the installation is from the output of apt and dpkg.
type packageCount struct{ total, fetched, unpacked, ready int }

var newlyInstalled = regexp.MustCompile(`(\d+) newly installed`)

// line takes one line of output and returns the percentage done, if known.
func (c *packageCount) line(line string) (float64, bool) {
	switch {
	case strings.HasPrefix(line, "Get:"):
		c.fetched++
	case strings.HasPrefix(line, "Unpacking "):
		c.unpacked++
	case strings.HasPrefix(line, "Setting up "):
		c.ready++
	default:
		m := newlyInstalled.FindStringSubmatch(line)
		if m == nil {
			return 0, false
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			return 0, false
		}
		c.total = max(c.total, n) // apt says it again with each of its runs
		c.fetched = 0             // what came before were package lists
	}
	if c.total == 0 {
		return 0, false
	}
	part := func(n int) float64 { return float64(min(n, c.total)) / float64(c.total) }
	return 100 * (0.3*part(c.fetched) + 0.4*part(c.unpacked) + 0.3*part(c.ready)), true
}

// freeBytes is the space that an ordinary user of the file system has left.
func freeBytes(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}
