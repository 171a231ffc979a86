// Package pgtest runs a PostgreSQL server for tests: one per test binary on a
// scratch directory, one database per test. It knows how Debian installs the
// server and nothing of what the tests keep in it.
package pgtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"golang.org/x/sys/unix"
)

const (
	remedy       = "PostgreSQL is not installed: run `make deps`, or `apt-get install postgresql`"
	binaries     = "/usr/lib/postgresql/*/bin"
	startTimeout = 60 * time.Second
	// A short path: the name of a socket is bounded.
	scratch     = "/tmp"
	scratchName = "crownest-pgtest-"
	lockName    = "lock"
	port        = "5432" // only names the socket
)

// server is the one server of this test binary, started by the first test that
// needs it.
var server struct {
	once    sync.Once
	err     error
	dir     string
	cmd     *exec.Cmd
	exited  chan struct{} // closed once the server has ended, with exitErr
	exitErr error
	lock    *os.File // held as long as this process lives
	counter int
	mu      sync.Mutex
}

// Main runs the tests and then stops the server, if any of them started it. It
// returns the exit code for TestMain.
func Main(m *testing.M) int {
	defer stop()
	return m.Run()
}

// New returns the URL of a new, empty database, which is dropped when the test
// ends. A test that needs PostgreSQL fails where there is none.
func New(t testing.TB) string {
	t.Helper()
	server.once.Do(func() { server.err = start() })
	if server.err != nil {
		t.Fatal(server.err)
	}
	server.mu.Lock()
	server.counter++
	name := fmt.Sprintf("test%d", server.counter)
	server.mu.Unlock()
	if err := administer(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if err := administer(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return databaseURL(name)
}

func databaseURL(name string) string {
	q := url.Values{"host": {server.dir}, "port": {port}, "user": {"postgres"}, "sslmode": {"disable"}}
	return "postgres:///" + name + "?" + q.Encode()
}

// administer runs one statement outside of any test's database.
func administer(ctx context.Context, text string) error {
	db, err := sql.Open("pgx", databaseURL("postgres"))
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, text)
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	return nil
}

// start makes a cluster and starts its server on a socket in its directory.
func start() (err error) {
	bin, err := findBinaries()
	if err != nil {
		return err
	}
	who, err := unprivileged()
	if err != nil {
		return err
	}
	if err := sweep(); err != nil {
		return err
	}
	if server.dir, err = os.MkdirTemp(scratch, scratchName); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	if err := claim(); err != nil {
		return err
	}
	if who != nil {
		if err := os.Chown(server.dir, int(who.Uid), int(who.Gid)); err != nil {
			return err
		}
	}
	data := filepath.Join(server.dir, "data")
	initdb := command(who, filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust",
		"-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	log, err := os.Create(filepath.Join(server.dir, "log"))
	if err != nil {
		return err
	}
	server.cmd = command(who, filepath.Join(bin, "postgres"), "-D", data, "-k", server.dir, "-p", port,
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200")
	server.cmd.Stdout, server.cmd.Stderr = log, log
	server.cmd.SysProcAttr.Setpgid = true // an interrupt at the terminal must not reach it before stop does
	err = server.cmd.Start()
	if err := errors.Join(err, log.Close()); err != nil {
		return fmt.Errorf("starting PostgreSQL: %w", err)
	}
	server.exited = make(chan struct{})
	go func() {
		server.exitErr = server.cmd.Wait()
		close(server.exited)
	}()
	return waitReady()
}

// claim locks the directory of the server. The lock is taken before its file gets
// the name that sweep looks for.
func claim() (err error) {
	fresh := filepath.Join(server.dir, lockName+".new")
	if server.lock, err = os.Create(fresh); err != nil {
		return err
	}
	if err := unix.Flock(int(server.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("locking %s: %w", fresh, err)
	}
	return os.Rename(fresh, filepath.Join(server.dir, lockName))
}

// sweep removes the directories of test binaries that were killed. Their servers
// ended with them.
func sweep() error {
	locks, err := filepath.Glob(filepath.Join(scratch, scratchName+"*", lockName))
	if err != nil {
		return err
	}
	for _, path := range locks {
		lock, err := os.Open(path)
		if err != nil {
			continue // another one swept it
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.RemoveAll(filepath.Dir(path))
		}
		if err := errors.Join(err, lock.Close()); err != nil {
			return fmt.Errorf("removing what a killed test left: %w", err)
		}
	}
	return nil
}

// waitReady returns once the server answers.
func waitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	db, err := sql.Open("pgx", databaseURL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // read only
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		if err = db.PingContext(ctx); err == nil {
			return nil
		}
		select {
		case <-poll.C:
		case <-server.exited:
			log, _ := os.ReadFile(filepath.Join(server.dir, "log"))
			return fmt.Errorf("PostgreSQL ended at its start: %w\n%s", errors.Join(server.exitErr, err), log)
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not answer: %w", err)
		}
	}
}

// stop ends the server and removes its files.
func stop() {
	if server.cmd != nil && server.cmd.Process != nil {
		_ = server.cmd.Process.Signal(syscall.SIGQUIT) // at once: the data is thrown away
		select {
		case <-server.exited:
		case <-time.After(10 * time.Second):
			_ = server.cmd.Process.Kill()
			<-server.exited
		}
		server.cmd = nil
	}
	if server.dir != "" {
		_ = os.RemoveAll(server.dir)
	}
	if server.lock != nil {
		_ = server.lock.Close()
	}
}

// findBinaries returns the directory of the newest server that is installed.
func findBinaries() (string, error) {
	dirs, err := filepath.Glob(binaries)
	if err != nil {
		return "", err
	}
	dirs = slices.DeleteFunc(dirs, func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "initdb"))
		return errors.Is(err, fs.ErrNotExist)
	})
	if len(dirs) == 0 {
		return "", errors.New(remedy)
	}
	return slices.MaxFunc(dirs, func(a, b string) int { return version(a) - version(b) }), nil
}

func version(dir string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
	return n
}

// unprivileged returns whom the server has to run as: it refuses root. nil is the
// user who runs the test.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	var errs []error
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("PostgreSQL refuses to run as root, and there is nobody else: %w", errors.Join(errs...))
}

// command runs a program of the server without what the environment says about
// other servers, and makes it end with this process.
func command(who *syscall.Credential, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(context.Background(), name, args...) // stop ends it
	c.Dir = "/"
	c.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PG") }), "LC_ALL=C")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: who, Pdeathsig: syscall.SIGQUIT}
	return c
}
