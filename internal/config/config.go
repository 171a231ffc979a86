// Package config is the operator's configuration: one struct, filled from
// defaults, a YAML file, the environment (CROWNEST_*) and flags, each overriding
// the one before. Unknown keys are errors. It knows nothing of what the values
// are used for.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/structs"
	"github.com/knadh/koanf/v2"
)

// Config is everything an operator can set. The name of a field in the file is
// its koanf tag, in the environment CROWNEST_ and the tag in upper case.
type Config struct {
	// Data is the directory for the database, logs, artifacts and sandboxes.
	// Default: /var/lib/crownest as root, else the user's data directory.
	Data string `koanf:"data"`
	// Listen is HOST:PORT of the HTTP server; port 0 picks a free one.
	Listen string `koanf:"listen"`
	// TemplateDir holds the template images and may be shared by servers.
	TemplateDir string `koanf:"template_dir"`
	// BuildTemplates makes the server build the templates that are missing.
	BuildTemplates bool `koanf:"build_templates"`
	// Database is empty for SQLite below Data, or a postgres:// URL.
	Database string `koanf:"database"`

	// PublicURL is the base of the URLs that the server hands out. Empty: taken
	// from each request.
	PublicURL string `koanf:"public_url"`
	// TrustedProxies are the CIDRs whose X-Forwarded-* headers are believed.
	TrustedProxies []string `koanf:"trusted_proxies"`
	// CORSOrigins may call the API from a browser.
	CORSOrigins []string `koanf:"cors_origins"`

	// Pool is how many started sandboxes of the default template wait at the most;
	// of every other template a quarter as many wait.
	Pool int `koanf:"pool"`
	// MaxSandboxes is how many sandboxes may live at a time; 0 = measured from
	// this host's memory.
	MaxSandboxes int `koanf:"max_sandboxes"`
	// MemoryReserve is kept for the host and the server, in bytes.
	MemoryReserve int64 `koanf:"memory_reserve"`
	// DefaultTemplate is used where a create names none.
	DefaultTemplate string `koanf:"default_template"`
	// VCPU, MemoryBytes, DiskBytes and MaxProcesses bound each sandbox.
	VCPU         float64 `koanf:"vcpu"`
	MemoryBytes  int64   `koanf:"memory_bytes"`
	DiskBytes    int64   `koanf:"disk_bytes"`
	MaxProcesses int     `koanf:"max_processes"`

	// MaxTTL bounds ttlMs at create, MaxSession the whole life of a sandbox.
	MaxTTL     time.Duration `koanf:"max_ttl"`
	MaxSession time.Duration `koanf:"max_session"`
	// IdleTimeout ends sandboxes that nobody used for so long; 0 = never.
	IdleTimeout time.Duration `koanf:"idle_timeout"`

	// ArtifactRetentionDays and LogRetentionDays: 0 = for ever.
	ArtifactRetentionDays int `koanf:"artifact_retention_days"`
	LogRetentionDays      int `koanf:"log_retention_days"`
	// CommandLogBytes bounds the log of one command; the oldest output goes first.
	CommandLogBytes int64 `koanf:"command_log_bytes"`
	// BodyLimitBytes bounds JSON request bodies.
	BodyLimitBytes int64 `koanf:"body_limit_bytes"`
	// RateLimitPerMinute and RateLimitBurst bound each key's requests; 0 = off.
	RateLimitPerMinute int `koanf:"rate_limit_per_minute"`
	RateLimitBurst     int `koanf:"rate_limit_burst"`

	// PricingVersion, ComputeUnitSecondsPerCredit and SandboxHourUSD are pinned
	// to every usage event and shown by GET /v1/usage.
	PricingVersion              string  `koanf:"pricing_version"`
	ComputeUnitSecondsPerCredit float64 `koanf:"compute_unit_seconds_per_credit"`
	SandboxHourUSD              float64 `koanf:"sandbox_hour_usd"`

	// Dev lets headers on loopback connections stand for a signed-in person. Never
	// set it where others can reach the port.
	Dev bool `koanf:"dev"`

	// LogLevel is debug, info, warn or error; LogFormat text or json.
	LogLevel  string `koanf:"log_level"`
	LogFormat string `koanf:"log_format"`
}

// Default returns the built-in values.
func Default() Config {
	return Config{
		Listen: "127.0.0.1:8787", Pool: 8, MemoryReserve: 1 << 30, DefaultTemplate: "python-node",
		BuildTemplates: true, VCPU: 1, MemoryBytes: 1 << 30, DiskBytes: 2 << 30, MaxProcesses: 256,
		MaxTTL: time.Hour, MaxSession: 168 * time.Hour,
		ArtifactRetentionDays: 30, LogRetentionDays: 30,
		CommandLogBytes: 64 << 20, BodyLimitBytes: 4 << 20,
		RateLimitPerMinute: 1200, RateLimitBurst: 240,
		PricingVersion: "2026-01", ComputeUnitSecondsPerCredit: 1000, SandboxHourUSD: 0.12,
		LogLevel: "info", LogFormat: "text",
	}
}

// clientVariables begin like the server's but belong to the CLI, the SDKs, the
// tests or the inside of a sandbox.
var clientVariables = []string{
	"API_KEY", "BEARER_TOKEN", "API_URL", "CONFIG_PATH", "ORG_ID", "USER_ID", "ROLE",
	"SANDBOX_ID", "PROJECT_ID", "TEMPLATE", "BIN", "CONFIG",
}

const envPrefix = "CROWNEST_"

