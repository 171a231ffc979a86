package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// Bounds of contract section 6.
const (
	maxCommandBytes = 256 << 10
	maxEnvBytes     = 64 << 10
)

type wireCollectItem struct {
	Path string `json:"path" minLength:"1" maxLength:"4096"`
	Name string `json:"name,omitempty" minLength:"1" maxLength:"255" doc:"Omitted: the last element of the path."`
}

type wireRunCommandRequest struct {
	Command     string            `json:"command" minLength:"1" maxLength:"262144" doc:"Goes to /bin/bash -c."`
	Cwd         string            `json:"cwd,omitempty" maxLength:"4096" doc:"Existing directory inside /workspace, the default."`
	Env         map[string]string `json:"env,omitempty" doc:"Never stored. Names must not begin with CROWNEST; 64 KiB in all."`
	TimeoutMs   *int64            `json:"timeoutMs,omitempty" minimum:"1" maximum:"600000" doc:"Omitted: 60000."`
	Collect     []wireCollectItem `json:"collect,omitempty" maxItems:"50" doc:"Files to keep as artifacts after the command."`
	CollectOn   string            `json:"collectOn,omitempty" enum:"success,always" doc:"Omitted: success."`
	RequireRead bool              `json:"_crownestRequireCommandRead,omitempty" doc:"True: a key without command:read is refused before anything starts."`
}

