//go:build linux

package server

import (
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newServer returns a guest that works below a directory of its own.
func newServer(t *testing.T, shells int) *Server {
	t.Helper()
	root, err := os.MkdirTemp("", "guest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	cfg := Config{Root: root, UID: os.Getuid(), GID: os.Getgid(), Home: "/tmp", Build: "test", Shells: shells, Runtime: root + "/run"}
	if os.Getuid() == 0 {
		cfg.UID, cfg.GID = 1000, 1000
	}
	for _, dir := range []string{root + Workspace + "/sub dir", root + "/run"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{root, root + Workspace, root + Workspace + "/sub dir"} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, cfg.UID, cfg.GID); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// await waits until a shell waits.
func (p *shells) await(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		n := len(p.ready)
		p.mu.Unlock()
		if n > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no shell waits")
		}
		p.refill()
	}
}

type outcome struct {
	stdout, stderr string
	status         syscall.WaitStatus
}

// finish reads what a shell says and does until its end.
func finish(t *testing.T, s *Server, sh *shell) outcome {
	t.Helper()
	var out outcome
	errs := make(chan string)
	go func() {
		b, _ := io.ReadAll(sh.output[1])
		errs <- string(b)
	}()
	b, err := io.ReadAll(sh.output[0])
	if err != nil {
		t.Error(err)
	}
	out.stdout, out.stderr, out.status = string(b), <-errs, <-sh.exit
	pid := regexp.MustCompile(`\b` + strconv.Itoa(sh.pid) + `\b`)
	out.stdout = pid.ReplaceAllString(out.stdout, "PID")
	out.stderr = pid.ReplaceAllString(out.stderr, "PID")
	s.uproot(sh.tree)
	for _, f := range sh.output {
		_ = f.Close()
	}
	return out
}

// TestWaitingShell runs scripts in a shell that waited and in a fresh one: nobody
// may be able to tell which is which. (Known and left alone: PIPESTATUS starts with
// a 0, BASH_ARGC with an empty frame, and BASH_ENV is in /proc/$$/environ.)
func TestWaitingShell(t *testing.T) {
	s := newServer(t, 1)
	elsewhere := []string{"pwd; pwd -P", `echo "$PWD" "${OLDPWD-unset}" "${DIRSTACK[@]}"`, "cd ..; echo $OLDPWD", "export -p", "cd - ; echo $?", "readlink /proc/$$/cwd"}
	scripts := []string{
		"", " ", "\n\n", "# nothing", ":", "true", "false", "exit 7", "exit 300", "exit -1", "return 3",
		"echo hi", "echo out; echo err >&2", "printf 'no newline'", `printf '\x00\xff\xfe'`,
		"echo $0", "echo $-", "echo $#", `echo "$@" "$*"`, "echo $?", `echo "[$_]"`, "echo $LINENO", "\n\necho $LINENO", "echo $$",
		"echo $PPID", "echo $SHLVL", "echo $BASH_SUBSHELL $BASHPID", `echo "$BASH_EXECUTION_STRING"`, `echo "${BASH_SOURCE[@]}|${FUNCNAME[@]}"`,
		"echo $SECONDS", `echo "${DIRSTACK[@]}" "$PWD" "$OLDPWD"`, "pwd; pwd -P", "cd ..; echo $OLDPWD",
		"umask; ulimit -a", "trap", "trap -p; jobs; set -o; shopt", "alias; hash 2>&1; complete",
		"env | grep -v -e ^_= | sort", "export -p", "declare -F; declare -f",
		"declare -p | grep -v -e RANDOM -e SECONDS -e EPOCH -e BASHPID -e ' _=' -e BASH_EXECUTION_STRING -e BASH_ARGC -e PIPESTATUS",
		"set | grep -v -e ^RANDOM -e ^SRANDOM -e ^SECONDS -e ^EPOCH -e ^_= -e ^BASH_EXECUTION_STRING -e ^BASH_ARGC -e ^PIPESTATUS",
		"compgen -v | grep -v PIPESTATUS | sort", "x=(/proc/$$/fd/*); echo ${x[@]##*/}", "ls /proc/self/fd | tr '\\n' ' '", "readlink /proc/$$/fd/0",
		"cat", "read x; echo \"$? [$x]\"", "test -t 0 || test -t 1 || echo no terminal",
		"ps -o stat= -p $$ | cut -c1-2", "awk '{print $5==$1, $6==$1, $7}' /proc/$$/stat",
		"nosuchcommand", "\n\nnosuchcommand a b", "/no/such/file", "/etc/passwd", "cd /nonexistent", "echo a | nosuch | cat",
		"if", "echo 'unclosed", "echo \"unclosed", "fi", "echo a; )", "echo a\necho b\nif then", "for x in", "a() {", "echo $(", "echo ${x!y!}", "cat <<EOF\nunclosed",
		"cat <<EOF\na $HOME\nb\nEOF", "cat <<'EOF'\na $HOME `x`\nEOF\necho after", "cat <<< 'here string'", "cat <(echo sub)",
		"set -e; false; echo never", "set -u; echo $unset; echo never", "set -x; echo traced", "set -o pipefail; false | true; echo $?", "set -n; echo never",
		"exec echo replaced", "exec nosuch; echo never", "exec 5>&1; echo five >&5", "exec >/dev/null; echo lost",
		"kill -9 $$", "kill -TERM $$", "kill -INT $$; echo after", "kill -PIPE $$", "kill -SEGV $$", "sleep 100 & kill $!; wait $!; echo $?",
		"sh -c 'kill -9 $$'", "sh -c 'kill -TERM $$'; echo $?", "{ (kill -9 $BASHPID); } 2>/dev/null; echo $?", "trap 'echo bye' EXIT; echo hi", "trap 'echo term' TERM; kill $$; echo after",
		"true & wait; echo $?", "sleep 0.01 & echo started; wait", "bg; fg; jobs", "echo a | cat | tr a b", "yes | head -2", "seq 3 | while read i; do echo \"i$i\"; done",
		"f() { echo \"$FUNCNAME $1\"; return 4; }; f x; echo $?", "x=(1 2 3); echo ${#x[@]} ${x[-1]}", "declare -A m=([a]=1); echo ${m[a]}", "echo {1..3} ~ *", "[[ a == a* ]] && echo match",
		"echo $((1/0)); echo after", "echo ${x:?missing}; echo never", "readonly r=1; r=2; echo never", "let 'a=1+1'; echo $a", "printf '%s\\n' \"${BASH_VERSINFO[0]}\"",
		"echo ünïcödé ☃ 𝄞 | wc -m", "echo ünï; nosuchß", "x='é'; echo ${#x}", "echo $'a\\'b' \"q\\\"q\" 'it'\\''s' \\\\ $'\\t'", "echo '$'HOME; echo \"\\$x\"",
		"history; fc -l", "source /nonexistent", "echo 'echo sourced \"$_\"' > /tmp/crownest-src.$$; . /tmp/crownest-src.$$; rm /tmp/crownest-src.$$",
		"bash -c 'echo inner $0 $SHLVL $PPID'", "exec bash -c 'echo inner $SHLVL'", "bash -c 'echo $_'", "env | grep ^_=", "(echo $_; echo $_)",
		"times >/dev/null; echo $?", "suspend; echo $?", "logout", "exit abc", "break; echo $?", "local x; echo $?", "unset BASH_EXECUTION_STRING; echo ok", "echo \"$XTEST|$QUOTED\"",
		"getopts a x -a; echo $x $OPTIND", "mapfile -t a < /etc/hostname; echo ${#a[@]}", "enable -n echo; echo hi", "shopt -s expand_aliases; alias x='echo aliased'\nx", "command -v ls; type ls echo", "echo -e 'a\\tb'; echo -n x", "eval 'syntax ('; echo $?", "cd 'sub dir' 2>&1; pwd", "select x in a b; do echo $x; done", "coproc cat; echo ${#COPROC[@]}", "ulimit -n 100; ulimit -n", "wait 99999; echo $?", "disown; echo $?", "caller; echo $?", "printf '%(%Y)T\\n' 0", "exec 3<&-; echo $?", "echo x >&3", "echo x >&9", "! true; echo $?", "time -p true 2>/dev/null; echo $?", "{ echo a; echo b; } | cat -n", strings.Repeat("x=1;", 1000) + "echo $x",
	}
	quoted := "a'b\\c\n\t\"$x`y`\x7f\xc3\xa9 end"
	for _, cwd := range []string{Workspace, Workspace + "/sub dir"} {
		if cwd != Workspace {
			scripts = elsewhere
		}
		for _, script := range scripts {
			env := mergeEnv(s.env, []string{"XTEST=1", "QUOTED=" + quoted})
			fresh, err := s.plainShell(script, cwd, env)
			if err != nil {
				t.Fatal(err)
			}
			want := finish(t, s, fresh)
			s.shells.await(t)
			waited := s.shells.take(script, cwd, env, s.hostname)
			if waited == nil {
				t.Fatalf("%q: the waiting shell does not take it", script)
			}
			if got := finish(t, s, waited); got != want {
				t.Errorf("%q in %s:\nwaited %+v\nfresh  %+v", script, cwd, got, want)
			}
		}
	}
}
