package guest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"crownest.dev/crownest/internal/guest/protocol"
	"crownest.dev/crownest/internal/sandbox"
)

// maxBatch bounds the bytes that one call of a sink gets.
const maxBatch = 256 << 10

// Start implements Session. The guest sends the output from the start without being
// asked again, so a Process that nobody reads holds one of the session's streams
// until the session ends. A repeated Start takes the output over from whoever reads
// it.
func (c *Client) Start(ctx context.Context, r StartRequest) (Process, error) {
	k, err := c.open(ctx, protocol.OpStart, &protocol.Start{
		ID: r.ID, Command: r.Command, Cwd: r.Cwd, Env: r.Env, Timeout: r.Timeout, Grace: r.TimeoutGrace,
	}, false)
	if err != nil {
		return nil, doing("start the command", err)
	}
	f, err := k.receive()
	if err == nil {
		err = k.decode(f.Data, nil)
		if err == nil && f.End {
			err = c.violated(errors.New("a command that is over as soon as it started"))
		}
		f.Release()
	}
	if err != nil {
		k.close()
		return nil, doing("start the command", err)
	}
	if !k.stop() {
		k.close()
		return nil, context.Cause(ctx)
	}
	// The guest goes on with the output on the same stream: a short command costs
	// one round trip.
	return &remoteProcess{c: c, id: r.ID, first: k}, nil
}

// Attach implements Session.
func (c *Client) Attach(ctx context.Context, id string) (Process, error) {
	all, err := c.Processes(ctx)
	if err != nil {
		return nil, doing("attach to the command", err)
	}
	for _, p := range all {
		if p.ID == id {
			return &remoteProcess{c: c, id: id}, nil
		}
	}
	return nil, fmt.Errorf("attach to the command: %w", ErrNoProcess)
}

// Processes implements Session.
func (c *Client) Processes(ctx context.Context) ([]ProcessStatus, error) {
	k, err := c.open(ctx, protocol.OpProcesses, nil, true)
	if err != nil {
		return nil, doing("list the commands", err)
	}
	defer k.close()
	var all []ProcessStatus
	for {
		f, err := k.receive()
		if err != nil {
			return nil, doing("list the commands", err)
		}
		if f.End {
			err := k.decode(f.Data, nil)
			f.Release()
			return all, doing("list the commands", err)
		}
		var p protocol.Process
		err = protocol.Decode(f.Data, &p)
		f.Release()
		if err != nil {
			return nil, c.violated(err)
		}
		if len(all) == protocol.MaxProcesses {
			return nil, c.violated(errors.New("too many commands in a list"))
		}
		all = append(all, ProcessStatus{ID: p.ID, Running: p.Running, NextSeq: p.NextSeq})
	}
}

// Kill implements Session.
func (c *Client) Kill(ctx context.Context, id string, grace time.Duration, cause Cause) error {
	m := &protocol.Kill{ID: id, Grace: grace, Cause: protocol.CauseCanceled}
	if cause == CauseTimeout {
		m.Cause = protocol.CauseTimeout
	}
	return doing("end the command", c.unary(ctx, protocol.OpKill, m, nil))
}

// Forget implements Session.
func (c *Client) Forget(ctx context.Context, id string) error {
	return doing("forget the command", c.unary(ctx, protocol.OpForget, &protocol.Forget{ID: id}, nil))
}

// remoteProcess is a command in the sandbox.
type remoteProcess struct {
	c  *Client
	id string

	mu    sync.Mutex
	first *call // the stream of Start, until a reader takes it
}

// ID implements Process.
func (p *remoteProcess) ID() string { return p.id }

// reader returns a call that delivers the output after a seq.
func (p *remoteProcess) reader(ctx context.Context, afterSeq int64) (*call, error) {
	p.mu.Lock()
	first := p.first
	p.first = nil
	p.mu.Unlock()
	if first != nil {
		if afterSeq == 0 {
			first.within(ctx)
			return first, nil
		}
		first.close()
	}
	return p.c.open(ctx, protocol.OpOutput, &protocol.Output{ID: p.id, After: afterSeq}, false)
}

