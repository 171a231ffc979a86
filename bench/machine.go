package main

import (
	"bufio"
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/test/testserver"
)

// Machine says where the figures come from.
type Machine struct {
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	RAM      int64             `json:"ramBytes"`
	Kernel   string            `json:"kernel"`
	OS       string            `json:"os"`
	Load     float64           `json:"load"` // of the minute before: others who shared the machine
	Versions map[string]string `json:"versions"`
}

func (m Machine) String() string {
	var v []string
	for _, name := range []string{"go", "gvisor", "runc", "bwrap"} {
		if m.Versions[name] != "" {
			v = append(v, name+" "+m.Versions[name])
		}
	}
	return fmt.Sprintf("%s, %d cores, %.1f GiB, Linux %s, %s; %s; load before %.1f",
		m.CPU, m.Cores, float64(m.RAM)/(1<<30), m.Kernel, m.OS, strings.Join(v, ", "), m.Load)
}

// describe looks at the machine. What it cannot find out it leaves empty.
func describe(ctx context.Context) Machine {
	m := Machine{
		CPU: field("/proc/cpuinfo", "model name", ":"), Cores: runtime.NumCPU(),
		OS: strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"`),
		Versions: map[string]string{
			"go":    runtime.Version(),
			"runc":  firstWordAfter(output(ctx, "runc", "--version"), "version "),
			"bwrap": firstWordAfter(output(ctx, "bwrap", "--version"), "bubblewrap "),
		},
	}
	if bin, err := testserver.Binary(); err == nil {
		if info, err := buildinfo.ReadFile(bin); err == nil {
			for _, d := range info.Deps {
				if d.Path == "gvisor.dev/gvisor" {
					m.Versions["gvisor"] = d.Version
				}
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.RAM = int64(si.Totalram) * int64(si.Unit)
	}
	if raw, err := os.ReadFile("/proc/loadavg"); err == nil {
		word, _, _ := strings.Cut(string(raw), " ")
		m.Load, _ = strconv.ParseFloat(word, 64)
	}
	return m
}

// field returns the value of the first line of a file that begins with name.
func field(path, name, separator string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), separator); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func output(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return ""
	}
	return string(out)
}

func firstWordAfter(s, prefix string) string {
	_, rest, _ := strings.Cut(s, prefix)
	if words := strings.Fields(rest); len(words) > 0 {
		return words[0]
	}
	return ""
}
