package local_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/runtime/local"
	"crownest.dev/crownest/internal/runtime/runtimetest/lineguest"
)

// leftovers looks at the whole host for anything that belongs to a data directory.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	var left []string
	sum := sha256.Sum256([]byte(dir))
	group := "crownest-" + hex.EncodeToString(sum[:4])
	for _, pattern := range []string{
		filepath.Join("/sys/fs/cgroup", group), filepath.Join("/sys/fs/cgroup/*", group),
		filepath.Join(dir, "instances", "*"), filepath.Join(dir, "run", "*"), filepath.Join("/run", group, "*"),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			left = append(left, "mount "+line)
		}
	}
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range cmdlines {
		if raw, err := os.ReadFile(path); err == nil && bytes.Contains(raw, []byte(dir)) {
			left = append(left, fmt.Sprintf("process %s: %q", path, raw))
		}
	}
	// Dead, but not collected.
	children, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	if err == nil && len(bytes.TrimSpace(children)) > 0 {
		for pid := range strings.FieldsSeq(string(children)) {
			if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && bytes.Contains(stat, []byte(") Z ")) {
				left = append(left, "zombie "+string(stat))
			}
		}
	}
	return left
}

const victimEnv = "CROWNEST_TEST_VICTIM" // "dir image guest"

// victim is a server process that makes and releases sandboxes until it is killed.
func victim() {
	words := strings.Fields(os.Getenv(victimEnv))
	binary, err := os.ReadFile(words[2])
	if err != nil {
		panic(err)
	}
	guest = binary
	spec.ImageID, spec.ImagePath = "tplv_test", words[1]
	spec.Resources.MemoryBytes, spec.Resources.DiskBytes, spec.Resources.VCPU = 256<<20, 64<<20, 1
	d, err := local.New(context.Background(), local.Options{
		DataDir: words[0], Guest: guest, MaxSandboxes: 8,
		Ready: pingOnce,
	})
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	d.Prepare([]runtime.PoolTarget{{Spec: spec, Max: 2}})
	for i := 0; ; i++ {
		in, err := d.Acquire(context.Background(), spec)
		if err != nil {
			continue // full: the ones of earlier lives are never released
		}
		if i%3 == 0 {
			fmt.Println(in.ID)
			continue
		}
		if err := d.Release(context.Background(), in.ID); err != nil {
			panic(err)
		}
	}
}

// TestKilledServer kills a server at random moments, and wants the next one to
// find all that runs and to leave nothing when it has released what it found.
func TestKilledServer(t *testing.T) {
	dir, files := t.TempDir(), t.TempDir()
	guestFile := filepath.Join(files, "guest")
	if err := os.WriteFile(guestFile, guest, 0o755); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	lives := 12
	if testing.Short() {
		lives = 3
	}
	for range lives {
		// What the killed server had told of and was not released must be found.
		told := killedAfter(t, dir, guestFile, time.Duration(rnd.IntN(2000))*time.Millisecond)
		d := open(t, local.Options{DataDir: dir, MaxSandboxes: 8})
		list, err := d.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]runtime.Instance{}
		for _, in := range list {
			found[in.ID] = in
		}
		for _, id := range told {
			in, ok := found[id]
			if !ok || in.Ended || !in.Claimed {
				t.Errorf("instance %s was acquired, now it is %+v", id, in)
				continue
			}
			c, err := d.Dial(t.Context(), id)
			if err != nil {
				t.Errorf("dial: %v", err)
				continue
			}
			if answer, err := lineguest.Ask(c, "ping", 10*time.Second); answer != "pong" {
				t.Errorf("ping: %q, %v", answer, err)
			}
			c.Close()
		}
		t.Logf("told of %d, found %d", len(told), len(list))
		for _, in := range list {
			if err := d.Release(t.Context(), in.ID); err != nil {
				t.Errorf("release: %v", err)
			}
		}
		if err := d.Close(t.Context()); err != nil {
			t.Errorf("close: %v", err)
		}
		if left := leftovers(t, dir); len(left) > 0 {
			t.Fatalf("left on the host: %v", left)
		}
	}
}

// killedAfter runs a victim, kills it a while after it is ready and returns the
// instances it told of as acquired.
func killedAfter(t *testing.T, dir, guestFile string, wait time.Duration) []string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"victim"}
	cmd.Env = append(os.Environ(), victimEnv+"="+dir+" "+spec.ImagePath+" "+guestFile)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	if !sc.Scan() || sc.Text() != "ready" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("the victim did not start: %q\n%s", sc.Text(), stderr.String())
	}
	timer := time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	var told []string
	for sc.Scan() {
		told = append(told, sc.Text())
	}
	if err := cmd.Wait(); err == nil || stderr.Len() > 0 {
		t.Fatalf("the victim ended by itself: %v\n%s", err, stderr.String())
	}
	return told
}
