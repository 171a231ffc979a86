// Package cli is the command line of CrowNest: the client commands, which speak
// to a server through the Go SDK, and the commands of an operator, which act on
// this machine. It knows arguments, terminals, files of the user and exit codes;
// it knows nothing of gVisor, SQL or how a server does its work.
package cli

import (
	"context"
	"errors"
	"io"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	crownest "crownest.dev/go"

	"crownest.dev/crownest/internal/version"
)

// Stdio is where a command reads and writes.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exit codes of every command but `commands run`, which has the remote one.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitTimedOut    = 124
	exitInterrupted = 130
	exitKilled      = 137
)

// Run executes one command line, without the program's name, and returns its
// exit code. The first SIGINT or SIGTERM asks the command to end in good order;
// the second one has its default effect.
func Run(ctx context.Context, args []string, stdio Stdio) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()

	a := newApp(stdio)
	// Errors of the parser itself come before the flag is parsed, and they have
	// an envelope too.
	a.json = wantsJSON(args)
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var exit *exitCode
	if errors.As(err, &exit) {
		return exit.code
	}
	return a.fail(ctx, cmd.CommandPath(), err)
}

// exitCode ends the program with a code after everything has been said.
type exitCode struct{ code int }

func (e *exitCode) Error() string { return "exit" }

func exitWith(code int) error {
	if code == exitOK {
		return nil
	}
	return &exitCode{code}
}

func wantsJSON(args []string) bool {
	for _, arg := range args {
		switch arg {
		case "--":
			return false
		case "--json", "--json=true":
			return true
		}
	}
	return false
}

// app is one run of the program.
type app struct {
	Stdio
	json   bool
	outTTY bool // tables are aligned
	color  bool // stdout takes colours
	errTTY bool // progress is shown

	unreachable string // what to do when the server that was chosen does not answer
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "crownest",
		Short: "Isolated Linux sandboxes for untrusted code",
		Long: `CrowNest creates isolated Linux sandboxes, runs and streams commands in them,
moves files and keeps artifacts.

The client commands find their server and credential in CROWNEST_API_URL and
CROWNEST_API_KEY, or in what "crownest login" saved. Where neither names a server
they go to the hosted one, ` + crownest.DefaultBaseURL + `: for a server of your own,
export CROWNEST_API_URL=` + localURL + `.`,
		Example: `  crownest login --api-key cn_live_... --api-url http://127.0.0.1:8787
  crownest sandboxes create --template python
  crownest commands run sbx_... -- python3 -c 'print(6 * 7)'
  crownest sandboxes kill sbx_...`,
		Version:                    version.Version,
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return flagError(err).hint("see `%s --help`", cmd.CommandPath())
	})
	root.PersistentFlags().BoolVar(&a.json, "json", a.json, "print one JSON envelope")
	root.PersistentFlags().BoolP("help", "h", false, "show help")
	root.Flags().BoolP("version", "V", false, "print the version")

	root.AddGroup(
		&cobra.Group{ID: groupClient, Title: "Client commands:"},
		&cobra.Group{ID: groupServer, Title: "Commands for the server machine:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupClient,
		a.loginCommand(), a.projectsCommand(), a.keysCommand(), a.sandboxesCommand(), a.commandsCommand(),
		a.logsCommand(), a.filesCommand(), a.artifactsCommand(), a.usageCommand(), a.auditCommand(),
		a.templatesCommand(),
	)
	add(groupServer, a.serverCommands()...)
	root.SetHelpCommand(helpCommand(root))
	return root
}

const (
	groupClient = "client"
	groupServer = "server"
)

func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || cmd == nil || (cmd == root && len(args) > 0) || (len(rest) > 0 && cmd.HasSubCommands()) {
				return unknownCommand(root, strings.Join(args, " "))
			}
			return cmd.Help()
		},
	}
}

// group makes a command that only holds others.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			names := make([]string, 0, len(children))
			for _, child := range children {
				names = append(names, child.Name())
			}
			return usageErrorf("%s needs a command: %s", cmd.CommandPath(), strings.Join(names, ", ")).
				hint("see `%s --help`", cmd.CommandPath())
		},
	}
	c.AddCommand(children...)
	return c
}

// args checks the number of words before `--`, and that none is empty: an unset
// shell variable must not turn into another call.
func args(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, words []string) error {
		if n := len(words); n < low || n > high {
			return usageErrorf("%s takes %s, got %d", cmd.CommandPath(), countOf(low, high), n).
				hint("usage: %s", cmd.UseLine())
		}
		for _, w := range words[:low] {
			if w == "" {
				return usageErrorf("%s: an argument is empty", cmd.CommandPath()).hint("usage: %s", cmd.UseLine())
			}
		}
		return nil
	}
}
