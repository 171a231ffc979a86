package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"crownest.dev/crownest/internal/guest/protocol"
	"crownest.dev/crownest/internal/sandbox"
)

// Errors of a Session, wrapped with what was being done.
var (
	// ErrDisconnected says that the connection broke, not that the work inside did.
	ErrDisconnected = errors.New("guest disconnected")
	// ErrNoProcess says that the guest does not know the command.
	ErrNoProcess = errors.New("guest knows no such command")
	// ErrProtocol says that the guest broke the protocol: it is too old, broken or
	// hostile, and the session is closed. It is an ErrDisconnected as well.
	ErrProtocol = errors.New("guest broke the protocol")
	// ErrRefused says that nothing answers on a port.
	ErrRefused = errors.New("nothing answers on the port")
	// ErrBound says that the sandbox is bound to another identity already.
	ErrBound = errors.New("guest is bound already")
)

// Options tune a client. The zero value is right for a sandbox.
type Options struct {
	// Now is the clock that bounds what the guest says about time.
	Now func() time.Time
}

// Client is a Session over one connection. Nothing the guest says makes it hold
// more than the protocol's bounds, wait past a context, or panic.
type Client struct {
	conn  *protocol.Conn
	hello Hello
	now   func() time.Time

	mu   sync.Mutex
	lied error // how the guest broke the protocol above the framing
}

var _ Session = (*Client)(nil)

// NewClient greets the guest at the other end of conn, which it owns from then on,
// also if it returns an error.
func NewClient(ctx context.Context, conn net.Conn, opts Options) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	pc, hello, err := protocol.Dial(conn)
	if !stop() && err == nil {
		_ = pc.Close()
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("greet the guest: %w", disconnected(err))
	}
	c := &Client{conn: pc, now: opts.Now, hello: Hello{
		Protocol: hello.Protocol, Version: hello.Build, Generation: hello.Generation, SandboxID: hello.SandboxID,
	}}
	if c.now == nil {
		c.now = time.Now
	}
	return c, nil
}

// Hello implements Session.
func (c *Client) Hello() Hello { return c.hello }

// Done implements Session.
func (c *Client) Done() <-chan struct{} { return c.conn.Done() }

// Err implements Session.
func (c *Client) Err() error {
	err := c.conn.Err()
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lied != nil {
		err = c.lied
	}
	return disconnected(err)
}

// Close implements Session.
func (c *Client) Close() error { return c.conn.Close() }

// disconnected makes the end of a connection recognisable.
func disconnected(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrDisconnected):
		return err
	case errors.Is(err, protocol.ErrViolation):
		return fmt.Errorf("%w: %w: %w", ErrDisconnected, ErrProtocol, err)
	}
	return fmt.Errorf("%w: %w", ErrDisconnected, err)
}

// violated ends the session because the guest lied, and returns the error to give.
func (c *Client) violated(err error) error {
	c.mu.Lock()
	if c.lied == nil {
		c.lied = err
	}
	c.mu.Unlock()
	c.conn.Abort(err)
	return disconnected(fmt.Errorf("%w: %w", protocol.ErrViolation, err))
}

// call is one stream and the context it lives in.
type call struct {
	*protocol.Stream
	c    *Client
	ctx  context.Context
	stop func() bool
}

// open starts a call. It must be closed.
func (c *Client) open(ctx context.Context, op protocol.Op, m protocol.Message, last bool) (*call, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := c.conn.Open(protocol.Request(op, m), last)
	switch {
	case errors.Is(err, protocol.ErrBusy):
		return nil, sandbox.NewError(sandbox.CodeSandboxNotReady, "Too many operations are under way in this sandbox; try again.").Because(err)
	case err != nil:
		return nil, c.lost(err)
	}
	k := &call{Stream: s, c: c}
	k.within(ctx)
	return k, nil
}

// lost says that the connection has ended.
func (c *Client) lost(err error) error {
	if known := c.Err(); known != nil {
		return known
	}
	return disconnected(err)
}

// within binds the call to a context; the end of the context ends the call.
func (k *call) within(ctx context.Context) {
	k.ctx = ctx
	k.stop = context.AfterFunc(ctx, func() { k.Abandon(context.Cause(ctx)) })
}

func (k *call) close() {
	k.stop()
	k.Stream.Close()
}

