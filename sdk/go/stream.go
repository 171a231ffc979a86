package crownest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"
)

// reconnectDelays are the waits before each new connection of a stream. They
// start anew whenever the stream got ahead.
var reconnectDelays = []time.Duration{
	250 * time.Millisecond, 500 * time.Millisecond, 1000 * time.Millisecond,
	2000 * time.Millisecond, 4000 * time.Millisecond,
}

const (
	// streamIdle is how long a stream may be silent. The server sends a heartbeat
	// every 15 s; three missing ones mean that the connection is dead.
	streamIdle = 50 * time.Second
	// pollInterval is the wait between two looks at a command that is still active.
	pollInterval = 500 * time.Millisecond
)

// errStreamIdle ends a connection on which nothing arrived for too long.
var errStreamIdle = errors.New("the server went silent")

// CommandEvent is one event of a command's stream. Type is "log" (Seq, Stream
// and Data are set) or "terminal" (Command is the complete record).
type CommandEvent struct {
	Type      string
	Seq       int64
	Stream    string
	Data      string
	CreatedAt time.Time
	Command   *Command
}

// The types of a CommandEvent.
const (
	EventLog      = "log"
	EventTerminal = "terminal"
)

// eventCommand opens a stream that runs a command.
const eventCommand = "command"

// StreamOptions says where a stream of logs begins and what happens when it breaks.
type StreamOptions struct {
	// AfterSeq is the last seq already known; nil = from the oldest retained chunk.
	AfterSeq *int64
	// NoReconnect ends the sequence with an error when the connection breaks.
	NoReconnect bool
}

// StreamLogs yields a command's retained and live output and then its terminal
// event. A broken connection is renewed after the last event seen; the sequence
// ends with an error if the API answers with one, or if the connection cannot be
// renewed. Leaving the loop ends the request.
func (s *CommandsService) StreamLogs(ctx context.Context, commandID string, opts *StreamOptions) iter.Seq2[CommandEvent, error] {
	var o StreamOptions
	if opts != nil {
		o = *opts
	}
	return func(yield func(CommandEvent, error) bool) {
		after, attempt := o.AfterSeq, 0
		for {
			progress, done, err := s.followOnce(ctx, commandID, after, yield)
			if done {
				return
			}
			if progress != nil {
				after, attempt = progress, 0
			}
			var apiErr *APIError
			if o.NoReconnect || ctx.Err() != nil || errors.As(err, &apiErr) || errors.Is(err, errEventTooLarge) || attempt == len(s.c.reconnect) {
				yield(CommandEvent{}, fmt.Errorf("crownest: streaming command %s: %w", commandID, err))
				return
			}
			if sleep(ctx, s.c.reconnect[attempt]) != nil {
				yield(CommandEvent{}, fmt.Errorf("crownest: streaming command %s: %w", commandID, ctx.Err()))
				return
			}
			attempt++
		}
	}
}

// followOnce reads one connection. done says that the sequence is over;
// otherwise err says why the connection ended. progress is the last seq seen.
func (s *CommandsService) followOnce(ctx context.Context, id string, after *int64, yield func(CommandEvent, error) bool) (progress *int64, done bool, err error) {
	query := url.Values{}
	if after != nil {
		query.Set("afterSeq", strconv.FormatInt(*after, 10))
	}
	st, err := s.c.openStream(ctx, call{method: http.MethodGet, path: "/v1/commands/" + url.PathEscape(id) + "/stream", query: query})
	if err != nil {
		return nil, false, err
	}
	defer st.close()
	for {
		ev, err := st.next()
		if err != nil {
			return progress, false, err
		}
		switch ev.Type {
		case EventLog:
			if after != nil && ev.Seq <= *after {
				continue // a server that repeats itself must not double the output
			}
			seq := ev.Seq
			progress, after = &seq, &seq
			if !yield(ev, nil) {
				return progress, true, nil
			}
		case EventTerminal:
			yield(ev, nil)
			return progress, true, nil
		}
	}
}

// commandStream reads the events of one connection.
type commandStream struct {
	resp     *http.Response
	events   *eventReader
	watchdog *time.Timer
	cancel   context.CancelCauseFunc
	idle     time.Duration
	silent   atomic.Bool
}

// openStream opens an event stream. It is cut when nothing arrives for too long.
func (c *Client) openStream(ctx context.Context, rq call) (*commandStream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	rq.accept = "text/event-stream"
	resp, err := c.openRetry(ctx, rq) //nolint:bodyclose // the stream closes it
	if err != nil {
		cancel(nil)
		return nil, err
	}
	st := &commandStream{resp: resp, cancel: cancel, idle: c.idle}
	st.watchdog = time.AfterFunc(c.idle, func() {
		st.silent.Store(true)
		cancel(errStreamIdle)
	})
	st.events = newEventReader(&pulse{resp.Body, st})
	return st, nil
}

// pulse winds the watchdog up again whenever bytes arrive.
type pulse struct {
	r  io.Reader
	st *commandStream
}

func (p *pulse) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.st.watchdog.Reset(p.st.idle)
	}
	return n, err
}

func (st *commandStream) close() {
	st.watchdog.Stop()
	st.cancel(nil)
	_ = st.resp.Body.Close()
}

// next returns the next event that means something to a reader of commands: a
// heartbeat or an unknown type does not. An error event is an *APIError.
func (st *commandStream) next() (CommandEvent, error) {
	for {
		ev, err := st.events.next()
		if err != nil {
			if st.silent.Load() {
				err = errStreamIdle
			}
			if errors.Is(err, io.EOF) {
				err = errors.New("the stream ended before its final event")
			}
			return CommandEvent{}, err
		}
		var m struct {
			Type      string          `json:"type"`
			Seq       int64           `json:"seq"`
			Stream    string          `json:"stream"`
			Data      string          `json:"data"`
			CreatedAt time.Time       `json:"createdAt"`
			Code      string          `json:"code"`
			Message   string          `json:"message"`
			Details   map[string]any  `json:"details"`
			Command   json.RawMessage `json:"command"`
		}
		if err := json.Unmarshal(ev.data, &m); err != nil {
			return CommandEvent{}, fmt.Errorf("event of a stream: %w", err)
		}
		out := CommandEvent{Type: m.Type, Seq: m.Seq, Stream: m.Stream, Data: m.Data, CreatedAt: m.CreatedAt}
		switch m.Type {
		case EventLog:
			return out, nil
		case eventCommand, EventTerminal:
			out.Command = new(Command)
			if err := decode(m.Command, out.Command); err != nil {
				return CommandEvent{}, fmt.Errorf("%s event of a stream: %w", m.Type, err)
			}
			return out, nil
		case "error":
			return CommandEvent{}, &APIError{
				Code: m.Code, Message: m.Message, Details: m.Details,
				RequestID: st.resp.Header.Get("X-Request-Id"),
			}
		}
	}
}
