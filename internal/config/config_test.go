package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLoadOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crownest.yaml")
	text := "listen: 127.0.0.1:1\npool: 3\nmax_ttl: 30m\ntrusted_proxies: [10.0.0.0/8]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"CROWNEST_POOL=4", "CROWNEST_API_KEY=secret", "CROWNEST_CORS_ORIGINS=http://a,http://b", "HOME=/x"}
	c, err := Load(path, env, map[string]any{"listen": "127.0.0.1:2", "data": "/d"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:2" || c.Pool != 4 || c.MaxTTL != 30*time.Minute || c.Data != "/d" {
		t.Errorf("flags, environment and file were not merged in that order: %+v", c)
	}
	if len(c.TrustedProxies) != 1 || len(c.CORSOrigins) != 2 {
		t.Errorf("lists: proxies %q, origins %q", c.TrustedProxies, c.CORSOrigins)
	}
	if c.MaxProcesses != 256 {
		t.Errorf("a default was lost: maxProcesses = %d", c.MaxProcesses)
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, file, want string
		env              []string
		flags            map[string]any
	}{
		{name: "unknown key in the file", file: "poool: 3\n", want: `FILE: unknown key "poool"`},
		{name: "unknown variable", env: []string{"CROWNEST_POOLS=3"}, want: `CROWNEST_POOLS: unknown key "pools"`},
		{name: "value out of range in the file", file: "vcpu: 0\n", want: "FILE: vcpu must be above 0"},
		{name: "value out of range in a flag", file: "pool: 3\n", flags: map[string]any{"pool": "-1"}, want: "--pool: pool must be between 0 and 10000"},
		{name: "wrong type in the file", file: "pool: many\nlisten: x:1\n", want: `FILE: pool wants a whole number, not "many"`},
		{name: "not a duration", env: []string{"CROWNEST_MAX_TTL=soon"}, want: `CROWNEST_MAX_TTL: max_ttl wants a duration such as 90s or 1h30m, not "soon"`},
		{name: "a map for a number", file: "pool: {a: 1}\n", want: `FILE: pool wants a whole number, not "map[a:1]"`},
		{name: "not YAML", file: "pool: [\n", want: "FILE: yaml: line 1: did not find expected node content"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := ""
			if tc.file != "" {
				path = filepath.Join(t.TempDir(), "c.yaml")
				if err := os.WriteFile(path, []byte(tc.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Load(path, tc.env, tc.flags)
			if want := strings.ReplaceAll(tc.want, "FILE", path); err == nil || err.Error() != want {
				t.Fatalf("got %v\nwant %s", err, want)
			}
		})
	}
}

func TestLoadMissingFile(t *testing.T) {
	if _, err := Load("missing.yaml", nil, nil); !errors.Is(err, fs.ErrNotExist) || err.Error() != "missing.yaml: no such file or directory" {
		t.Errorf("got %v", err)
	}
}
