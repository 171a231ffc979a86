package config

import (
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
	}{
		{name: "unknown key in the file", file: "pools: 3\n", want: "pools"},
		{name: "unknown variable", env: []string{"CROWNEST_POOLS=3"}, want: "pools"},
		{name: "value out of range", file: "vcpu: 0\n", want: "vcpu"},
		{name: "wrong type", file: "pool: many\n", want: "pool"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := ""
			if tc.file != "" {
				path = filepath.Join(t.TempDir(), "c.yaml")
				if err := os.WriteFile(path, []byte(tc.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Load(path, tc.env, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error that names %q", err, tc.want)
			}
		})
	}
}
