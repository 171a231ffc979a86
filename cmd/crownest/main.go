// Command crownest is the whole product in one binary: server, command line and,
// executed again under other names, the gVisor sandboxes themselves.
package main

import (
	"context"
	"os"

	"crownest.dev/crownest/internal/cli"
	"crownest.dev/crownest/internal/runtime/local/runsc"
)

func main() {
	if runsc.Dispatch() {
		return
	}
	os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
