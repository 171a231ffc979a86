// Package script drives the real binary from end to end: testscript runs the
// *.txtar files here with the real command line against a real server on real
// isolation. It knows commands, exit codes and output, and nothing of the inside.
package script

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"crownest.dev/crownest/test/testserver"
)

// extraScopes are what the key must be able to do here beyond the default preset.
var extraScopes = []string{"--preset", "default", "--scope", "project:create", "--scope", "audit:read", "--scope", "api_key:read", "--scope", "api_key:revoke"}

func TestScripts(t *testing.T) {
	if why := testserver.Cannot(); why != "" {
		t.Skip(why)
	}
	server := testserver.New(t, testserver.Options{Template: "python", Args: []string{"--pool", "4"}})
	binary, err := testserver.Binary()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(binary, filepath.Join(bin, "crownest")); err != nil {
		t.Fatal(err)
	}
	key := makeKey(t, binary, server.Data, append([]string{"--name", "scripts"}, extraScopes...)...)

	// The scripts run in parallel; the group ends when all of them have.
	t.Run("group", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir:                 ".",
			RequireExplicitExec: true,
			RequireUniqueNames:  true,
			Setup: func(env *testscript.Env) error {
				env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
				env.Setenv("HOME", env.WorkDir)
				env.Setenv("DATA", server.Data)
				env.Setenv("TEMPLATES", testserver.TemplateDir())
				env.Setenv("CROWNEST_API_URL", server.URL)
				env.Setenv("CROWNEST_API_KEY", key)
				return nil
			},
			Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
				"crownest":  cmdCrownest,
				"exits":     cmdExits,
				"sandbox":   cmdSandbox,
				"field":     cmdField,
				"interrupt": cmdInterrupt,
				"fill":      cmdFill,
			},
		})
	})

	// Every script killed its sandboxes; those that wait in the pool end with the
	// server. After that there must be nothing.
	if err := server.Stop(t.Context()); err != nil {
		t.Errorf("stopping the server: %v", err)
	}
	if leaks, err := server.Leaks(); err != nil || len(leaks) > 0 {
		t.Errorf("the server left behind: %v, %v", leaks, err)
	}
}

func makeKey(t *testing.T, binary, data string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"admin", "keys", "create", "--data", data}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("making a key: %v, %s", err, &stderr)
	}
	secret := strings.TrimSuffix(string(out), "\n")
	if !regexp.MustCompile(`^cn_live_[0-9A-Za-z]{40,}$`).MatchString(secret) {
		t.Fatalf("stdout of admin keys create is %q, want the secret alone", out)
	}
	return secret
}

// crownest ARGS... runs the command line, which must succeed (or, with !, fail).
func cmdCrownest(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("crownest", args...)
	if neg && err == nil {
		ts.Fatalf("crownest %s succeeded", strings.Join(args, " "))
	}
	if !neg {
		ts.Check(err)
	}
}

// exits CODE ARGS... runs the command line, which must end with this exit code.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	checkExit(ts, ts.Exec("crownest", args[1:]...), want)
}

func checkExit(ts *testscript.TestScript, err error, want int) {
	got := 0
	if err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("running crownest: %v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// sandbox VAR [FLAGS...] creates a sandbox that ends with the script.
func cmdSandbox(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: sandbox VAR [FLAGS...]")
	}
	ts.Check(ts.Exec("crownest", append([]string{"sandboxes", "create"}, args[1:]...)...))
	id := recordField(ts, "id")
	ts.Setenv(args[0], id)
	ts.Defer(func() { _ = ts.Exec("crownest", "sandboxes", "kill", id) })
}

// field VAR KEY sets VAR to the value of KEY in the record on stdout.
func cmdField(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: field VAR KEY")
	}
	ts.Setenv(args[0], recordField(ts, args[1]))
}

func recordField(ts *testscript.TestScript, key string) string {
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if value, ok := strings.CutPrefix(line, key+": "); ok {
			return strings.TrimSpace(value)
		}
	}
	ts.Fatalf("stdout has no line %q", key+": ...")
	return ""
}

// fill FILE SIZE writes a file of so many bytes that do not repeat soon.
func cmdFill(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: fill FILE SIZE")
	}
	size, err := strconv.Atoi(args[1])
	ts.Check(err)
	b := make([]byte, size)
	state := uint64(size) | 1
	for i := range b {
		state = state*6364136223846793005 + 1442695040888963407
		b[i] = byte(state >> 56)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// interrupt CODE TEXT ARGS... runs the command line, sends it SIGINT once TEXT
// has come on stdout, and checks its exit code. What it put out is in the files
// interrupted.stdout and interrupted.stderr.
func cmdInterrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: interrupt CODE TEXT ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	binary, err := testserver.Binary()
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args[2:]...)
	for _, name := range []string{"HOME", "PATH", "CROWNEST_API_URL", "CROWNEST_API_KEY"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	var stderr bytes.Buffer
	out := &watched{text: args[1], seen: func() { _ = cmd.Process.Signal(os.Interrupt) }}
	cmd.Stdout, cmd.Stderr = out, &stderr
	err = cmd.Run()
	ts.Check(os.WriteFile(ts.MkAbs("interrupted.stdout"), out.buf.Bytes(), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("interrupted.stderr"), stderr.Bytes(), 0o600))
	ts.Logf("[stdout]\n%s[stderr]\n%s", out.buf.Bytes(), &stderr)
	checkExit(ts, err, want)
}

// watched gathers what is written and calls seen once when text is part of it.
type watched struct {
	buf  bytes.Buffer // not embedded: its ReadFrom would be used instead of Write
	text string
	seen func()
	once sync.Once
}

func (w *watched) Write(b []byte) (int, error) {
	n, err := w.buf.Write(b)
	if bytes.Contains(w.buf.Bytes(), []byte(w.text)) {
		w.once.Do(w.seen)
	}
	return n, err
}
