package api

import (
	"context"
	"time"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
)

const mediaEvents = "text/event-stream"

// The events of a command's stream; the document shows them as one of these.
type (
	wireCommandStartedEvent struct {
		Type      string      `json:"type" enum:"command"`
		Command   wireCommand `json:"command"`
		CreatedAt string      `json:"createdAt" format:"date-time"`
	}
	wireLogEvent struct {
		Type      string `json:"type" enum:"log"`
		Seq       int64  `json:"seq"`
		Stream    string `json:"stream" enum:"stdout,stderr"`
		Data      string `json:"data"`
		CreatedAt string `json:"createdAt" format:"date-time"`
	}
	wireHeartbeatEvent struct {
		Type      string `json:"type" enum:"heartbeat"`
		CreatedAt string `json:"createdAt" format:"date-time"`
	}
	wireTerminalEvent struct {
		Type      string      `json:"type" enum:"terminal"`
		Command   wireCommand `json:"command"`
		CreatedAt string      `json:"createdAt" format:"date-time"`
	}
	wireErrorEvent struct {
		Type      string         `json:"type" enum:"error"`
		Code      string         `json:"code"`
		Message   string         `json:"message"`
		Details   map[string]any `json:"details,omitempty"`
		CreatedAt string         `json:"createdAt" format:"date-time"`
	}

	// wireCommandEvent and wireCreateCommandEvent stand for one of the above.
	wireCommandEvent       struct{}
	wireCreateCommandEvent struct{}
)

func stamp() string { return timestamp(time.Now()) }

func commandEvent(c sandbox.Command) wireCommandStartedEvent {
	return wireCommandStartedEvent{"command", toCommand(c, false), stamp()}
}

// terminalEvent carries the whole command, cut to what fits into one line.
func terminalEvent(c sandbox.Command) wireTerminalEvent {
	e := wireTerminalEvent{"terminal", toCommand(c, true), stamp()}
	const around = 128 // type, time and braces
	e.Command.fit(maxLine - around)
	return e
}

// appendLogEvent adds the JSON of a log event; it is written by hand because
// every byte of output goes this way.
func appendLogEvent(dst []byte, c *sandbox.LogChunk) []byte {
	dst = append(dst, `{"type":"log","seq":`...)
	dst = appendInt(dst, c.Seq)
	dst = append(dst, `,"stream":"`...)
	dst = append(dst, c.Stream...)
	dst = append(dst, `","data":`...)
	dst = appendQuoted(dst, c.Data)
	dst = append(dst, `,"createdAt":"`...)
	dst = c.CreatedAt.UTC().AppendFormat(dst, timeLayout)
	return append(dst, `"}`...)
}

// streamCommand follows a command from a position on.
func (s *Server) streamCommand(_ context.Context, rq *request) error {
	ctx, cancel := s.streamContext(rq)
	defer cancel()
	events, err := s.control.StreamCommand(ctx, rq.call, rq.path(pCommand), rq.afterSeq())
	if err != nil {
		return err
	}
	es, err := openStream(rq)
	if err != nil {
		return nil // the client is gone
	}
	s.pump(ctx, rq, es, events, nil)
	return nil
}

// streamRun follows a command that was just started. If the client goes, the end
// is still awaited where somebody may ask for it again.
func (s *Server) streamRun(ctx context.Context, rq *request, c *claim, cmd sandbox.Command) {
	defer func() {
		if c.namespace == "" || c.settled {
			return
		}
		if _, err := s.control.WaitCommand(ctx, rq.call, cmd.ID); err == nil {
			c.finishRun(rq, cmd.ID)
		}
	}()
	es, err := openStream(rq)
	if err != nil {
		return
	}
	es.json(commandEvent(cmd))
	if es.flush() != nil {
		return
	}
	sctx, cancel := s.streamContext(rq)
	defer cancel()
	events, err := s.control.StreamCommand(sctx, rq.call, cmd.ID, nil)
	if err != nil {
		es.fail(s, err)
		_ = es.flush()
		return
	}
	s.pump(sctx, rq, es, events, func() { c.finishRun(rq, cmd.ID) })
}

// streamContext ends with the client's connection or the server.
func (s *Server) streamContext(rq *request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(rq.r.Context())
	stop := context.AfterFunc(s.base, cancel)
	return ctx, func() { stop(); cancel() }
}

// pump moves events to the client until the final one, until the client or the
// server goes, or until the key is revoked. atEnd is called before the terminal
// event is sent.
func (s *Server) pump(ctx context.Context, rq *request, es *eventStream, events <-chan control.StreamEvent, atEnd func()) {
	heartbeat := time.NewTicker(s.timing.heartbeat)
	defer heartbeat.Stop()
	keyCheck := time.NewTicker(s.timing.keyCheck)
	defer keyCheck.Stop()
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				return
			}
			final := s.putEvent(es, ev, atEnd)
			for more := true; more && !final && len(es.buf) < flushAt; {
				select {
				case ev, ok := <-events:
					if !ok {
						_ = es.flush()
						return
					}
					final = s.putEvent(es, ev, atEnd)
				default:
					more = false
				}
			}
			if es.flush() != nil || final {
				return
			}
		case <-heartbeat.C:
			es.json(wireHeartbeatEvent{"heartbeat", stamp()})
			if es.flush() != nil {
				return
			}
		case <-keyCheck.C:
			if !s.stillLive(ctx, rq) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// putEvent adds an event and reports whether it was the final one.
func (s *Server) putEvent(es *eventStream, ev control.StreamEvent, atEnd func()) (final bool) {
	switch {
	case ev.Log != nil:
		es.log(ev.Log)
		return false
	case ev.Terminal != nil:
		if atEnd != nil {
			atEnd()
		}
		es.json(terminalEvent(*ev.Terminal))
	case ev.Err != nil:
		es.fail(s, ev.Err)
	}
	return true
}

// log adds a log event.
func (e *eventStream) log(c *sandbox.LogChunk) {
	e.buf = append(e.buf, "id: "...)
	e.buf = appendInt(e.buf, c.Seq)
	e.buf = append(e.buf, "\ndata: "...)
	e.buf = appendLogEvent(e.buf, c)
	e.buf = append(e.buf, '\n', '\n')
}

// fail adds the error event that ends a stream.
func (e *eventStream) fail(s *Server, err error) {
	status, body := envelope(err, e.rq.id)
	s.noteError(e.rq, status, err)
	ev := wireErrorEvent{Type: "error", Code: body.Error.Code, Message: body.Error.Message, Details: body.Error.Details, CreatedAt: stamp()}
	e.json(ev)
}
