//go:build linux

package guest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/sandbox"
)

// start starts a command and gathers its output in the background.
type running struct {
	guest.Process
	r    *rig
	mu   sync.Mutex
	out  bytes.Buffer
	seen chan struct{} // has an item whenever there is more
	done chan struct{}
	exit guest.Exit
	err  error
}

func (r *rig) start(req guest.StartRequest) *running {
	r.t.Helper()
	if req.ID == "" {
		req.ID = sandbox.NewID(sandbox.PrefixCommand)
	}
	if req.Cwd == "" {
		req.Cwd = "/workspace"
	}
	p, err := r.Start(r.ctx(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	run := &running{Process: p, r: r, seen: make(chan struct{}, 1), done: make(chan struct{})}
	ctx := r.ctx()
	go func() {
		defer close(run.done)
		run.exit, run.err = p.Output(ctx, 0, func(chunks []sandbox.LogChunk) error {
			run.mu.Lock()
			for _, c := range chunks {
				run.out.Write(c.Data)
			}
			run.mu.Unlock()
			select {
			case run.seen <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	r.t.Cleanup(func() {
		_ = r.Kill(context.Background(), req.ID, 0, guest.CauseCanceled) // it may be over
		<-run.done
	})
	return run
}

func (run *running) output() string {
	run.mu.Lock()
	defer run.mu.Unlock()
	return run.out.String()
}

// await waits for the output to contain a text.
func (run *running) await(text string) {
	run.r.t.Helper()
	for !strings.Contains(run.output(), text) {
		select {
		case <-run.seen:
		case <-run.done:
			if !strings.Contains(run.output(), text) {
				run.r.t.Fatalf("ended with %+v, %v without saying %q: %q", run.exit, run.err, text, run.output())
			}
		}
	}
}

func (run *running) wait() guest.Exit {
	run.r.t.Helper()
	<-run.done
	if run.err != nil {
		run.r.t.Fatal(run.err)
	}
	return run.exit
}

// tasks counts the processes in the sandbox that a marker in their command line
// gives away.
func (r *rig) tasks(marker string) string {
	r.t.Helper()
	// The marker is split, so that the search does not find itself.
	res := r.mustRun(fmt.Sprintf(`for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q '%s[%s]' && echo $p; done; true`,
		marker[:len(marker)-1], marker[len(marker)-1:]))
	return res.stdout
}

func TestKillReachesEverything(t *testing.T) {
	r := newRig(t)
	// Daemons, sessions of their own, double forks, ignored signals, cleared
	// environments.
	const script = `
trap '' TERM HUP
(setsid bash -c 'trap "" TERM; exec -a crownest-mark-a sleep 1000' &)
setsid -f env -i bash -c 'exec -a crownest-mark-b sleep 1000'
bash -c '(bash -c "exec -a crownest-mark-c sleep 1000" &) &' &
(exec -a crownest-mark-d sleep 1000) &
while [ $(for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline 2>/dev/null; echo; done | grep -c '^crownest-mark-') -lt 4 ]; do sleep 0.05; done 2>/dev/null
kill -STOP $!
echo up
wait
while :; do sleep 1; done`
	for _, tt := range []struct {
		name  string
		grace time.Duration
	}{{"force", 0}, {"graceful", 100 * time.Millisecond}} {
		t.Run(tt.name, func(t *testing.T) {
			run := r.start(guest.StartRequest{Command: script})
			run.await("up")
			begin := time.Now()
			if err := r.Kill(r.ctx(), run.ID(), tt.grace, guest.CauseCanceled); err != nil {
				t.Fatal(err)
			}
			exit := run.wait()
			if exit.Cause != guest.CauseCanceled || !exit.Killed || exit.Signal != 9 {
				t.Errorf("got %+v", exit)
			}
			t.Logf("gone after %v", time.Since(begin))
			if left := r.tasks("crownest-mark-"); left != "" && (r.inside || tt.name == "force") {
				t.Errorf("survivors: %s", left)
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	r := newRig(t)
	polite := r.start(guest.StartRequest{Command: "trap 'echo bye; exit 5' TERM; echo up; sleep 1000 & wait", Timeout: 200 * time.Millisecond, TimeoutGrace: 20 * time.Second})
	if exit := polite.wait(); exit.Cause != guest.CauseTimeout || exit.Killed || exit.Code != 5 || !strings.Contains(polite.output(), "bye") {
		t.Errorf("polite: %+v, %q", exit, polite.output())
	}
	stubborn := r.start(guest.StartRequest{Command: "trap '' TERM; echo up; while :; do sleep 1000; done", Timeout: 200 * time.Millisecond, TimeoutGrace: 100 * time.Millisecond})
	if exit := stubborn.wait(); exit.Cause != guest.CauseTimeout || !exit.Killed || exit.Signal != 9 {
		t.Errorf("stubborn: %+v", exit)
	}
	quick := r.start(guest.StartRequest{Command: "true", Timeout: time.Hour, TimeoutGrace: time.Second})
	if exit := quick.wait(); exit.Cause != guest.CauseExited || exit.Code != 0 {
		t.Errorf("quick: %+v", exit)
	}
	// A second, shorter grace counts; a longer one does not.
	run := r.start(guest.StartRequest{Command: "trap '' TERM; echo up; while :; do sleep 1000; done"})
	run.await("up")
	for _, grace := range []time.Duration{time.Hour, 2 * time.Hour, 10 * time.Millisecond} {
		if err := r.Kill(r.ctx(), run.ID(), grace, guest.CauseCanceled); err != nil {
			t.Fatal(err)
		}
	}
	if exit := run.wait(); !exit.Killed || exit.Cause != guest.CauseCanceled {
		t.Errorf("shortened: %+v", exit)
	}
	// A command that is over is not touched.
	if err := r.Kill(r.ctx(), quick.ID(), 0, guest.CauseCanceled); err != nil {
		t.Error(err)
	}
}

func TestForkBomb(t *testing.T) {
	r := newRig(t)
	if !r.inside {
		t.Skip("only a sandbox has a process limit of its own")
	}
	if err := r.Bind(r.ctx(), guest.Binding{SandboxID: "sbx_1", Hostname: "bombed", MaxProcesses: 150, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	bomb := r.start(guest.StartRequest{Command: "b() { (setsid sleep 60 &) ; b & b; }; echo up; b 2>/dev/null"})
	bomb.await("up")
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := r.run(guest.StartRequest{Command: "true"})
		if sandbox.CodeQuotaExceeded.Is(err) {
			break // the limit holds for everybody
		}
		if time.Now().After(deadline) {
			t.Fatal("the bomb never filled the sandbox")
		}
	}
	if err := r.Ping(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := r.Kill(r.ctx(), bomb.ID(), 0, guest.CauseCanceled); err != nil {
		t.Fatal(err)
	}
	bomb.wait()
	if res := r.mustRun("hostname; ls /proc | grep -c '^[0-9]'"); !strings.HasPrefix(res.stdout, "bombed\n") || len(res.stdout) > len("bombed\n")+2 {
		t.Errorf("after the bomb: %q", res.stdout)
	}
}

func TestOutputOrderAndBoundaries(t *testing.T) {
	r := newRig(t)
	text := strings.Repeat("aé☃𝄞", 100_000)
	if _, err := r.Write(r.ctx(), guest.WriteRequest{Path: "text", Size: -1, Max: 1 << 30}, strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	res := r.mustRun("cat text; dd if=text bs=1001 status=none; printf '\\xe2\\x98'; echo end >&2")
	if want := text + text + "\xe2\x98"; res.stdout != want {
		t.Errorf("got %d bytes, want %d", len(res.stdout), len(want))
	}
	if res.stderr != "end\n" {
		t.Errorf("stderr %q", res.stderr)
	}
	for i, c := range res.chunks {
		if c.Seq != int64(i)+1 {
			t.Fatalf("chunk %d has seq %d", i, c.Seq)
		}
		if len(c.Data) > 64<<10 {
			t.Errorf("chunk %d has %d bytes", i, len(c.Data))
		}
		if !utf8.Valid(c.Data) && !bytes.HasSuffix(c.Data, []byte("\xe2\x98")) {
			t.Errorf("chunk %d is cut inside a character", i)
		}
	}
	if res := r.mustRun(`for i in 1 2 3 4 5 6 7 8; do printf '\xff\xfe\x80'; done; printf '\xf0\x9f\x92'; sleep 0.1; printf '\xa9'`); res.stdout != strings.Repeat("\xff\xfe\x80", 8)+"💩" {
		t.Errorf("bytes: %q", res.stdout)
	}
}

func TestBackgroundChildren(t *testing.T) {
	r := newRig(t)
	begin := time.Now()
	res := r.mustRun("(while :; do echo tick; sleep 0.01; done) & echo started")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the command took %v to end", took)
	}
	if !strings.Contains(res.stdout, "started\n") || res.exit.Code != 0 {
		t.Errorf("got %q, %+v", res.stdout[:min(100, len(res.stdout))], res.exit)
	}
	// Its output goes nowhere, and neither blocks nor kills it.
	res = r.mustRun("exec -a crownest-mark-yes yes > >(exec -a crownest-mark-cat cat) & exec >&- 2>&-; exit 0")
	if res.exit.Code != 0 {
		t.Errorf("got %+v", res.exit)
	}
}

func TestManyReaders(t *testing.T) {
	r := newRig(t)
	p, err := r.Start(r.ctx(), guest.StartRequest{ID: "c", Cwd: "/workspace", Command: "seq 1 200000; read < <(sleep 0.3); seq 200001 400000"})
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := 1; i <= 400_000; i++ {
		fmt.Fprintln(&want, i)
	}
	// Read a little over each of many sessions, as a host that keeps crashing does.
	var got strings.Builder
	after := int64(0)
	stop := errors.New("crash")
	for session := 0; ; session++ {
		exit, err := p.Output(r.ctx(), after, func(chunks []sandbox.LogChunk) error {
			if session < 8 && session%2 == 1 {
				return stop // what this reader got is not durable
			}
			for _, c := range chunks {
				if c.Seq != after+1 {
					t.Fatalf("seq %d after %d", c.Seq, after)
				}
				after = c.Seq
				got.Write(c.Data)
			}
			if session < 8 {
				return stop
			}
			return nil
		})
		if err == nil {
			if exit.Code != 0 {
				t.Errorf("got %+v", exit)
			}
			break
		}
		if !errors.Is(err, stop) {
			t.Fatal(err)
		}
		if session%3 == 0 {
			old := r.Client
			r.Client = r.connect()
			if r.inside && session == 0 {
				// The runsc command holds the guest's ends of the first pipes as well, so
				// that they never end.
				_ = old.Close()
			}
			select {
			case <-old.Done():
			case <-r.ctx().Done():
				t.Fatal("the old session lives on")
			}
			if !errors.Is(old.Err(), guest.ErrDisconnected) {
				t.Errorf("superseded: %v", old.Err())
			}
		}
		if p, err = r.Attach(r.ctx(), "c"); err != nil {
			t.Fatal(err)
		}
	}
	if got.String() != want.String() {
		t.Errorf("got %d bytes, want %d", got.Len(), want.Len())
	}
	// The end can be asked for again, until it is forgotten.
	if p, err = r.Attach(r.ctx(), "c"); err != nil {
		t.Fatal(err)
	}
	if exit, err := p.Output(r.ctx(), after, nil); err != nil || exit.Code != 0 {
		t.Errorf("again: %+v, %v", exit, err)
	}
	if err := r.Forget(r.ctx(), "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Attach(r.ctx(), "c"); !errors.Is(err, guest.ErrNoProcess) {
		t.Errorf("forgotten: %v", err)
	}
}

// TestSlowHost shows that a command waits for its host and loses nothing.
func TestSlowHost(t *testing.T) {
	r := newRig(t)
	p, err := r.Start(r.ctx(), guest.StartRequest{ID: "c", Cwd: "/workspace", Command: "head -c 8000000 /dev/zero; touch over"})
	if err != nil {
		t.Fatal(err)
	}
	blocked := make(chan struct{})
	go func() {
		defer close(blocked)
		time.Sleep(500 * time.Millisecond)
		if _, err := r.Stat(r.ctx(), "over"); !sandbox.CodeFileNotFound.Is(err) {
			t.Errorf("the command went on without its host: %v", err)
		}
	}()
	total := 0
	exit, err := p.Output(r.ctx(), 0, func(chunks []sandbox.LogChunk) error {
		<-blocked
		for _, c := range chunks {
			total += len(c.Data)
		}
		return nil
	})
	if err != nil || exit.Code != 0 || total != 8_000_000 {
		t.Errorf("%d bytes, %+v, %v", total, exit, err)
	}
}

func TestStart(t *testing.T) {
	r := newRig(t)
	once := guest.StartRequest{ID: "once", Cwd: "/workspace", Command: "echo x >> count; cat count"}
	for range 3 { // a repeated id attaches
		p, err := r.Start(r.ctx(), once)
		if err != nil {
			t.Fatal(err)
		}
		after := int64(0)
		if all, err := r.Processes(r.ctx()); err != nil || len(all) != 1 {
			t.Fatalf("processes: %v, %v", all, err)
		} else if !all[0].Running {
			after = all[0].NextSeq - 1
		}
		if res, err := r.collect(p, after); err != nil || (after == 0 && res.stdout != "x\n") {
			t.Errorf("got %+v, %v", res, err)
		}
	}
	for _, tt := range []struct {
		cwd  string
		code sandbox.Code
	}{
		{"/workspace/none", sandbox.CodeFileNotFound}, {"/etc", sandbox.CodePathOutsideWorkspace},
		{"count", sandbox.CodePathNotDirectory}, {"..", sandbox.CodePathOutsideWorkspace},
	} {
		if _, err := r.run(guest.StartRequest{Cwd: tt.cwd, Command: "true"}); !tt.code.Is(err) {
			t.Errorf("cwd %s: %v", tt.cwd, err)
		}
	}
	if err := r.Bind(r.ctx(), guest.Binding{SandboxID: "sbx_1", Env: []string{"A=1", "B=2"}, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := r.Bind(r.ctx(), guest.Binding{SandboxID: "sbx_1"}); err != nil {
		t.Errorf("bind again: %v", err)
	}
	if err := r.Bind(r.ctx(), guest.Binding{SandboxID: "sbx_2"}); !errors.Is(err, guest.ErrBound) {
		t.Errorf("bind to another: %v", err)
	}
	if c := r.connect(); c.Hello().SandboxID != "sbx_1" || c.Hello().Generation != r.Hello().Generation {
		t.Errorf("hello: %+v", c.Hello())
	} else {
		r.Client = c
	}
	res, err := r.run(guest.StartRequest{Command: "echo $A $B $C; echo $HOME; id -u; umask", Env: []string{"B=3", "C=x y\nz"}})
	if want := "1 3 x y z\n"; err != nil || !strings.HasPrefix(res.stdout, want) {
		t.Errorf("env: %q, %v", res.stdout, err)
	}
	for _, size := range []int{1000, 9000, 100_000, 131_071, 131_072, 200_000, 256 << 10} {
		command := "echo ${#BASH_EXECUTION_STRING} é #"
		command += strings.Repeat("x", size-len(command))
		res, err := r.run(guest.StartRequest{Command: command})
		if want := fmt.Sprintf("%d é\n", size-1); err != nil || res.stdout != want {
			t.Errorf("command of %d bytes: %q, %q, %v", size, res.stdout, res.stderr, err)
		}
	}
}

func TestSecrets(t *testing.T) {
	r := newRig(t)
	if !r.inside {
		t.Skip("only a sandbox has a guest as PID 1")
	}
	for _, tt := range []struct{ command, want string }{
		{"id -u; id -g; id -G", "1000\n1000\n1000\n"},
		{"grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)' /proc/self/status | tr -d '\\t0' | tr '\\n' ' '", "CapInh: CapPrm: CapEff: CapAmb: NoNewPrivs:1 "},
		{"kill -9 1 2>&1 | grep -o 'not permitted'", "not permitted\n"},
		{"ls /proc/1/fd 2>&1 | grep -o denied", "denied\n"},
		{"cat /proc/1/environ 2>&1 | grep -o denied", "denied\n"},
		{"echo $$ 2>/dev/null > /sys/fs/cgroup/cgroup.procs; echo $?; mkdir /sys/fs/cgroup/user/x 2>/dev/null; echo $?", "1\n1\n"},
		{"ls /proc/self/fd | wc -l", "4\n"},
		{"ulimit -Sn; ulimit -c", "4096\n0\n"},
		{"echo x 2>/dev/null > /.crownest/guest; touch /run/crownest/x 2>/dev/null; echo $?", "1\n"},
		{"stat -c '%U %a' /workspace /home/sandbox; echo ~", "sandbox 755\nsandbox 755\n/home/sandbox\n"},
		{"readlink /proc/$$/fd/0; awk '{print ($5==$1) ($6==$1)}' /proc/$$/stat", "/dev/null\n11\n"},
		// Anybody may connect to the attach socket, root alone is heard.
		{`python3 -c '
import socket, array
s = socket.socket(socket.AF_UNIX); s.connect("\0crownest-guest")
a, b = socket.socketpair()
try:
    s.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [a.fileno()]))])
    print(s.recv(1))
except OSError as e: print(type(e).__name__)
a.close(); b.settimeout(5)
print(b.recv(1))' 2>&1 | tail -1`, "b''\n"},
	} {
		res := r.mustRun(tt.command)
		if res.stdout != tt.want {
			t.Errorf("%s: %q, want %q; %q", tt.command, res.stdout, tt.want, res.stderr)
		}
	}
	if err := r.Ping(r.ctx()); err != nil {
		t.Errorf("the session is gone: %v", err)
	}
}

func TestDialPort(t *testing.T) {
	r := newRig(t)
	const port = 18099
	server := r.start(guest.StartRequest{Command: fmt.Sprintf(`exec python3 -c '
import socket, threading
def echo(c):
    n = 0
    while True:
        b = c.recv(65536)
        if not b: break
        n += len(b)
        c.sendall(b)
    c.sendall(b"|%%d" %% n); c.close()
s = socket.create_server(("127.0.0.1", %d)); print("up", flush=True)
while True:
    c, _ = s.accept()
    threading.Thread(target=echo, args=(c,)).start()'`, port)})
	server.await("up")
	conn, err := r.DialPort(r.ctx(), port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	data := bytes.Repeat([]byte("0123456789abcdef"), 256<<10)
	go func() {
		if _, err := conn.Write(data); err != nil {
			t.Error(err)
		}
		if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Error(err)
		}
	}()
	got, err := io.ReadAll(conn)
	if want := fmt.Sprintf("%s|%d", data, len(data)); err != nil || string(got) != want {
		t.Errorf("got %d bytes, want %d, %v", len(got), len(want), err)
	}
	idle, err := r.DialPort(r.ctx(), port)
	if err != nil {
		t.Fatal(err)
	}
	if err := idle.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var netErr interface{ Timeout() bool }
	if _, err := idle.Read(make([]byte, 1)); !errors.As(err, &netErr) || !netErr.Timeout() {
		t.Errorf("deadline: %v", err)
	}
	if err := idle.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.DialPort(r.ctx(), 1); !errors.Is(err, guest.ErrRefused) {
		t.Errorf("dial to nothing: %v", err)
	}
}
