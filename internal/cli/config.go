package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// userConfig is what `crownest login` keeps.
type userConfig struct {
	APIKey     string `json:"apiKey,omitempty"`
	APIURL     string `json:"apiUrl,omitempty"`
	Credential string `json:"credential,omitempty"`
}

// configPath returns where the user's configuration is, or "" where nothing says.
func configPath() string {
	if p := os.Getenv("CROWNEST_CONFIG_PATH"); p != "" {
		return p
	}
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "crownest", "config.json")
	}
	if home := os.Getenv("HOME"); home != "" {
		return filepath.Join(home, ".config", "crownest", "config.json")
	}
	return ""
}

// loadConfig reads the configuration. One that is missing, unreadable or broken
// counts as empty: the environment must be able to stand in for it.
func loadConfig() userConfig {
	var c userConfig
	path := configPath()
	if path == "" {
		return userConfig{}
	}
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &c) != nil {
		return userConfig{}
	}
	return c
}

// save writes the configuration for its owner's eyes only. A crash leaves either
// the old file or the new one.
func (c userConfig) save() (path string, err error) {
	path = configPath()
	if path == "" {
		return "", runtimeErrorf("no place for the configuration file").
			hint("set HOME, XDG_CONFIG_HOME or CROWNEST_CONFIG_PATH")
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encoding the configuration: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the configuration directory: %w", err)
	}
	// CreateTemp makes the file with mode 0600.
	tmp, err := os.CreateTemp(dir, ".config-*.json")
	if err != nil {
		return "", fmt.Errorf("writing the configuration: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(append(b, '\n'))
	if syncErr := tmp.Sync(); err == nil {
		err = syncErr
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return "", fmt.Errorf("writing the configuration: %w", err)
	}
	return path, nil
}

func firstNonEmpty(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
