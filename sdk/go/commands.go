package crownest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
)

// CommandsService runs commands and reads what they put out.
type CommandsService struct{ c *Client }

// SandboxCommands is CommandsService for one sandbox.
type SandboxCommands struct {
	s         *CommandsService
	sandboxID string
}

// CollectItem names a file to be kept as an artifact when the command has ended.
// Name defaults to the last element of Path.
type CollectItem struct {
	Path string `json:"path"`
	Name string `json:"name,omitempty"`
}

// RunOptions says how a command is run. The callbacks are called one at a time,
// in the order of the output, before Run returns.
type RunOptions struct {
	Cwd       string
	Env       map[string]string
	TimeoutMs int64
	Collect   []CollectItem
	// CollectOn is "success" (default: only after exit code 0) or "always".
	CollectOn      string
	IdempotencyKey string

	// OnStart is called once, as soon as the command's id is known.
	OnStart func(*Command)
	// OnStdout and OnStderr get the output while it is produced.
	OnStdout func(string)
	OnStderr func(string)
	// OnStreamError is told why live output ended early, a panicking callback
	// included. The run itself goes on and Run still returns its result.
	OnStreamError func(error)
}

func (o *RunOptions) live() bool {
	return o.OnStart != nil || o.OnStdout != nil || o.OnStderr != nil || o.OnStreamError != nil
}

// StartOptions says how a command is started. TimeoutMs 0 means that only the
// end of the sandbox bounds it.
type StartOptions struct {
	Cwd            string
	Env            map[string]string
	TimeoutMs      int64
	IdempotencyKey string
}

// CancelOptions says how a command is canceled.
type CancelOptions struct {
	// Mode is "graceful" (default: SIGTERM, SIGKILL after ten seconds) or "force".
	Mode           string
	IdempotencyKey string
}

// LogsOptions selects one page of a log.
type LogsOptions struct {
	AfterSeq *int64
	Limit    int
}

// LogPage is one page of a log. NextSeq is what to ask for next, if HasMore.
type LogPage struct {
	Data    []LogChunk
	HasMore bool
	NextSeq int64
}

type commandBody struct {
	Command     string            `json:"command"`
	Cwd         string            `json:"cwd,omitempty"`
	Env         map[string]string `json:"env,omitempty"`
	TimeoutMs   int64             `json:"timeoutMs,omitempty"`
	Collect     []CollectItem     `json:"collect,omitempty"`
	CollectOn   string            `json:"collectOn,omitempty"`
	RequireRead bool              `json:"_crownestRequireCommandRead,omitempty"`
}

func commandPath(id string) string { return "/v1/commands/" + url.PathEscape(id) }

// Run runs a command to its end. A command that fails is not an error: look at
// Status and ExitCode. Ending ctx does not end the command; Cancel does.
func (s *CommandsService) Run(ctx context.Context, sandboxID, command string, opts *RunOptions) (*Command, error) {
	var o RunOptions
	if opts != nil {
		o = *opts
	}
	if o.IdempotencyKey == "" {
		o.IdempotencyKey = newUUID()
	}
	body := commandBody{
		Command: command, Cwd: o.Cwd, Env: o.Env, TimeoutMs: o.TimeoutMs,
		Collect: o.Collect, CollectOn: o.CollectOn,
	}
	if !o.live() {
		return s.post(ctx, sandboxID, "/commands/run", body, o.IdempotencyKey)
	}
	return s.runLive(ctx, sandboxID, body, &o)
}

// Start starts a command and returns without waiting for its end. Its output is
// there for StreamLogs and Logs.
func (s *CommandsService) Start(ctx context.Context, sandboxID, command string, opts *StartOptions) (*Command, error) {
	var o StartOptions
	if opts != nil {
		o = *opts
	}
	body := commandBody{Command: command, Cwd: o.Cwd, Env: o.Env, TimeoutMs: o.TimeoutMs}
	return s.post(ctx, sandboxID, "/commands/start", body, o.IdempotencyKey)
}

// Get returns a command.
func (s *CommandsService) Get(ctx context.Context, id string) (*Command, error) {
	cmd := new(Command)
	if err := s.c.do(ctx, call{method: http.MethodGet, path: commandPath(id)}, "command", cmd); err != nil {
		return nil, err
	}
	return cmd, nil
}

// List returns the commands of a sandbox without their output, newest first.
func (s *CommandsService) List(ctx context.Context, sandboxID string) ([]Command, error) {
	return collect(s.All(ctx, sandboxID))
}

// All yields the commands of a sandbox without their output, newest first.
func (s *CommandsService) All(ctx context.Context, sandboxID string) iter.Seq2[Command, error] {
	return all[Command](ctx, s.c, sandboxPath(sandboxID)+"/commands", nil)
}

// Cancel ends a command and returns it when it has ended.
func (s *CommandsService) Cancel(ctx context.Context, id string, opts *CancelOptions) (*Command, error) {
	var o CancelOptions
	if opts != nil {
		o = *opts
	}
	body := struct {
		Mode string `json:"mode,omitempty"`
	}{o.Mode}
	cmd := new(Command)
	rq := call{method: http.MethodPost, path: commandPath(id) + "/cancel", body: body, key: o.IdempotencyKey}
	if err := s.c.do(ctx, rq, "command", cmd); err != nil {
		return nil, err
	}
	return cmd, nil
}