// Load merges defaults, the file (if a path is given), the environment and flags.
// Flags are keyed by koanf tag. An error is one line that names the file, variable
// or flag and the key.
func Load(path string, environ []string, flags map[string]any) (Config, error) {
	k := koanf.New(".")
	if err := k.Load(structs.Provider(Default(), "koanf"), nil); err != nil {
		return Config{}, fmt.Errorf("loading defaults: %w", err)
	}
	// origin says where the value of a key comes from, for errors.
	origin := map[string]string{}
	merge := func(from *koanf.Koanf, name func(key string) string) error {
		keys := slices.Sorted(maps.Keys(from.Raw()))
		for _, key := range keys {
			if _, known := fieldTypes[key]; !known {
				return fmt.Errorf("%s: unknown key %q", name(key), key)
			}
			origin[key] = name(key)
		}
		return k.Merge(from)
	}
	if path != "" {
		fromFile := koanf.New(".")
		if err := fromFile.Load(file.Provider(path), yaml.Parser()); err != nil {
			var pathErr *fs.PathError
			if errors.As(err, &pathErr) {
				return Config{}, fmt.Errorf("%s: %w", path, pathErr.Err)
			}
			return Config{}, fmt.Errorf("%s: %s", path, strings.Join(strings.Fields(err.Error()), " "))
		}
		if err := merge(fromFile, func(string) string { return path }); err != nil {
			return Config{}, err
		}
	}
	fromEnv := koanf.New(".")
	provider := env.Provider(".", env.Opt{
		Prefix:      envPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(key, value string) (string, any) {
			name := strings.TrimPrefix(key, envPrefix)
			if slices.Contains(clientVariables, name) {
				return "", nil
			}
			name = strings.ToLower(name)
			if name == "trusted_proxies" || name == "cors_origins" {
				return name, strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
			}
			return name, value
		},
	})
	if err := fromEnv.Load(provider, nil); err != nil {
		return Config{}, fmt.Errorf("reading the environment: %w", err)
	}
	if err := merge(fromEnv, func(key string) string { return envPrefix + strings.ToUpper(key) }); err != nil {
		return Config{}, err
	}
	fromFlags := koanf.New(".")
	if err := fromFlags.Load(confmap.Provider(flags, "."), nil); err != nil {
		return Config{}, fmt.Errorf("reading flags: %w", err)
	}
	if err := merge(fromFlags, func(key string) string { return "--" + strings.ReplaceAll(key, "_", "-") }); err != nil {
		return Config{}, err
	}
	var c Config
	values := k.Raw()
	// One key at a time, so that an error can name it.
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if err := decode(map[string]any{key: values[key]}, &c); err != nil {
			return Config{}, fmt.Errorf("%s: %s wants %s, not %q", origin[key], key, wanted(fieldTypes[key]), fmt.Sprint(values[key]))
		}
	}
	if c.Data == "" {
		var err error
		if c.Data, err = DefaultData(); err != nil {
			return Config{}, err
		}
	}
	return c, c.validate(origin)
}

// fieldTypes are the types of the settings by their names.
var fieldTypes = func() map[string]reflect.Type {
	types := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		types[f.Tag.Get("koanf")] = f.Type
	}
	return types
}()

func decode(values map[string]any, c *Config) error {
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Result: c, TagName: "koanf", ErrorUnused: true, WeaklyTypedInput: true,
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			mapstructure.StringToTimeDurationHookFunc(), mapstructure.StringToSliceHookFunc(","),
		),
	})
	if err != nil {
		return err
	}
	return d.Decode(values)
}

// wanted says what a value of a type looks like.
func wanted(t reflect.Type) string {
	if t == reflect.TypeFor[time.Duration]() {
		return "a duration such as 90s or 1h30m"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list"
	default:
		return "text"
	}
}

// DefaultData is the data directory that is used when none is named.
func DefaultData() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/crownest", nil
	}
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" {
		return dir + "/crownest", nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding a data directory; name one with --data: %w", err)
	}
	return home + "/.local/share/crownest", nil
}

func (c Config) validate(origin map[string]string) error {
	for _, check := range []struct {
		ok   bool
		text string
	}{
		{c.Pool >= 0 && c.Pool <= 10_000, "pool must be between 0 and 10000"},
		{c.MaxSandboxes >= 0, "max_sandboxes must not be negative"},
		{c.VCPU > 0, "vcpu must be above 0"},
		{c.MemoryBytes >= 64<<20, "memory_bytes must be at least 64 MiB"},
		{c.DiskBytes >= 16<<20, "disk_bytes must be at least 16 MiB"},
		{c.MaxProcesses >= 8, "max_processes must be at least 8"},
		{c.MaxTTL > 0 && c.MaxSession >= c.MaxTTL, "max_ttl must be above 0 and at most max_session"},
		{c.IdleTimeout >= 0, "idle_timeout must not be negative"},
		{c.ArtifactRetentionDays >= 0 && c.LogRetentionDays >= 0, "retention days must not be negative"},
		{c.CommandLogBytes >= 4<<20, "command_log_bytes must be at least 4 MiB"},
		{c.BodyLimitBytes >= 1<<20, "body_limit_bytes must be at least 1 MiB"},
		{c.RateLimitPerMinute >= 0 && c.RateLimitBurst >= 0, "rate limits must not be negative"},
		{c.ComputeUnitSecondsPerCredit > 0 && c.SandboxHourUSD >= 0, "prices must not be negative"},
		{slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel), "log_level must be debug, info, warn or error"},
		{slices.Contains([]string{"text", "json"}, c.LogFormat), "log_format must be text or json"},
	} {
		if !check.ok {
			key, _, _ := strings.Cut(check.text, " ")
			if from := origin[key]; from != "" {
				return fmt.Errorf("%s: %s", from, check.text)
			}
			return fmt.Errorf("configuration: %s", check.text)
		}
	}
	return nil
}
