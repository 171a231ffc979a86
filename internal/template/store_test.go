package template

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"crownest.dev/crownest/internal/sandbox"
	"go.uber.org/goleak"
)

// killedBuildDir tells the re-executed test binary to start a build that hangs.
const killedBuildDir = "TEMPLATE_TEST_KILLED_BUILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(killedBuildDir); dir != "" {
		hangInBuild(dir)
	}
	goleak.VerifyTestMain(m)
}

const tinyYAML = `
slug: tiny
name: Tiny
description: For tests.
suite: none
packages: [one]
`

func tiny(t testing.TB, yaml string) []*Definition {
	t.Helper()
	d, err := loadDefinitions(fstest.MapFS{"tiny.yaml": {Data: []byte(yaml)}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// stub makes images of a few bytes and counts its calls.
type stub struct {
	calls   atomic.Int32
	content func(call int32) string
	during  func(ctx context.Context, dir string) error
}

func (s *stub) build(ctx context.Context, d *Definition, dir string, p *progress) (built, error) {
	n := s.calls.Add(1)
	p.phase("packages")
	p.line("building " + d.Slug)
	image := filepath.Join(dir, "root.erofs")
	text := "image"
	if s.content != nil {
		text = s.content(n)
	}
	if err := os.WriteFile(image, []byte(text), 0o600); err != nil {
		return built{}, err
	}
	if s.during != nil {
		if err := s.during(ctx, dir); err != nil {
			return built{}, err
		}
	}
	return built{image, Contents{OS: "None 1", Runtimes: map[string]string{"x": "1"}, Packages: []string{"one=1"}}}, nil
}

func openTiny(t testing.TB, dir string, b builder) *Store {
	t.Helper()
	s, err := open(dir, tiny(t, tinyYAML), b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// onlyVersions fails if the template's directory holds anything but n versions
// and the lock.
func onlyVersions(t *testing.T, s *Store, n int) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, "tiny"))
	if err != nil {
		t.Fatal(err)
	}
	versions := 0
	for _, e := range entries {
		switch {
		case sandbox.ValidID(sandbox.PrefixTemplateVersion, e.Name()):
			versions++
		case e.Name() != lockName:
			t.Errorf("left behind: %s", e.Name())
		}
	}
	if versions != n {
		t.Errorf("%d versions, want %d", versions, n)
	}
}

func TestBuildOnceThenNothing(t *testing.T) {
	b := &stub{}
	s := openTiny(t, t.TempDir(), b.build)
	if _, err := s.Current("tiny"); !errors.Is(err, ErrNotBuilt) {
		t.Fatalf("Current before the build: %v", err)
	}
	if ok, err := s.UpToDate("tiny"); ok || err != nil {
		t.Fatalf("UpToDate before the build = %v, %v", ok, err)
	}
	var phases []string
	v, err := s.Build(t.Context(), "tiny", func(p Progress) {
		if len(phases) == 0 || phases[len(phases)-1] != p.Phase {
			phases = append(phases, p.Phase)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(phases, ","), "packages,store,done"; got != want {
		t.Errorf("phases %s, want %s", got, want)
	}
	if !sandbox.ValidID(sandbox.PrefixTemplateVersion, v.ID) || !sandbox.ValidID(sandbox.PrefixTemplate, v.TemplateID) {
		t.Errorf("ids %q, %q", v.ID, v.TemplateID)
	}
	text, err := os.ReadFile(v.ImagePath)
	if err != nil || string(text) != "image" || v.ImageSizeBytes != 5 {
		t.Errorf("image %q (%v), size %d", text, err, v.ImageSizeBytes)
	}

	again, err := s.Build(t.Context(), "tiny", nil)
	if err != nil || again.ID != v.ID || b.calls.Load() != 1 {
		t.Errorf("second build: %s, %v, %d calls", again.ID, err, b.calls.Load())
	}
	// Another process sees the same.
	other := openTiny(t, s.dir, b.build)
	for name, get := range map[string]func() (Version, error){
		"Current":   func() (Version, error) { return other.Current("tiny") },
		"ByVersion": func() (Version, error) { return other.ByVersion(v.ID) },
	} {
		got, err := get()
		if err != nil || fmt.Sprint(got) != fmt.Sprint(v) {
			t.Errorf("%s: %v, %v\nwant %v", name, got, err, v)
		}
	}
	onlyVersions(t, s, 1)
}

func TestAChangedDefinitionIsBuiltAnew(t *testing.T) {
	dir := t.TempDir()
	b := &stub{content: func(n int32) string { return fmt.Sprint("image ", n) }}
	first, err := openTiny(t, dir, b.build).Build(t.Context(), "tiny", nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := open(dir, tiny(t, strings.Replace(tinyYAML, "[one]", "[one, two]", 1)), b.build)
	if err != nil {
		t.Fatal(err)
	}
	// Until then the old version serves.
	if v, err := s.Current("tiny"); err != nil || v.ID != first.ID {
		t.Errorf("Current = %s, %v", v.ID, err)
	}
	if ok, err := s.UpToDate("tiny"); ok || err != nil {
		t.Errorf("UpToDate = %v, %v", ok, err)
	}
	second, err := s.Build(t.Context(), "tiny", nil)
	if err != nil || second.ID == first.ID {
		t.Fatalf("second version %s, %v", second.ID, err)
	}
	if v, err := s.ByVersion(first.ID); err != nil || v.ImageSHA256 != first.ImageSHA256 {
		t.Errorf("the first version is gone: %v", err)
	}
	if !strings.HasSuffix(first.Version, "-1") || !strings.HasSuffix(second.Version, "-2") {
		t.Errorf("versions %s and %s", first.Version, second.Version)
	}
	onlyVersions(t, s, 2)
}

func TestRebuild(t *testing.T) {
	b := &stub{content: func(n int32) string { return fmt.Sprint("image ", n/2) }} // 0, 1, 1
	s := openTiny(t, t.TempDir(), b.build)
	var ids []string
	for range 3 {
		v, err := s.Rebuild(t.Context(), "tiny", nil)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, v.ID)
	}
	if ids[0] == ids[1] || ids[1] != ids[2] {
		t.Errorf("ids %v: a different image is a new version, an equal one is not", ids)
	}
	pruned, err := s.Prune(t.Context(), "tiny", func(id string) bool { return id == ids[0] })
	if err != nil || len(pruned) != 0 {
		t.Errorf("pruned %v, %v: it is in use", pruned, err)
	}
	pruned, err = s.Prune(t.Context(), "tiny", func(string) bool { return false })
	if err != nil || len(pruned) != 1 || pruned[0].ID != ids[0] {
		t.Errorf("pruned %v, %v", pruned, err)
	}
	if _, err := s.ByVersion(ids[0]); !errors.Is(err, ErrUnknown) {
		t.Errorf("pruned version: %v", err)
	}
	onlyVersions(t, s, 1)
}

func TestRacingBuilders(t *testing.T) {
	dir := t.TempDir()
	waiting := make(chan struct{}, 3)
	b := &stub{}
	b.during = func(ctx context.Context, _ string) error {
		for range 3 { // the others have told that they wait
			select {
			case <-waiting:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	ids := make([]string, 4)
	for i := range ids {
		s := openTiny(t, dir, b.build) // its own store, like its own process
		wg.Go(func() {
			v, err := s.Build(ctx, "tiny", func(p Progress) {
				if p.Phase == PhaseWaiting {
					waiting <- struct{}{}
				}
			})
			if err != nil {
				t.Error(err)
			}
			ids[i] = v.ID
		})
	}
	wg.Wait()
	if b.calls.Load() != 1 {
		t.Errorf("%d builds, want 1", b.calls.Load())
	}
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Errorf("ids %v", ids)
			break
		}
	}
}

func TestWaitingBuilderCanGiveUp(t *testing.T) {
	dir := t.TempDir()
	started, release := make(chan struct{}), make(chan struct{})
	b := &stub{during: func(context.Context, string) error { close(started); <-release; return nil }}
	done := make(chan error, 1)
	s := openTiny(t, dir, b.build)
	go func() { _, err := s.Build(t.Context(), "tiny", nil); done <- err }()
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	_, err := openTiny(t, dir, b.build).Build(ctx, "tiny", func(p Progress) {
		if p.Phase == PhaseWaiting {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("waiting builder: %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("first builder: %v", err)
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	b := &stub{during: func(_ context.Context, dir string) error {
		if err := os.MkdirAll(filepath.Join(dir, "root", "usr"), 0o755); err != nil {
			return err
		}
		return errors.New("no such package")
	}}
	s := openTiny(t, t.TempDir(), b.build)
	_, err := s.Build(t.Context(), "tiny", nil)
	if err == nil || !strings.Contains(err.Error(), "no such package") || !strings.Contains(err.Error(), "building tiny") {
		t.Errorf("error %v: want cause and last output", err)
	}
	onlyVersions(t, s, 0)
	b.during = nil
	if _, err := s.Build(t.Context(), "tiny", nil); err != nil {
		t.Errorf("next build: %v", err)
	}
	onlyVersions(t, s, 1)
}

func TestDiskSpaceIsCheckedBefore(t *testing.T) {
	b := &stub{}
	s, err := open(t.TempDir(), tiny(t, tinyYAML+"disk_mib: 100\n"), b.build)
	if err != nil {
		t.Fatal(err)
	}
	s.free = func(string) (int64, error) { return 99 << 20, nil }
	if _, err := s.Build(t.Context(), "tiny", nil); err == nil || !strings.Contains(err.Error(), "99 MiB free") {
		t.Errorf("error %v", err)
	}
	if b.calls.Load() != 0 {
		t.Error("built all the same")
	}
	s.free = func(string) (int64, error) { return 100 << 20, nil }
	if _, err := s.Build(t.Context(), "tiny", nil); err != nil {
		t.Error(err)
	}
}

// hangInBuild runs in a process of its own, which the test kills.
func hangInBuild(dir string) {
	definitions, err := loadDefinitions(fstest.MapFS{"tiny.yaml": {Data: []byte(tinyYAML)}})
	if err != nil {
		panic(err)
	}
	s, err := open(dir, definitions, func(_ context.Context, _ *Definition, work string, _ *progress) (built, error) {
		if err := os.WriteFile(filepath.Join(work, "half"), []byte("half"), 0o600); err != nil {
			return built{}, err
		}
		fmt.Println("building")
		select {}
	})
	if err != nil {
		panic(err)
	}
	go func() { _, _ = os.Stdin.Read(make([]byte, 1)); os.Exit(0) }() // the test is gone
	_, _ = s.Build(context.Background(), "tiny", nil)
}

func TestKilledBuildIsSweptByTheNext(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killedBuildDir+"="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	left, err := filepath.Glob(filepath.Join(dir, "tiny", buildPrefix+"*", "half"))
	if err != nil || len(left) != 1 {
		t.Fatalf("the killed build left %v, %v: the test shows nothing", left, err)
	}
	b := &stub{}
	s := openTiny(t, dir, b.build)
	if _, err := s.Build(t.Context(), "tiny", nil); err != nil {
		t.Fatal(err)
	}
	onlyVersions(t, s, 1)
}

func TestBrokenVersionsArePassedOver(t *testing.T) {
	b := &stub{}
	s := openTiny(t, t.TempDir(), b.build)
	v, err := s.Build(t.Context(), "tiny", nil)
	if err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(filepath.Dir(v.ImagePath), manifestName)
	good, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	other, err := json.Marshal(Version{ID: derivedID(sandbox.PrefixTemplateVersion, "other"), InputsSHA256: v.InputsSHA256})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"cut": good[:len(good)/2], "empty": nil, "of another version": other} {
		if err := os.Chmod(manifest, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(manifest, text, 0o600); err != nil {
			t.Fatal(err)
		}
		fresh := openTiny(t, s.dir, b.build)
		if got, err := fresh.Current("tiny"); !errors.Is(err, ErrNotBuilt) {
			t.Errorf("manifest %s: %v, %v", name, got.ID, err)
		}
	}
	// Building makes it good again.
	if again, err := openTiny(t, s.dir, b.build).Build(t.Context(), "tiny", nil); err != nil || again.ID != v.ID {
		t.Errorf("rebuilt %s, %v", again.ID, err)
	}
	// An image cut short does not count either.
	if err := os.Chmod(v.ImagePath, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(v.ImagePath, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := openTiny(t, s.dir, b.build).Current("tiny"); !errors.Is(err, ErrNotBuilt) {
		t.Errorf("cut image: %v", err)
	}
}

func TestUnknownTemplate(t *testing.T) {
	s := openTiny(t, t.TempDir(), (&stub{}).build)
	for _, slug := range []string{"", "other", "../tiny", "tiny/..", "lock"} {
		if _, err := s.Current(slug); !errors.Is(err, ErrUnknown) {
			t.Errorf("Current(%q): %v", slug, err)
		}
		if _, err := s.Build(t.Context(), slug, nil); !errors.Is(err, ErrUnknown) {
			t.Errorf("Build(%q): %v", slug, err)
		}
	}
	if _, err := s.ByVersion("../../etc"); !errors.Is(err, ErrUnknown) {
		t.Errorf("ByVersion: %v", err)
	}
}
