package cmdlog

import (
	"context"
	"io"

	"crownest.dev/crownest/internal/sandbox"
)

// Logs keeps the logs of all commands below one directory.
type Logs interface {
	// Append writes chunks whose Seq continues the log; chunks already there
	// (seq <= Last) are skipped, a hole is an error. When it returns nil the
	// chunks survive the end of the process. Above the limit per command the
	// oldest segments are dropped. One appender per command at a time.
	Append(ctx context.Context, commandID string, chunks []sandbox.LogChunk) error
	// Last is the highest seq appended, 0 if none; also right after a crash, when
	// a torn last record is cut off.
	Last(ctx context.Context, commandID string) (int64, error)
	// Seal says that no more will come; followers end after the last chunk. The
	// first MiB of each stream is returned, cut at a character boundary.
	Seal(ctx context.Context, commandID string) (Head, error)
	// Read returns up to limit chunks and at most maxBytes (but at least one chunk)
	// with seq > afterSeq; more says whether retained chunks follow. If the chunk
	// after an explicit afterSeq was dropped: *sandbox.Error stream_gap with
	// details.oldestSeq. afterSeq -1 = from the oldest retained.
	Read(ctx context.Context, commandID string, afterSeq int64, limit int, maxBytes int) (chunks []sandbox.LogChunk, more bool, err error)
	// Follow calls fn for every chunk with seq > afterSeq (-1 = oldest), those
	// retained and those still to come, until the log is sealed, ctx ends or fn
	// fails. A follower that is overtaken by retention gets stream_gap.
	Follow(ctx context.Context, commandID string, afterSeq int64, fn func([]sandbox.LogChunk) error) error
	// Size is the number of retained bytes of the chosen streams.
	Size(ctx context.Context, commandID string, stdout, stderr bool) (int64, error)
	// Open reads the retained bytes of the chosen streams in order of arrival, as
	// of the moment of opening; offset and length select a range (length -1 = all).
	Open(ctx context.Context, commandID string, stdout, stderr bool, offset, length int64) (io.ReadCloser, error)
	// Drop removes a log for good. No log is no error.
	Drop(ctx context.Context, commandID string) error
	// IDs walks all command ids that have a log on disk, for collection of what no
	// record knows.
	IDs(ctx context.Context, fn func(commandID string) error) error
	Close() error
}

// Head is the beginning of a command's output.
type Head struct {
	Stdout, Stderr                   string
	StdoutTruncated, StderrTruncated bool
	StdoutBytes, StderrBytes         int64 // all that was ever written
}
