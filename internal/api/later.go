package api

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// timing holds the times that the API keeps; tests shorten them.
type timing struct {
	answerBy  time.Duration // when an answer begins without its body
	keepAlive time.Duration // how often a space is sent then
	heartbeat time.Duration // on event streams
	keyCheck  time.Duration // how often an open stream looks whether its key is revoked
	read      time.Duration // for a JSON body, and for each part of an upload
	write     time.Duration // for each write to a client
}

var contractTiming = timing{
	answerBy:  20 * time.Second,
	keepAlive: 15 * time.Second,
	heartbeat: 15 * time.Second,
	keyCheck:  2 * time.Second,
	read:      30 * time.Second,
	write:     30 * time.Second,
}

// later answers with what wait returns, in the manner of contract section 1.4: if
// it takes long, status and header go out first and spaces keep the line alive.
// Nothing that happens to the client ends the wait; done is called with the body
// before it is written.
func (s *Server) later(ctx context.Context, rq *request, wait func(ctx context.Context) (any, error), done func(body []byte)) {
	patience := s.timing.answerBy
	gone := false
	for {
		out, err := waitFor(ctx, patience, wait)
		if err == nil {
			body := encodeJSON(out)
			done(body)
			switch {
			case gone:
			case rq.w.wrote:
				rq.writeDeadline()
				_, _ = rq.w.Write(body)
			default:
				s.writeJSON(rq, http.StatusOK, body)
			}
			return
		}
		if !errors.Is(err, errPatience) {
			s.writeError(rq, err)
			return
		}
		patience = s.timing.keepAlive
		if !gone {
			gone = keepAlive(rq) != nil
		}
	}
}

// errPatience says that a wait has not ended yet.
var errPatience = errors.New("not yet")

// waitFor calls wait for at most d.
func waitFor(ctx context.Context, d time.Duration, wait func(ctx context.Context) (any, error)) (any, error) {
	short, cancel := context.WithTimeoutCause(ctx, d, errPatience)
	defer cancel()
	out, err := wait(short)
	if err != nil && ctx.Err() == nil && context.Cause(short) == errPatience { //nolint:errorlint // the very value
		return nil, errPatience
	}
	return out, err
}

// keepAlive begins the answer, or sends a space of one that has begun.
func keepAlive(rq *request) error {
	rc := http.NewResponseController(rq.w)
	rq.writeDeadline()
	if !rq.w.wrote {
		h := rq.w.Header()
		h.Set("Content-Type", "application/json; charset=utf-8")
		h.Set("X-Accel-Buffering", "no")
		rq.w.WriteHeader(http.StatusOK)
		return rc.Flush()
	}
	if _, err := rq.w.Write([]byte{' '}); err != nil {
		return err
	}
	return rc.Flush()
}
