// Package guest speaks with the guest, PID 1 of a sandbox, from the host's side:
// the Session that callers use, and the client that implements it over one
// connection. It trusts nothing the guest says, and knows neither how a sandbox
// comes to exist nor what its commands are for.
package guest

import (
	"context"
	"io"
	"net"
	"time"

	"crownest.dev/crownest/internal/sandbox"
)

// Session is a live connection to the guest of one sandbox. Client implements
// it. Every method may be called concurrently and honours its context. Errors
// that are the caller's fault, or tell of the sandbox's own state (no such file,
// disk full, no permission), carry a code of the contract as *sandbox.Error. A
// broken connection is ErrDisconnected, wrapped: the work inside goes on and the
// call may be made again, with the same operation id, over a new session.
type Session interface {
	// Hello is what the guest said when the connection was made.
	Hello() Hello
	// Done is closed when the connection has ended; Err then says why.
	Done() <-chan struct{}
	Err() error
	Close() error
	// Ping makes one round trip.
	Ping(ctx context.Context) error

	// Bind gives a pooled sandbox its identity. It may be called once; again with
	// the same SandboxID it does nothing, with another one it fails.
	Bind(ctx context.Context, b Binding) error

	// Start starts a command. A repeated ID attaches to the command it already
	// started. It returns once the shell runs, or an error if it could not.
	Start(ctx context.Context, r StartRequest) (Process, error)
	// Attach returns a command that Start started, over this or an earlier
	// session; ErrNoProcess if the guest does not know the ID.
	Attach(ctx context.Context, id string) (Process, error)
	// Processes lists the commands the guest knows: those that run, and those
	// that ended and were not forgotten yet.
	Processes(ctx context.Context) ([]ProcessStatus, error)
	// Kill ends a command and every descendant of it, daemons included. Grace 0
	// kills at once; else SIGTERM to the whole tree first and SIGKILL after
	// grace. It returns once the request is taken; the end is told by Wait.
	// Repeated calls may only shorten what is left of the grace.
	Kill(ctx context.Context, id string, grace time.Duration, cause Cause) error
	// Forget lets the guest drop what it keeps of an ended command.
	Forget(ctx context.Context, id string) error

	// Stat, List, ... act with the sandbox user's rights, below /workspace, and
	// cannot be led out of it by links or races. Paths may be relative to it.
	Stat(ctx context.Context, path string) (sandbox.FileInfo, error)
	List(ctx context.Context, path string, limit int) (entries []sandbox.FileInfo, truncated bool, err error)
	// Open opens a regular file for reading. The info is of the opened file.
	Open(ctx context.Context, path string, offset int64) (File, error)
	// Write replaces or creates a file atomically: a temporary file in the same
	// directory, verified, then renamed. What it reads from r is bounded by Max.
	Write(ctx context.Context, w WriteRequest, r io.Reader) (sandbox.FileInfo, error)
	// CheckWrite says whether Write with this request would be refused now.
	CheckWrite(ctx context.Context, w WriteRequest) error
	Delete(ctx context.Context, op, path string) error
	Mkdir(ctx context.Context, op, path string, parents bool) (sandbox.FileInfo, error)
	Move(ctx context.Context, op, from, to string, overwrite bool) (sandbox.FileInfo, error)
	// ResolveDir returns the absolute path of an existing directory below
	// /workspace that a command may start in.
	ResolveDir(ctx context.Context, path string) (string, error)

	// DialPort connects to a TCP port on the sandbox's loopback.
	DialPort(ctx context.Context, port int) (net.Conn, error)
}

// Hello is the guest's first message on a connection.
type Hello struct {
	Protocol   int
	Version    string // build of the guest
	Generation string // random, made when the guest started
	SandboxID  string // empty until bound
}

// Binding is what makes a pooled sandbox somebody's.
type Binding struct {
	SandboxID    string
	Hostname     string
	Env          []string // NAME=value, the base environment of every command
	MaxProcesses int      // tasks of the sandbox user, all commands together
	Now          time.Time
}

// StartRequest describes a command.
type StartRequest struct {
	ID      string // operation id: the command's id
	Command string // for /bin/bash -c
	Cwd     string // resolved by ResolveDir, or below /workspace
	Env     []string
	// Timeout makes the guest itself end the command: SIGTERM, then SIGKILL after
	// TimeoutGrace. 0 = none.
	Timeout      time.Duration
	TimeoutGrace time.Duration
}

// Cause says why a command ended.
type Cause string

// The causes of an end. Exited covers the command's own exit and signals from
// inside the sandbox.
const (
	CauseExited   Cause = "exited"
	CauseTimeout  Cause = "timeout"
	CauseCanceled Cause = "canceled"
)

// Exit is how a command ended. The host has bounded all of it.
type Exit struct {
	Cause  Cause
	Code   int  // valid if Signal is 0
	Signal int  // what ended the shell, if a signal did
	Killed bool // SIGKILL was needed, for causes timeout and canceled
	Start  time.Time
	End    time.Time
}

// ProcessStatus is one command in the guest's list.
type ProcessStatus struct {
	ID      string
	Running bool
	NextSeq int64
}

// Process is a command in the sandbox.
type Process interface {
	ID() string
	// Output delivers the chunks after afterSeq, in order and without holes, until
	// the command has ended and its output is drained; then it returns how it
	// ended. Each call of sink gets one batch; once sink returns nil the batch
	// counts as durable and the guest frees it. The chunks are valid during the
	// call only. While sink blocks the command blocks, once its spool is full.
	Output(ctx context.Context, afterSeq int64, sink func([]sandbox.LogChunk) error) (Exit, error)
}

// File is an open regular file in the sandbox.
type File interface {
	io.ReadCloser
	Info() sandbox.FileInfo
}

// WriteRequest describes a file to write.
type WriteRequest struct {
	OperationID   string
	Path          string
	CreateParents bool
	Overwrite     bool
	Size          int64  // declared size, -1 = unknown
	SHA256        string // declared hex digest, or empty
	Max           int64  // above: file_too_large
}