// Output implements Process.
func (p *remoteProcess) Output(ctx context.Context, afterSeq int64, sink func([]sandbox.LogChunk) error) (Exit, error) {
	k, err := p.reader(ctx, afterSeq)
	if err != nil {
		return Exit{}, doing("read the output", err)
	}
	defer k.close()
	in := intake{p: p, k: k, next: afterSeq + 1}
	for {
		exit, err := in.batch()
		if err != nil {
			in.release()
			return Exit{}, doing("read the output", err)
		}
		var sinkErr error
		if len(in.chunks) > 0 {
			sinkErr = sink(in.chunks)
		}
		in.release()
		if sinkErr != nil {
			return Exit{}, sinkErr
		}
		if exit != nil {
			// The answer is in hand already: a lost acknowledgement costs memory in the
			// sandbox until Forget, nothing else.
			_ = k.SendEnd(protocol.Encode(&protocol.Ack{Seq: in.next - 1}))
			return *exit, nil
		}
		if err := k.Send(protocol.Encode(&protocol.Ack{Seq: in.next - 1})); err != nil {
			return Exit{}, doing("acknowledge the output", k.failed(err))
		}
	}
}

// intake gathers output into batches and checks what the guest says about it.
type intake struct {
	p      *remoteProcess
	k      *call
	next   int64
	chunks []sandbox.LogChunk
	frames []protocol.Frame
}

func (in *intake) release() {
	for i := range in.frames {
		in.frames[i].Release()
	}
	clear(in.chunks)
	in.frames, in.chunks = in.frames[:0], in.chunks[:0]
}

// batch waits for output and takes what is there. It returns how the command
// ended if nothing follows.
func (in *intake) batch() (*Exit, error) {
	size := 0
	f, err := in.k.receive()
	if err != nil {
		return nil, err
	}
	for {
		if f.End {
			exit, err := in.exit(f.Data)
			f.Release()
			return exit, err
		}
		in.frames = append(in.frames, f)
		head, data, err := protocol.SplitChunk(f.Data)
		if err != nil {
			return nil, in.p.c.violated(err)
		}
		if head.Seq != in.next {
			return nil, in.p.c.violated(fmt.Errorf("chunk %d where %d was due", head.Seq, in.next))
		}
		in.next++
		stream := sandbox.Stdout
		if head.Stderr {
			stream = sandbox.Stderr
		}
		in.chunks = append(in.chunks, sandbox.LogChunk{
			CommandID: in.p.id, Seq: head.Seq, Stream: stream, Data: data, CreatedAt: in.p.c.believe(head.At.Std()),
		})
		if size += len(data); size >= maxBatch {
			return nil, nil
		}
		var more bool
		if f, more = in.k.TryReceive(); !more {
			return nil, nil
		}
	}
}

// exit reads how the command ended.
func (in *intake) exit(b []byte) (*Exit, error) {
	var x protocol.Exit
	if err := in.k.decode(b, &x); err != nil {
		return nil, err
	}
	if x.LastSeq != in.next-1 {
		return nil, in.p.c.violated(fmt.Errorf("output ends at %d after chunk %d", x.LastSeq, in.next-1))
	}
	exit := &Exit{Cause: CauseExited, Code: x.Code, Signal: x.Signal, Killed: x.Killed}
	switch x.Cause {
	case protocol.CauseTimeout:
		exit.Cause = CauseTimeout
	case protocol.CauseCanceled:
		exit.Cause = CauseCanceled
	}
	exit.Start, exit.End = in.p.c.believe(x.Start.Std()), in.p.c.believe(x.End.Std())
	if exit.End.Before(exit.Start) {
		exit.End = exit.Start
	}
	return exit, nil
}

// maxAge is how far back a time from the guest is believed.
const maxAge = 31 * 24 * time.Hour

// believe holds a time from the guest to what is possible.
func (c *Client) believe(t time.Time) time.Time {
	now := c.now()
	if t.After(now) || now.Sub(t) > maxAge {
		return now
	}
	return t
}
