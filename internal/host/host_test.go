package host

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseRelease(t *testing.T) {
	for s, want := range map[string][2]int{
		"6.18.44-fc-v669": {6, 18},
		"5.10.0-28-amd64": {5, 10},
		"4.19":            {4, 19},
		"7.0-rc1":         {7, 0},
	} {
		if got, ok := parseRelease(s); !ok || got != want {
			t.Errorf("%q: %v, %v", s, got, ok)
		}
	}
	for _, s := range []string{"", "6", "six.one", "6.", "-1.5", "6.x"} {
		if got, ok := parseRelease(s); ok {
			t.Errorf("%q was read as %v", s, got)
		}
	}
}

func TestMissingCapabilities(t *testing.T) {
	all := "Name:\tx\nCapEff:\t000001ffffffffff\n"
	if missing, err := missingCapabilities(all); err != nil || len(missing) > 0 {
		t.Errorf("all: %v, %v", missing, err)
	}
	none := "CapEff:\t0000000000000000\n"
	if missing, err := missingCapabilities(none); err != nil || len(missing) != len(needed) {
		t.Errorf("none: %v, %v", missing, err)
	}
	// What a container has by default.
	docker := "CapEff:\t00000000a80425fb\n"
	missing, err := missingCapabilities(docker)
	if err != nil || !slices.Contains(missing, "CAP_SYS_ADMIN") || slices.Contains(missing, "CAP_SETUID") {
		t.Errorf("container: %v, %v", missing, err)
	}
	if _, err := missingCapabilities("Name: x\n"); err == nil {
		t.Error("a status without capabilities was accepted")
	}
}

func TestDisk(t *testing.T) {
	dir := t.TempDir()
	if c := disk(filepath.Join(dir, "not", "yet", "there")); !c.OK || !strings.Contains(c.Detail, dir) {
		t.Errorf("a directory that is still to be made: %+v", c)
	}
	if c := disk("/proc/nothing"); c.OK {
		t.Errorf("a directory that cannot be made: %+v", c)
	}
}

func TestPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if c := port(t.Context(), l.Addr().String()); c.OK || c.Remedy == "" {
		t.Errorf("a port in use: %+v", c)
	}
	l.Close()
	if c := port(t.Context(), l.Addr().String()); !c.OK {
		t.Errorf("a free port: %+v", c)
	}
}

// TestRun holds what doctor relies on: every check has a name of its own, tells
// what it saw, and a remedy if it is not satisfied.
func TestRun(t *testing.T) {
	names := map[string]bool{}
	for _, c := range Run(t.Context(), Options{DataDir: t.TempDir(), Listen: "127.0.0.1:0"}) {
		t.Logf("%+v", c)
		if c.Name == "" || names[c.Name] || c.Detail == "" {
			t.Errorf("check %+v", c)
		}
		names[c.Name] = true
		if (!c.OK || c.Warn) && c.Remedy == "" {
			t.Errorf("no remedy: %+v", c)
		}
	}
	if left, err := filepath.Glob("/sys/fs/cgroup/*/crownest-probe-*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if os.Geteuid() != 0 {
		failed := Failed(Run(t.Context(), Options{}))
		if !slices.ContainsFunc(failed, func(c Check) bool { return c.Name == "privilege" }) {
			t.Errorf("no failure without privilege: %+v", failed)
		}
	}
}
