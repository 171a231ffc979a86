package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"crownest.dev/crownest/internal/sandbox"
)

// logPageBytes ends a page early, so that one page stays small enough to send: it
// counts what the text takes as JSON, which can be six times the bytes of a log.
const logPageBytes = 4 << 20

// cutPage shortens chunks to those that fit into a page, at least one.
func cutPage(chunks []sandbox.LogChunk) []sandbox.LogChunk {
	size := 0
	for i, c := range chunks {
		for rest := c.Data; len(rest) > 0; {
			r, n := utf8.DecodeRune(rest)
			switch {
			case r == utf8.RuneError && n == 1, r < 0x20 && r != '\n' && r != '\r' && r != '\t', r == 0x7f, r == 0x85, r == 0x2028, r == 0x2029:
				size += 6
			case r < 0x20, r == '"', r == '\\':
				size += 2
			default:
				size += n
			}
			rest = rest[n:]
		}
		if size > logPageBytes && i > 0 {
			return chunks[:i]
		}
	}
	return chunks
}

// CommandLogs returns one page of a command's output.
func (s *Service) CommandLogs(ctx context.Context, c Call, id string, afterSeq *int64, limit int) (LogPage, error) {
	if _, err := s.Command(ctx, c, id); err != nil {
		return LogPage{}, err
	}
	after := int64(-1)
	if afterSeq != nil {
		after = min(*afterSeq, maxSeq)
	}
	chunks, more, err := s.logs.Read(ctx, id, after, limit, logPageBytes)
	if err != nil {
		return LogPage{}, fmt.Errorf("reading the log of %s: %w", id, err)
	}
	if kept := cutPage(chunks); len(kept) < len(chunks) {
		chunks, more = kept, true
	}
	page := LogPage{Chunks: chunks, HasMore: more, NextSeq: max(after, 0)}
	if n := len(chunks); n > 0 {
		page.NextSeq = chunks[n-1].Seq
	}
	return page, nil
}

// maxSeq is above every sequence number, with room to count on.
const maxSeq = 1 << 62

// streamBuffer is how many events a slow reader may lag behind in memory; the
// log itself is its real buffer.
const streamBuffer = 16

// StreamCommand delivers a command's output and its end; see api.Control.
func (s *Service) StreamCommand(ctx context.Context, c Call, id string, afterSeq *int64) (<-chan StreamEvent, error) {
	cmd, err := s.Command(ctx, c, id)
	if err != nil {
		return nil, err
	}
	after := int64(-1)
	if afterSeq != nil {
		after = min(*afterSeq, maxSeq)
		// A gap known now is an answer; one that opens later is an event.
		if _, _, err := s.logs.Read(ctx, id, after, 1, 1); err != nil {
			return nil, fmt.Errorf("reading the log of %s: %w", id, err)
		}
	}
	events := make(chan StreamEvent, streamBuffer)
	send := func(e StreamEvent) error {
		select {
		case events <- e:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return errStopping
		}
	}
	ok := s.spawn(func(sctx context.Context) {
		defer close(events)
		fctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(sctx, cancel)()
		err := s.followLog(fctx, c, cmd, after, send)
		if err != nil && ctx.Err() == nil && sctx.Err() == nil {
			_ = send(StreamEvent{Err: err})
		}
	})
	if !ok {
		return nil, errStopping
	}
	return events, nil
}

func (s *Service) followLog(ctx context.Context, c Call, cmd sandbox.Command, after int64, send func(StreamEvent) error) error {
	err := s.logs.Follow(ctx, cmd.ID, after, func(chunks []sandbox.LogChunk) error {
		for i := range chunks {
			if err := send(StreamEvent{Log: &chunks[i]}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	end, err := s.WaitCommand(ctx, c, cmd.ID)
	if err != nil {
		return err
	}
	return send(StreamEvent{Terminal: &end})
}

// CommandLogContent opens the exact bytes of a log for download.
func (s *Service) CommandLogContent(ctx context.Context, c Call, id string, which LogSelection) (Content, error) {
	if _, err := s.Command(ctx, c, id); err != nil {
		return Content{}, err
	}
	stdout, stderr := which != LogStderr, which != LogStdout
	size, err := s.logs.Size(ctx, id, stdout, stderr)
	if err != nil {
		return Content{}, fmt.Errorf("measuring the log of %s: %w", id, err)
	}
	name := id + ".log"
	if which != LogBoth {
		name = id + "." + string(which) + ".log"
	}
	return Content{
		Name: name, ContentType: "application/octet-stream", Size: size,
		OpenRange: func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
			if length < 0 {
				length = size - offset // what arrives later is not part of this download
			}
			return s.logs.Open(ctx, id, stdout, stderr, offset, length)
		},
		Close: func() error { return nil },
	}, nil
}

// answered returns the answer for the client that err carries: what was asked
// cannot be done, as opposed to trouble on the way. nil if there is none.
func answered(err error) *sandbox.Error {
	var e *sandbox.Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}