// Logs returns one page of a command's output.
func (s *CommandsService) Logs(ctx context.Context, id string, opts *LogsOptions) (*LogPage, error) {
	var o LogsOptions
	if opts != nil {
		o = *opts
	}
	q := pageQuery(o.Limit)
	if o.AfterSeq != nil {
		q.Set("afterSeq", strconv.FormatInt(*o.AfterSeq, 10))
	}
	var page struct {
		Data    []LogChunk `json:"data"`
		HasMore bool       `json:"hasMore"`
		NextSeq int64      `json:"nextSeq"`
	}
	if err := s.c.do(ctx, call{method: http.MethodGet, path: commandPath(id) + "/logs", query: q}, "", &page); err != nil {
		return nil, err
	}
	return &LogPage{Data: page.Data, HasMore: page.HasMore, NextSeq: page.NextSeq}, nil
}

// AllLogs yields what is retained of a command's output after a seq (nil = from
// the oldest chunk) without waiting for more.
func (s *CommandsService) AllLogs(ctx context.Context, id string, afterSeq *int64) iter.Seq2[LogChunk, error] {
	return func(yield func(LogChunk, error) bool) {
		for {
			page, err := s.Logs(ctx, id, &LogsOptions{AfterSeq: afterSeq, Limit: 500})
			if err != nil {
				yield(LogChunk{}, err)
				return
			}
			for _, chunk := range page.Data {
				if !yield(chunk, nil) {
					return
				}
			}
			if !page.HasMore || len(page.Data) == 0 {
				return
			}
			next := page.Data[len(page.Data)-1].Seq
			afterSeq = &next
		}
	}
}

// LogsDownloadURL returns a URL for the exact bytes of a log. stream is "stdout",
// "stderr" or "both" (or empty), in the order of arrival.
func (s *CommandsService) LogsDownloadURL(ctx context.Context, id, stream string) (*DownloadURL, error) {
	q := url.Values{}
	if stream != "" {
		q.Set("stream", stream)
	}
	u := new(DownloadURL)
	rq := call{method: http.MethodPost, path: commandPath(id) + "/logs/download-url", query: q}
	if err := s.c.do(ctx, rq, "", u); err != nil {
		return nil, err
	}
	return u, nil
}

// DownloadLogs copies the exact bytes of a log to w.
func (s *CommandsService) DownloadLogs(ctx context.Context, id, stream string, w io.Writer) (int64, error) {
	u, err := s.LogsDownloadURL(ctx, id, stream)
	if err != nil {
		return 0, err
	}
	return s.c.download(ctx, u, w, nil)
}

func (s *CommandsService) post(ctx context.Context, sandboxID, route string, body commandBody, key string) (*Command, error) {
	cmd := new(Command)
	rq := call{method: http.MethodPost, path: sandboxPath(sandboxID) + route, body: body, key: key}
	if err := s.c.do(ctx, rq, "command", cmd); err != nil {
		return nil, err
	}
	return cmd, nil
}

// runLive runs a command with callbacks: over POST S/commands where the server
// has it, else with the routes that every server has.
func (s *CommandsService) runLive(ctx context.Context, sandboxID string, body commandBody, o *RunOptions) (*Command, error) {
	l := &listener{o: o}
	cmd, err := s.runStream(ctx, sandboxID, body, l)
	var apiErr *APIError
	if errors.As(err, &apiErr) && !l.started && (apiErr.Status == http.StatusNotFound || apiErr.Status == http.StatusMethodNotAllowed) {
		return s.runBaseline(ctx, sandboxID, body, l)
	}
	return cmd, err
}

// runStream is one POST S/commands. When its connection breaks, the command is
// followed by its own stream from the last event seen.
func (s *CommandsService) runStream(ctx context.Context, sandboxID string, body commandBody, l *listener) (*Command, error) {
	rq := call{method: http.MethodPost, path: sandboxPath(sandboxID) + "/commands", body: body, key: l.o.IdempotencyKey}
	for attempt := 0; ; attempt++ {
		cmd, err := s.runStreamOnce(ctx, rq, l)
		if cmd != nil || ctx.Err() != nil {
			return cmd, err
		}
		if l.id != "" {
			return s.follow(ctx, l)
		}
		var apiErr *APIError
		if errors.As(err, &apiErr) && apiErr.Code == "idempotency_request_in_progress" {
			// An earlier attempt of this very call got through: join its command.
			if id, ok := apiErr.Details["resourceId"].(string); ok && id != "" {
				l.start(&Command{ID: id, SandboxID: sandboxID, Command: body.Command, Status: CommandQueued})
				return s.follow(ctx, l)
			}
		} else if apiErr != nil {
			return nil, err
		}
		if attempt == len(s.c.reconnect) || sleep(ctx, s.c.reconnect[attempt]) != nil {
			return nil, err
		}
	}
}

