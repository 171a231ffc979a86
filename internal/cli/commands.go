package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	crownest "crownest.dev/go"
)

// cancelPatience is how long an interrupted run waits for its command to end: the
// server kills it ten seconds after it was asked to end by itself.
const cancelPatience = 20 * time.Second

func (a *app) commandsCommand() *cobra.Command {
	return group("commands", "Run and cancel commands",
		a.commandsRun(), a.commandsStart(), a.commandsList(), a.commandsGet(), a.commandsCancel())
}

// commandLine returns the words before `--` and the command behind it.
func commandLine(cmd *cobra.Command, words []string) (before []string, command string, err error) {
	dash := cmd.ArgsLenAtDash()
	if dash < 0 || dash == len(words) {
		return nil, "", usageErrorf("%s needs a command behind --", cmd.CommandPath()).hint("usage: %s", cmd.UseLine())
	}
	if err := args(1, 1)(cmd, words[:dash]); err != nil {
		return nil, "", err
	}
	return words[:dash], joinWords(words[dash:]), nil
}

// environment reads --env flags; a name alone takes the local value.
func environment(values []string) (map[string]string, error) {
	full := make([]string, 0, len(values))
	for _, kv := range values {
		if !strings.Contains(kv, "=") && kv != "" {
			v, ok := os.LookupEnv(kv)
			if !ok {
				return nil, usageErrorf("--env %s: the variable is not set here", kv).hint("give its value: --env %s=VALUE", kv)
			}
			kv += "=" + v
		}
		full = append(full, kv)
	}
	return pairs("env", full)
}

