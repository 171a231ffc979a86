// Package testserver starts, stops and kills a real CrowNest server for tests and
// benchmarks, speaks the wire contract to it and looks at the host for what it
// left behind. It knows the operator's interface and the wire, and how sandboxes
// look from the host; it shares no code with the server.
package testserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Options says what server is wanted.
type Options struct {
	// Data is the data directory, which must exist.
	Data string
	// Template is the only template that the server has; "" = all that are built.
	Template string
	// Args and Env are added to the command line and the environment.
	Args, Env []string
	// ReadyWithin bounds the wait for /readyz; 0 = a minute.
	ReadyWithin time.Duration
}

// Server is a server process and what it takes to start it again.
type Server struct {
	Data string
	URL  string
	bin  string
	opts Options

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended
	log    *tail
}

// Cannot says why this machine or user cannot run a server, or "".
func Cannot() string {
	if os.Geteuid() != 0 {
		return "this needs root, since sandboxes need namespaces, mounts and cgroups: run it through `make test` or `make bench`, or with sudo -E"
	}
	if _, err := Binary(); err != nil {
		return err.Error()
	}
	return ""
}

// Binary returns the path of the binary: $CROWNEST_BIN, or bin/crownest of the
// repository that the working directory is in.
func Binary() (string, error) {
	path := os.Getenv("CROWNEST_BIN")
	if path == "" {
		dir, err := os.Getwd()
		if err != nil {
			return "", err
		}
		for !exists(filepath.Join(dir, "go.mod")) && dir != "/" {
			dir = filepath.Dir(dir)
		}
		path = filepath.Join(dir, "bin", "crownest")
	}
	if !exists(path) {
		return "", fmt.Errorf("there is no %s: run `make build`, or set CROWNEST_BIN", path)
	}
	return filepath.Abs(path)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TemplateDir is where the built templates are, by the operator's interface.
func TemplateDir() string {
	if dir := os.Getenv("CROWNEST_TEMPLATE_DIR"); dir != "" {
		return dir
	}
	return "/var/lib/crownest/templates" // root's
}

// Image returns the newest image of a built template.
func Image(template string) (string, error) {
	images, err := filepath.Glob(filepath.Join(TemplateDir(), template, "tplv_*", "image.erofs"))
	if err != nil {
		return "", err
	}
	if len(images) == 0 {
		return "", fmt.Errorf("template %s is not built below %s: run `crownest templates build %s`", template, TemplateDir(), template)
	}
	newest, at := "", time.Time{}
	for _, i := range images {
		fi, err := os.Stat(i)
		if err != nil {
			return "", err
		}
		if newest == "" || fi.ModTime().After(at) {
			newest, at = i, fi.ModTime()
		}
	}
	return newest, nil
}

// New starts a server on a scratch directory for a test. At its end all that the
// server made is ended and removed, whatever state the test left it in.
func New(tb testing.TB, o Options) *Server {
	tb.Helper()
	if why := Cannot(); why != "" {
		tb.Fatal(why)
	}
	if o.Data == "" {
		o.Data = Scratch(tb)
	}
	s, err := Start(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("the server's last words:\n%s", s.Log())
		}
		if err := s.Destroy(); err != nil {
			tb.Errorf("removing what the server left: %v", err)
		}
	})
	return s
}