type wireStartCommandRequest struct {
	Command     string            `json:"command" minLength:"1" maxLength:"262144" doc:"Goes to /bin/bash -c."`
	Cwd         string            `json:"cwd,omitempty" maxLength:"4096" doc:"Existing directory inside /workspace, the default."`
	Env         map[string]string `json:"env,omitempty" doc:"Never stored. Names must not begin with CROWNEST; 64 KiB in all."`
	TimeoutMs   *int64            `json:"timeoutMs,omitempty" minimum:"1" doc:"Omitted: until the sandbox ends."`
	RequireRead bool              `json:"_crownestRequireCommandRead,omitempty" doc:"True: a key without command:read is refused before anything starts."`
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func checkCommand(command, cwd string, env map[string]string) error {
	if len(command) > maxCommandBytes {
		return invalid("command", "command is longer than %d bytes.", maxCommandBytes)
	}
	if err := noNUL("command", command, "cwd", cwd); err != nil {
		return err
	}
	total := 0
	for k, v := range env {
		switch {
		case !envName.MatchString(k):
			return invalid("env", "env names are letters, digits and underscores and do not begin with a digit.")
		case strings.HasPrefix(k, "CROWNEST"):
			return sandbox.NewError(sandbox.CodeReservedEnvKey, "env names that begin with CROWNEST are reserved: %s.", k).With("key", k)
		case strings.IndexByte(v, 0) >= 0:
			return invalid("env", "The value of %s must not contain NUL characters.", k)
		}
		total += len(k) + len(v) + 2 // as the kernel counts: the equals sign and the end
	}
	if total > maxEnvBytes {
		return invalid("env", "env is larger than %d bytes in all.", maxEnvBytes)
	}
	return nil
}

func (in *wireRunCommandRequest) validate() error {
	if err := checkCommand(in.Command, in.Cwd, in.Env); err != nil {
		return err
	}
	for _, item := range in.Collect {
		if err := errors.Join(noNUL("collect", item.Path), checkName("collect", item.Name)); err != nil {
			return err
		}
	}
	return nil
}

func (in *wireStartCommandRequest) validate() error { return checkCommand(in.Command, in.Cwd, in.Env) }

// precheck refuses what belongs to commands that are waited for; it would
// otherwise be ignored like any unknown member.
func (in *wireStartCommandRequest) precheck(tree map[string]any) error {
	items, _ := tree["collect"].([]any)
	if len(items) > 0 || tree["collectOn"] != nil {
		return invalid("collect", "collect and collectOn are for commands that are waited for; use run.")
	}
	return nil
}

// checkName checks the name of an artifact; empty = omitted.
func checkName(field, name string) error {
	for _, r := range name {
		if r == '/' || unicode.IsControl(r) {
			return invalid(field, "A name must not contain slashes or control characters.")
		}
	}
	return nil
}

type wireCommandAnswer struct {
	Command wireCommand `json:"command"`
}

type wireLogPage struct {
	Data    []wireLogChunk `json:"data"`
	HasMore bool           `json:"hasMore"`
	NextSeq *int64         `json:"nextSeq,omitempty" doc:"Give it back as afterSeq."`
}

type wireLogDownloadRequest struct {
	Stream string `json:"stream,omitempty" enum:"stdout,stderr,both" doc:"Omitted: both, in the order of arrival."`
}

var (
	whenCollect = conditionalScope{sandbox.ScopeArtifactCreate, "collect is not empty", func(rq *request) bool {
		items, _ := rq.tree["collect"].([]any)
		return len(items) > 0
	}}
	whenRequireRead = conditionalScope{sandbox.ScopeCommandRead, "_crownestRequireCommandRead is true", func(rq *request) bool {
		return rq.tree["_crownestRequireCommandRead"] == true
	}}
	whenSSE = conditionalScope{sandbox.ScopeCommandRead, "Accept has text/event-stream", wantsEvents}
)

// wantsEvents reports whether the client accepts server-sent events.
func wantsEvents(rq *request) bool {
	for _, accept := range rq.r.Header.Values("Accept") {
		for part := range strings.SplitSeq(accept, ",") {
			media, params, err := mime.ParseMediaType(part)
			if err != nil || media != mediaEvents {
				continue
			}
			q, err := strconv.ParseFloat(params["q"], 64)
			return err != nil || q > 0
		}
	}
	return false
}

func (s *Server) addCommands() {
	const inSandbox, item = "/v1/sandboxes/{sandboxId}/commands", "/v1/commands/{commandId}"
	tag := "Commands"

	run := operation{
		id: "runCommand", method: http.MethodPost, path: inSandbox + "/run", tag: tag,
		summary: "Run a command and wait for its end", scope: sandbox.ScopeCommandRun,
		params: []*param{pSandbox}, conditional: []conditionalScope{whenCollect, whenRequireRead},
		makes: sandbox.PrefixCommand, errors: []int{402, 409, 410, 503},
		request: reflect.TypeFor[wireRunCommandRequest](),
	}
	run.answers(reflect.TypeFor[wireCommandAnswer]())
	run.handle = s.runCommand
	s.add(run)

	create := run
	create.id, create.path = "createCommand", inSandbox
	create.summary = "Run a command; with text/event-stream in Accept its output comes as it is written"
	create.conditional = []conditionalScope{whenCollect, whenRequireRead, whenSSE}
	create.responses = map[int]*content{http.StatusOK: {
		description: "The command, or its events",
		media: map[string]reflect.Type{
			mediaJSON: reflect.TypeFor[wireCommandAnswer](), mediaEvents: reflect.TypeFor[wireCreateCommandEvent](),
		},
	}}
	s.add(create)

	mutation(s, operation{
		id: "startCommand", method: http.MethodPost, path: inSandbox + "/start", tag: tag, status: http.StatusAccepted,
		summary: "Start a command without waiting for it", scope: sandbox.ScopeCommandRun, params: []*param{pSandbox},
		conditional: []conditionalScope{whenRequireRead}, makes: sandbox.PrefixCommand, errors: []int{402, 409, 410, 503},
	}, func(ctx context.Context, rq *request, in *wireStartCommandRequest) (wireCommandAnswer, error) {
		return commandAnswer(s.control.StartCommand(ctx, rq.call, rq.path(pSandbox), control.CommandInput{
			Command: in.Command, Cwd: in.Cwd, Env: in.Env, TimeoutMs: in.TimeoutMs, RequireRead: in.RequireRead,
		}))
	})

	listing(s, operation{
		id: "listCommands", method: http.MethodGet, path: inSandbox, tag: tag,
		summary: "List the commands of a sandbox, newest first, without their output", scope: sandbox.ScopeCommandRead, params: []*param{pSandbox},
	}, sandbox.PrefixCommand,
		func(ctx context.Context, rq *request, p store.Page) (control.Page[sandbox.Command], error) {
			return s.control.Commands(ctx, rq.call, rq.path(pSandbox), p)
		},
		func(c sandbox.Command) wireCommand { return toCommand(c, false) },
		func(c sandbox.Command) (time.Time, string) { return c.CreatedAt, c.ID })

	query(s, operation{
		id: "getCommand", method: http.MethodGet, path: item, tag: tag, cost: 0.1,
		summary: "Get a command", scope: sandbox.ScopeCommandRead, params: []*param{pCommand},
	}, func(ctx context.Context, rq *request, _ *noBody) (wireCommandAnswer, error) {
		return commandAnswer(s.control.Command(ctx, rq.call, rq.path(pCommand)))
	})

	mutation(s, operation{
		id: "cancelCommand", method: http.MethodPost, path: item + "/cancel", tag: tag,
		summary: "Cancel a command and wait for its end", scope: sandbox.ScopeCommandCancel, params: []*param{pCommand}, errors: []int{409},
	}, func(ctx context.Context, rq *request, in *wireCancelCommandRequest) (wireCommandAnswer, error) {
		mode := sandbox.CancelGraceful
		if in.Mode != "" {
			mode = sandbox.CancelMode(in.Mode)
		}
		return commandAnswer(s.control.CancelCommand(ctx, rq.call, rq.path(pCommand), mode))
	})

	query(s, operation{
		id: "listCommandLogs", method: http.MethodGet, path: item + "/logs", tag: tag,
		summary: "Page through the output of a command", scope: sandbox.ScopeCommandRead,
		params: []*param{pCommand, qAfterSeq, qLimit}, errors: []int{409},
	}, func(ctx context.Context, rq *request, _ *noBody) (wireLogPage, error) {
		page, err := s.control.CommandLogs(ctx, rq.call, rq.path(pCommand), rq.afterSeq(), rq.limit())
		if err != nil {
			return wireLogPage{}, err
		}
		return toLogPage(page, rq.afterSeq()), nil
	})

	stream(s, operation{
		id: "streamCommandLogs", method: http.MethodGet, path: item + "/stream", tag: tag,
		summary: "Follow the output of a command", scope: sandbox.ScopeCommandRead,
		params: []*param{pCommand, qAfterSeq}, errors: []int{409},
		responses: map[int]*content{http.StatusOK: {
			description: "Events: log, heartbeat, then terminal or error",
			media:       map[string]reflect.Type{mediaEvents: reflect.TypeFor[wireCommandEvent]()},
		}},
	}, s.streamCommand)

	mutation(s, operation{
		id: "createCommandLogsDownloadUrl", method: http.MethodPost, path: item + "/logs/download-url", tag: tag,
		summary: "Get a URL that downloads the output of a command", scope: sandbox.ScopeCommandRead,
		params: []*param{pCommand}, secret: true, errors: []int{409},
	}, func(ctx context.Context, rq *request, in *wireLogDownloadRequest) (wireDownloadUrl, error) {
		id := rq.path(pCommand)
		if _, err := s.control.Command(ctx, rq.call, id); err != nil {
			return wireDownloadUrl{}, err
		}
		q := url.Values{}
		if in.Stream != "" {
			q.Set("stream", in.Stream)
		}
		return s.downloadURL(rq, "/v1/commands/"+id+"/logs/download", q, logGrant(id, in.Stream)), nil
	})

	stream(s, operation{
		id: "downloadCommandLogs", method: http.MethodGet, path: item + "/logs/download", tag: tag,
		summary: "Download the exact output of a command", scope: sandbox.ScopeCommandRead,
		params: []*param{pCommand, qLogStream}, signed: true,
		grant:     func(rq *request) grant { return logGrant(rq.path(pCommand), rq.query.Get("stream")) },
		responses: rawAnswer, errors: []int{206, 416, 502},
	}, func(ctx context.Context, rq *request) error {
		return s.download(ctx, rq, func(ctx context.Context) (control.Content, error) {
			return s.control.CommandLogContent(ctx, rq.call, rq.path(pCommand), control.LogSelection(orBoth(rq.query.Get("stream"))))
		})
	})
}

func orBoth(stream string) string {
	if stream == "" {
		return string(control.LogBoth)
	}
	return stream
}

func logGrant(commandID, stream string) grant { return grant{commandID, "log:" + orBoth(stream)} }

type wireCancelCommandRequest struct {
	Mode string `json:"mode,omitempty" enum:"graceful,force" doc:"Omitted: graceful."`
}

func commandAnswer(c sandbox.Command, err error) (wireCommandAnswer, error) {
	if err != nil {
		return wireCommandAnswer{}, err
	}
	return wireCommandAnswer{toCommand(c, true)}, nil
}

func toLogPage(p control.LogPage, afterSeq *int64) wireLogPage {
	w := wireLogPage{Data: make([]wireLogChunk, 0, len(p.Chunks)), HasMore: p.HasMore, NextSeq: afterSeq}
	for _, c := range p.Chunks {
		w.Data = append(w.Data, wireLogChunk{c.CommandID, timestamp(c.CreatedAt), string(c.Data), c.Seq, string(c.Stream)})
	}
	if n := len(p.Chunks); n > 0 {
		w.NextSeq = &p.Chunks[n-1].Seq
	}
	return w
}

// commandRef is what is stored as the answer of a run: its record is kept anyway
// and does not change any more.
type commandRef struct {
	CommandID string `json:"commandId"`
}

// runCommand serves runs, as one object or as events.
func (s *Server) runCommand(rq *request) {
	in := new(wireRunCommandRequest)
	if err := rq.decode(in); err != nil {
		s.writeError(rq, err)
		return
	}
	ctx, cancel := context.WithTimeout(s.base, mutationTimeout)
	defer cancel()
	c, stored, err := s.begin(ctx, rq)
	if err != nil {
		s.writeError(rq, err)
		return
	}
	if stored != nil {
		s.replayRun(ctx, rq, stored)
		return
	}
	defer c.abandon()
	cmd, err := s.control.StartCommand(ctx, rq.call, rq.path(pSandbox), runInput(in))
	if err != nil {
		c.fail(rq, err)
		s.writeError(rq, err)
		return
	}
	if rq.op.id == "createCommand" && wantsEvents(rq) {
		s.streamRun(ctx, rq, c, cmd)
		return
	}
	s.later(ctx, rq, func(ctx context.Context) (any, error) {
		return commandAnswer(s.control.WaitCommand(ctx, rq.call, cmd.ID))
	}, func([]byte) { c.finishRun(rq, cmd.ID) })
}

func runInput(in *wireRunCommandRequest) control.CommandInput {
	out := control.CommandInput{
		Command: in.Command, Cwd: in.Cwd, Env: in.Env, TimeoutMs: in.TimeoutMs,
		CollectOn: sandbox.CollectOn(in.CollectOn), Blocking: true, RequireRead: in.RequireRead,
	}
	for _, item := range in.Collect {
		out.Collect = append(out.Collect, sandbox.CollectItem{Path: item.Path, Name: item.Name})
	}
	return out
}

func (c *claim) finishRun(rq *request, commandID string) {
	c.finish(rq, http.StatusOK, encodeJSON(commandRef{commandID}))
}

// replayRun gives the end of an earlier run again, in the form asked for now.
func (s *Server) replayRun(ctx context.Context, rq *request, o *store.Operation) {
	if o.Status != http.StatusOK {
		s.replay(rq, o)
		return
	}
	var ref commandRef
	if err := json.Unmarshal(o.Body, &ref); err != nil {
		s.writeError(rq, fmt.Errorf("reading the stored answer of a run: %w", err))
		return
	}
	cmd, err := s.control.Command(ctx, rq.call, ref.CommandID)
	if err != nil {
		s.writeError(rq, err)
		return
	}
	rq.w.Header().Set("Idempotent-Replayed", "true")
	if rq.op.id != "createCommand" || !wantsEvents(rq) {
		s.writeJSON(rq, http.StatusOK, encodeJSON(wireCommandAnswer{toCommand(cmd, true)}))
		return
	}
	es, err := openStream(rq)
	if err != nil {
		return
	}
	es.json(commandEvent(cmd))
	es.json(terminalEvent(cmd))
	_ = es.flush() // the client may be gone
}