func (a *app) commandsRun() *cobra.Command {
	var o crownest.RunOptions
	var env, collect, collectAs []string
	c := &cobra.Command{
		Use: "run SANDBOX [flags] -- COMMAND...", Short: "Run a command and stream its output", Args: cobra.ArbitraryArgs,
		Long: `Runs a command to its end and streams its output. The exit code is the remote
one, 128+n where signal n ended it; 124 means timed out, 130 canceled, 137 killed
with its sandbox, 1 failed without a code. An interrupt (Ctrl-C) cancels the remote command; a second one
leaves at once.

Words behind -- are quoted, so that the remote shell sees the same words. For a
pipe or a loop, give a shell: -- bash -c 'seq 3 | tac'.`,
		Example: `  crownest commands run sbx_... -- python3 main.py
  crownest commands run sbx_... --cwd /workspace/app --env CI=1 -- npm test
  crownest commands run sbx_... --collect report.html --collect-on always -- make report`,
		RunE: func(cmd *cobra.Command, words []string) error {
			before, line, err := commandLine(cmd, words)
			if err != nil {
				return err
			}
			if err := positive(cmd, "timeout-ms", o.TimeoutMs); err != nil {
				return err
			}
			if o.CollectOn != "" {
				if err := oneOf("collect-on", o.CollectOn, "success", "always"); err != nil {
					return err
				}
			}
			if o.Env, err = environment(env); err != nil {
				return err
			}
			for _, path := range collect {
				o.Collect = append(o.Collect, crownest.CollectItem{Path: path})
			}
			for _, kv := range collectAs {
				name, path, ok := strings.Cut(kv, "=")
				if !ok || name == "" || path == "" {
					return usageErrorf("--collect-as %q is not of the form NAME=PATH", kv)
				}
				o.Collect = append(o.Collect, crownest.CollectItem{Name: name, Path: path})
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			return a.run(cmd.Context(), client, before[0], line, &o)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&collect, "collect", nil, "`PATH` of a file to keep as an artifact (repeatable)")
	f.StringArrayVar(&collectAs, "collect-as", nil, "`NAME=PATH`: file to keep under another name (repeatable)")
	f.StringVar(&o.CollectOn, "collect-on", "", "`WHEN` to collect: success (default) or always")
	f.StringVar(&o.Cwd, "cwd", "", "`DIR` to run in (default /workspace)")
	f.StringArrayVar(&env, "env", nil, "`NAME=VALUE`, or NAME alone for the local value (repeatable)")
	f.Int64Var(&o.TimeoutMs, "timeout-ms", 0, "time limit in `MS`, milliseconds (default 60000)")
	idempotencyFlag(c, &o.IdempotencyKey)
	return c
}

// run runs a command, live unless an envelope is wanted, and turns its end into
// an exit code. When ctx ends, the remote command is canceled first.
func (a *app) run(ctx context.Context, client *crownest.Client, sandboxID, line string, o *crownest.RunOptions) error {
	started := make(chan string, 1)
	o.OnStart = func(c *crownest.Command) { started <- c.ID }
	o.OnStreamError = func(err error) { fmt.Fprintf(a.Err, "crownest: live output ended early: %s\n", printable(err.Error())) }
	if a.json {
		o.OnStreamError = nil // the envelope holds the output
	} else {
		o.OnStdout = func(s string) { _, _ = io.WriteString(a.Out, s) }
		o.OnStderr = func(s string) { _, _ = io.WriteString(a.Err, s) }
	}
	type result struct {
		cmd *crownest.Command
		err error
	}
	runCtx, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	done := make(chan result, 1)
	go func() {
		cmd, err := client.Commands.Run(runCtx, sandboxID, line, o)
		done <- result{cmd, err}
	}()

	var res result
	select {
	case res = <-done:
	case <-ctx.Done():
		if !a.json {
			fmt.Fprintln(a.Err, "crownest: canceling the command")
		}
		patience, stop := context.WithTimeout(runCtx, cancelPatience)
		defer stop()
		select {
		case id := <-started:
			if _, err := client.Commands.Cancel(patience, id, nil); err != nil {
				abort()
				<-done
				return fmt.Errorf("canceling command %s: %w", id, err)
			}
		case <-patience.Done():
		case res = <-done:
			done <- res
		}
		select {
		case res = <-done:
		case <-patience.Done():
			abort()
			res = <-done
		}
		if res.cmd == nil {
			return fmt.Errorf("running the command: %w", res.err)
		}
		// It may have ended by itself in the last moment; the user still left.
		if err := a.ran(res.cmd); err != nil {
			var exit *exitCode
			if !errors.As(err, &exit) {
				return err
			}
		}
		return exitWith(exitInterrupted)
	}
	if res.err != nil {
		return res.err
	}
	return a.ran(res.cmd)
}

// ran prints what is left to say about a command that ended.
func (a *app) ran(cmd *crownest.Command) error {
	if a.json {
		if err := a.record(cmd); err != nil {
			return err
		}
		return exitWith(remoteExit(cmd))
	}
	switch cmd.Status {
	case crownest.CommandExited:
	case crownest.CommandTimedOut:
		fmt.Fprintf(a.Err, "crownest: the command ran out of time (--timeout-ms) and was ended\n")
	case crownest.CommandKilled:
		fmt.Fprintf(a.Err, "crownest: the command was killed: its sandbox ended\n")
	case crownest.CommandCanceled:
		fmt.Fprintf(a.Err, "crownest: the command was canceled\n")
	default:
		if signal := endedBy(cmd); signal != "" {
			fmt.Fprintf(a.Err, "crownest: the command was ended by %s\n", printable(signal))
			break
		}
		fmt.Fprintf(a.Err, "crownest: the command %s\n", printable(string(cmd.Status)))
	}
	for _, id := range cmd.ArtifactIDs {
		fmt.Fprintf(a.Err, "crownest: collected %s\n", printable(id))
	}
	for _, e := range cmd.CollectErrors {
		fmt.Fprintf(a.Err, "crownest: not collected: %s: %s\n", printable(e.Path), printable(e.Message))
	}
	return exitWith(remoteExit(cmd))
}

// endedBy names the signal that ended a command, if one did.
func endedBy(cmd *crownest.Command) string {
	if cmd.TerminationSignal != "" || cmd.ExitCode == nil || *cmd.ExitCode <= 128 {
		return cmd.TerminationSignal
	}
	return unix.SignalName(syscall.Signal(*cmd.ExitCode - 128))
}

func remoteExit(cmd *crownest.Command) int {
	switch {
	case cmd.Status == crownest.CommandTimedOut:
		return exitTimedOut
	case cmd.Status == crownest.CommandCanceled:
		return exitInterrupted
	case cmd.Status == crownest.CommandKilled:
		return exitKilled
	case cmd.ExitCode != nil:
		return *cmd.ExitCode
	}
	return exitError
}

func (a *app) commandsStart() *cobra.Command {
	var o crownest.StartOptions
	var env []string
	c := &cobra.Command{
		Use: "start SANDBOX [flags] -- COMMAND...", Short: "Start a command and leave it running", Args: cobra.ArbitraryArgs,
		Long: `Starts a command and returns at once. Follow it with "crownest logs", look at it
with "crownest commands get", end it with "crownest commands cancel".`,
		Example: "  crownest commands start sbx_... -- python3 -m http.server 8000",
		RunE: func(cmd *cobra.Command, words []string) error {
			before, line, err := commandLine(cmd, words)
			if err != nil {
				return err
			}
			if err := positive(cmd, "timeout-ms", o.TimeoutMs); err != nil {
				return err
			}
			if o.Env, err = environment(env); err != nil {
				return err
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			started, err := client.Commands.Start(cmd.Context(), before[0], line, &o)
			if err != nil {
				return err
			}
			return a.record(started)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Cwd, "cwd", "", "`DIR` to run in (default /workspace)")
	f.StringArrayVar(&env, "env", nil, "`NAME=VALUE`, or NAME alone for the local value (repeatable)")
	f.Int64Var(&o.TimeoutMs, "timeout-ms", 0, "time limit in `MS`, milliseconds (default: the end of the sandbox)")
	idempotencyFlag(c, &o.IdempotencyKey)
	return c
}

func (a *app) commandsList() *cobra.Command {
	return &cobra.Command{
		Use: "list SANDBOX", Short: "List the commands of a sandbox, newest first", Args: args(1, 1),
		Example: "  crownest commands list sbx_...",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			list, err := client.Commands.List(cmd.Context(), words[0])
			if err != nil {
				return err
			}
			return a.list(rawList(list), "id", "status", "exit=exitCode", "createdAt", "command")
		},
	}
}

func (a *app) commandsGet() *cobra.Command {
	return &cobra.Command{
		Use: "get COMMAND_ID", Short: "Show a command", Args: args(1, 1),
		Example: "  crownest commands get cmd_... --json",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			c, err := client.Commands.Get(cmd.Context(), words[0])
			if err != nil {
				return err
			}
			return a.record(c)
		},
	}
}

func (a *app) commandsCancel() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "cancel COMMAND_ID", Short: "End a command and all its children", Args: args(1, 1),
		Long:    "Ends a command: SIGTERM to its whole process tree, SIGKILL after ten seconds. With\n--force, SIGKILL at once.",
		Example: "  crownest commands cancel cmd_...\n  crownest commands cancel cmd_... --force",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			var o crownest.CancelOptions
			if force {
				o.Mode = "force"
			}
			canceled, err := client.Commands.Cancel(cmd.Context(), words[0], &o)
			if err != nil {
				return err
			}
			return a.record(canceled)
		},
	}
	c.Flags().BoolVar(&force, "force", false, "kill at once")
	return c
}