// Scratch makes a data directory with a short name: unix sockets live in it. It
// goes with the test.
func Scratch(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "cn-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// Start starts a server and returns when it is ready.
func Start(ctx context.Context, o Options) (*Server, error) {
	bin, err := Binary()
	if err != nil {
		return nil, err
	}
	data, err := filepath.EvalSymlinks(o.Data)
	if err != nil {
		return nil, err
	}
	if o.ReadyWithin == 0 {
		o.ReadyWithin = time.Minute
	}
	s := &Server{Data: data, bin: bin, opts: o, log: &tail{}}
	if o.Template != "" {
		if err := s.onlyTemplate(o.Template); err != nil {
			return nil, err
		}
	}
	return s, s.Restart(ctx)
}

// onlyTemplate gives the server a template directory with one template in it, so
// that it keeps no pools of others.
func (s *Server) onlyTemplate(slug string) error {
	image, err := Image(slug)
	if err != nil {
		return err
	}
	dir := s.Data + ".templates"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err = os.Symlink(filepath.Dir(filepath.Dir(image)), filepath.Join(dir, slug))
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	s.opts.Env = append(s.opts.Env, "CROWNEST_TEMPLATE_DIR="+dir, "CROWNEST_DEFAULT_TEMPLATE="+slug, "CROWNEST_BUILD_TEMPLATES=false")
	return nil
}

// Restart starts the process again, at the same address, and returns when it is
// ready. Before, it must have been stopped or killed.
func (s *Server) Restart(ctx context.Context) error {
	listen := strings.TrimPrefix(s.URL, "http://")
	if listen == "" {
		var err error
		if listen, err = freeAddress(); err != nil {
			return err
		}
	}
	args := append([]string{"serve", "--data", s.Data, "--listen", listen}, s.opts.Args...)
	cmd := exec.Command(s.bin, args...)
	cmd.Env = s.env()
	cmd.Stderr = s.log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	exited, url := make(chan struct{}), make(chan string, 1)
	go func() {
		defer close(exited)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			_, _ = fmt.Fprintln(s.log, lines.Text())
			if u, ok := strings.CutPrefix(lines.Text(), "listening on "); ok {
				select {
				case url <- u:
				default:
				}
			}
		}
		_, _ = io.Copy(s.log, stdout)
		_ = cmd.Wait()
	}()
	s.cmd, s.exited = cmd, exited
	ctx, cancel := context.WithTimeout(ctx, s.opts.ReadyWithin)
	defer cancel()
	select {
	case s.URL = <-url:
	case <-exited:
		return fmt.Errorf("the server ended at once:\n%s", s.log)
	case <-ctx.Done():
		s.Kill()
		return fmt.Errorf("the server does not listen: %w\n%s", ctx.Err(), s.log)
	}
	if err := s.awaitReady(ctx); err != nil {
		s.Kill()
		return err
	}
	return nil
}

// freeAddress finds a port below those that the kernel gives to connections, which
// could take it while the server is away.
func freeAddress() (string, error) {
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000))
		if l, err := net.Listen("tcp", address); err == nil {
			return address, l.Close()
		}
	}
	return "", errors.New("there is no free port")
}

func (s *Server) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond) // readiness can only be polled
	defer tick.Stop()
	status := ""
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/readyz", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if status = resp.Status; resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-s.exited:
			return fmt.Errorf("the server ended before it was ready:\n%s", s.log)
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready (%s): %w\n%s", status, ctx.Err(), s.log)
		}
	}
}

func (s *Server) env() []string {
	// Tests call as fast as they can.
	return append(append(os.Environ(), "CROWNEST_RATE_LIMIT_PER_MINUTE=0"), s.opts.Env...)
}

// PID is the process id of the running server.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Log returns the end of what the server printed.
func (s *Server) Log() string { return s.log.String() }

// Kill ends the process as a crash would, and waits for its end.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // fails only if it has ended
	<-s.exited
}

// Stop asks the server to drain and waits for its end.
func (s *Server) Stop(ctx context.Context) error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.exited:
	case <-ctx.Done():
		s.Kill()
		return fmt.Errorf("the server did not stop: %w", ctx.Err())
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("the server ended with code %d:\n%s", code, s.log)
	}
	return nil
}

// Key makes an API key with the default scopes and these.
func (s *Server) Key(ctx context.Context, scopes ...string) (string, error) {
	args := []string{"admin", "keys", "create", "--data", s.Data, "--name", "test", "--preset", "default"}
	for _, scope := range scopes {
		args = append(args, "--scope", scope)
	}
	cmd := exec.CommandContext(ctx, s.bin, args...)
	cmd.Env = s.env()
	cmd.Stderr = s.log
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("making a key: %w\n%s", err, s.log)
	}
	return strings.TrimSpace(string(out)), nil
}

// Client makes a key and a client for it that keeps up to 256 connections alive.
func (s *Server) Client(ctx context.Context) (*Client, error) {
	key, err := s.Key(ctx)
	if err != nil {
		return nil, err
	}
	return &Client{
		HTTP: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}},
		Base: s.URL, Key: key,
	}, nil
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailBytes = 32 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b) - tailBytes; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