// runStreamOnce reads one connection; cmd is nil unless the final event came.
func (s *CommandsService) runStreamOnce(ctx context.Context, rq call, l *listener) (*Command, error) {
	st, err := s.c.openStream(ctx, rq)
	if err != nil {
		return nil, err
	}
	defer st.close()
	// A replayed answer holds the final events only; the output between them is
	// in the log.
	replayed := st.resp.Header.Get("Idempotent-Replayed") == "true"
	for {
		ev, err := st.next()
		if err != nil {
			return nil, err
		}
		switch ev.Type {
		case eventCommand:
			l.start(ev.Command)
		case EventLog:
			l.log(ev)
		case EventTerminal:
			if replayed {
				s.replayLogs(ctx, l)
			}
			return ev.Command, nil
		}
	}
}

// runBaseline runs a command with start, stream and poll or, where files are to
// be collected, with run and a replay of the log.
func (s *CommandsService) runBaseline(ctx context.Context, sandboxID string, body commandBody, l *listener) (*Command, error) {
	if len(body.Collect) > 0 {
		cmd, err := s.post(ctx, sandboxID, "/commands/run", body, l.o.IdempotencyKey)
		if err != nil {
			return nil, err
		}
		l.start(cmd)
		s.replayLogs(ctx, l)
		return cmd, nil
	}
	body.CollectOn = ""
	if body.TimeoutMs == 0 {
		body.TimeoutMs = 60_000
	}
	body.RequireRead = true
	cmd, err := s.post(ctx, sandboxID, "/commands/start", body, l.o.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	l.start(cmd)
	return s.follow(ctx, l)
}

// follow delivers the rest of the output and waits for the end. If the stream is
// lost for good, the result is still waited for.
func (s *CommandsService) follow(ctx context.Context, l *listener) (*Command, error) {
	for ev, err := range s.StreamLogs(ctx, l.id, &StreamOptions{AfterSeq: l.after}) {
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			l.fail(err)
			break
		}
		if ev.Type == EventTerminal {
			return ev.Command, nil
		}
		l.log(ev)
	}
	for {
		cmd, err := s.Get(ctx, l.id)
		if err != nil {
			return nil, err
		}
		if cmd.Status.Terminal() {
			return cmd, nil
		}
		if err := sleep(ctx, s.c.poll); err != nil {
			return nil, fmt.Errorf("crownest: waiting for command %s: %w", l.id, err)
		}
	}
}

// replayLogs delivers the output of a command that has ended.
func (s *CommandsService) replayLogs(ctx context.Context, l *listener) {
	for chunk, err := range s.AllLogs(ctx, l.id, l.after) {
		if err != nil {
			l.fail(err)
			return
		}
		l.log(CommandEvent{Type: EventLog, Seq: chunk.Seq, Stream: chunk.Stream, Data: chunk.Data, CreatedAt: chunk.CreatedAt})
	}
}

// listener hands events to the callbacks of one run.
type listener struct {
	o       *RunOptions
	id      string
	after   *int64
	started bool
	dead    bool // a callback panicked: none is called any more
}

func (l *listener) start(cmd *Command) {
	if l.started {
		return
	}
	l.started, l.id = true, cmd.ID
	if l.o.OnStart != nil {
		l.guard(func() { l.o.OnStart(cmd) })
	}
}

func (l *listener) log(ev CommandEvent) {
	if l.after != nil && ev.Seq <= *l.after {
		return
	}
	seq := ev.Seq
	l.after = &seq
	switch {
	case ev.Stream == Stdout && l.o.OnStdout != nil:
		l.guard(func() { l.o.OnStdout(ev.Data) })
	case ev.Stream == Stderr && l.o.OnStderr != nil:
		l.guard(func() { l.o.OnStderr(ev.Data) })
	}
}

// guard keeps a panicking callback from failing the run.
func (l *listener) guard(call func()) {
	if l.dead {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			l.dead = true
			l.fail(fmt.Errorf("crownest: callback panicked: %v", p))
		}
	}()
	call()
}

func (l *listener) fail(err error) {
	if l.o.OnStreamError != nil {
		l.o.OnStreamError(err)
	}
}

// Run runs a command in this sandbox to its end.
func (h *SandboxCommands) Run(ctx context.Context, command string, opts *RunOptions) (*Command, error) {
	return h.s.Run(ctx, h.sandboxID, command, opts)
}

// Start starts a command in this sandbox.
func (h *SandboxCommands) Start(ctx context.Context, command string, opts *StartOptions) (*Command, error) {
	return h.s.Start(ctx, h.sandboxID, command, opts)
}

// List returns the commands of this sandbox, newest first.
func (h *SandboxCommands) List(ctx context.Context) ([]Command, error) {
	return h.s.List(ctx, h.sandboxID)
}

// Cancel ends a command.
func (h *SandboxCommands) Cancel(ctx context.Context, id string, opts *CancelOptions) (*Command, error) {
	return h.s.Cancel(ctx, id, opts)
}