func (a *app) logsCommand() *cobra.Command {
	var commandID, stream, output string
	var afterSeq int64
	var noFollow bool
	c := &cobra.Command{
		Use: "logs COMMAND_ID", Short: "Print a command's output and follow it to its end", Args: args(1, 1),
		Long: `Prints what a command put out: its stdout on stdout, its stderr on stderr, as
text. While the command is active, new output follows. --output saves the exact
bytes to a file instead. The output is never an envelope: without --output,
--json is ignored.`,
		Example: `  crownest logs cmd_...
  crownest logs sbx_... --command cmd_... --no-follow
  crownest logs cmd_... --stream stdout --output build.log`,
		RunE: func(cmd *cobra.Command, words []string) error {
			id := firstNonEmpty(commandID, words[0])
			if cmd.Flags().Changed("command") && commandID == "" {
				return usageErrorf("--command is empty")
			}
			if strings.HasPrefix(id, "sbx_") {
				return usageErrorf("%s names a sandbox, not a command", id).hint("add --command COMMAND_ID; see `crownest commands list %s`", id)
			}
			if err := oneOf("stream", stream, "both", "stdout", "stderr"); err != nil {
				return err
			}
			if afterSeq < 0 {
				return usageErrorf("--after-seq must not be negative")
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			if output != "" {
				if cmd.Flags().Changed("after-seq") {
					return usageErrorf("--output saves the whole log: leave out --after-seq")
				}
				return a.saveLogs(cmd.Context(), client, id, stream, output)
			}
			var after *int64
			if cmd.Flags().Changed("after-seq") {
				after = &afterSeq
			}
			return a.printLogs(cmd.Context(), client, id, stream, after, !noFollow)
		},
	}
	f := c.Flags()
	f.StringVar(&commandID, "command", "", "`COMMAND_ID`, where the argument is a sandbox")
	f.Int64Var(&afterSeq, "after-seq", 0, "only chunks behind this `SEQ` (default: from the oldest retained one)")
	f.StringVar(&stream, "stream", "both", "`STREAM` to print: both, stdout or stderr")
	f.BoolVar(&noFollow, "no-follow", false, "stop at what is there now")
	f.StringVarP(&output, "output", "o", "", "save the exact bytes to this `FILE`")
	return c
}

func (a *app) printLogs(ctx context.Context, client *crownest.Client, id, stream string, after *int64, follow bool) error {
	show := func(from, data string) error {
		if stream != "both" && stream != from {
			return nil
		}
		w := a.Out
		if from == crownest.Stderr {
			w = a.Err
		}
		if _, err := io.WriteString(w, data); err != nil {
			return fmt.Errorf("writing the output: %w", err)
		}
		return nil
	}
	if !follow {
		for chunk, err := range client.Commands.AllLogs(ctx, id, after) {
			if err == nil {
				err = show(chunk.Stream, chunk.Data)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	for ev, err := range client.Commands.StreamLogs(ctx, id, &crownest.StreamOptions{AfterSeq: after}) {
		if err == nil && ev.Type == crownest.EventLog {
			err = show(ev.Stream, ev.Data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *app) saveLogs(ctx context.Context, client *crownest.Client, id, stream, output string) error {
	n, err := saveFile(output, func(w io.Writer) (int64, error) {
		return client.Commands.DownloadLogs(ctx, id, stream, w)
	})
	if err != nil {
		return err
	}
	return a.value(struct {
		Path      string `json:"path"`
		CommandID string `json:"commandId"`
		SizeBytes int64  `json:"sizeBytes"`
	}{output, id, n})
}