// failed turns an error of the stream into one for the caller.
func (k *call) failed(err error) error {
	switch {
	case k.ctx.Err() != nil:
		return context.Cause(k.ctx)
	case errors.Is(err, io.EOF):
		return k.c.violated(errors.New("an answer is missing"))
	case errors.Is(err, protocol.ErrReset):
		if known := k.c.Err(); known != nil {
			return known
		}
		return fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	return k.c.lost(err)
}

// receive returns the next frame; the caller releases it.
func (k *call) receive() (protocol.Frame, error) {
	f, err := k.Receive()
	if err != nil {
		return f, k.failed(err)
	}
	return f, nil
}

// decode reads an answer into result and turns a fault into an error.
func (k *call) decode(b []byte, result protocol.Message) error {
	fault, err := protocol.DecodeAnswer(b, result)
	if err != nil {
		return k.c.violated(err)
	}
	if fault != nil {
		return faultError(fault)
	}
	return nil
}

// answer waits for the last frame and reads it.
func (k *call) answer(result protocol.Message) error {
	f, err := k.receive()
	if err != nil {
		return err
	}
	defer f.Release()
	if !f.End {
		return k.c.violated(errors.New("data where an answer was due"))
	}
	return k.decode(f.Data, result)
}

// unary is a request with one answer.
func (c *Client) unary(ctx context.Context, op protocol.Op, m, result protocol.Message) error {
	k, err := c.open(ctx, op, m, true)
	if err != nil {
		return err
	}
	defer k.close()
	return k.answer(result)
}

// Ping implements Session.
func (c *Client) Ping(ctx context.Context) error {
	return doing("ping the guest", c.unary(ctx, protocol.OpPing, nil, nil))
}

// Bind implements Session.
func (c *Client) Bind(ctx context.Context, b Binding) error {
	err := c.unary(ctx, protocol.OpBind, &protocol.Bind{
		SandboxID: b.SandboxID, Hostname: b.Hostname, Env: b.Env, MaxProcesses: b.MaxProcesses, Now: protocol.TimeOf(b.Now),
	}, nil)
	return doing("bind the guest", err)
}

// doing says what an error came from. What is for clients stays as it is.
func doing(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// DialPort implements Session.
func (c *Client) DialPort(ctx context.Context, port int) (net.Conn, error) {
	k, err := c.open(ctx, protocol.OpDial, &protocol.Port{Port: port}, false)
	if err != nil {
		return nil, doing("dial into the sandbox", err)
	}
	f, err := k.receive()
	if err == nil {
		err = k.decode(f.Data, nil)
		if err == nil && f.End {
			err = c.violated(errors.New("a dial that is over as soon as it worked"))
		}
		f.Release()
	}
	if err != nil {
		k.close()
		return nil, fmt.Errorf("dial port %d in the sandbox: %w", port, err)
	}
	if !k.stop() { // from here on the context has no say any more
		k.close()
		return nil, context.Cause(ctx)
	}
	return newPortConn(k.Stream, port), nil
}

// codes are the contract's codes for what a guest may complain of.
var codes = map[protocol.Reason]sandbox.Code{
	protocol.ReasonInvalid:      sandbox.CodeInvalidRequest,
	protocol.ReasonOutside:      sandbox.CodePathOutsideWorkspace,
	protocol.ReasonIsDirectory:  sandbox.CodePathIsDirectory,
	protocol.ReasonNotDirectory: sandbox.CodePathNotDirectory,
	protocol.ReasonNotFound:     sandbox.CodeFileNotFound,
	protocol.ReasonNoParent:     sandbox.CodeParentNotFound,
	protocol.ReasonExists:       sandbox.CodeFileAlreadyExists,
	protocol.ReasonNotEmpty:     sandbox.CodeDirectoryNotEmpty,
	protocol.ReasonDenied:       sandbox.CodeForbidden,
	protocol.ReasonTooLarge:     sandbox.CodeFileTooLarge,
	protocol.ReasonSize:         sandbox.CodeUploadSizeMismatch,
	protocol.ReasonQuota:        sandbox.CodeQuotaExceeded,
}

// faultError turns what the guest complains of into an error of this side.
func faultError(f *protocol.Fault) error {
	text := clean(f.Text)
	switch f.Reason {
	case protocol.ReasonNoProcess:
		return ErrNoProcess
	case protocol.ReasonRefused:
		return fmt.Errorf("%w: %s", ErrRefused, text)
	case protocol.ReasonConflict:
		return fmt.Errorf("%w: %s", ErrBound, text)
	}
	code, ok := codes[f.Reason]
	if !ok {
		return fmt.Errorf("guest: %s", text)
	}
	e := sandbox.NewError(code, "%s", text)
	switch f.Reason {
	case protocol.ReasonDenied:
		e = e.With("reason", "permission_denied")
	case protocol.ReasonTooLarge:
		e = e.With("maxBytes", f.Limit)
	case protocol.ReasonQuota:
		e = e.With("quota", clean(f.Detail))
		if f.Limit > 0 {
			e = e.With("limit", f.Limit).With("current", f.Current)
		}
	}
	return e
}

// clean makes text from the guest fit to be shown and logged.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	return s
}
