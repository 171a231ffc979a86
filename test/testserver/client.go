package testserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client speaks the wire contract and nothing else: it shares no code with the
// server, so that a mistake there cannot hide here.
type Client struct {
	HTTP *http.Client
	Base string
	Key  string
}

// Error is an error envelope.
type Error struct {
	Status  int
	Code    string         `json:"code"`
	Message string         `json:"message"`
	Details map[string]any `json:"details"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("%d %s: %s %v", e.Status, e.Code, e.Message, e.Details)
}

// Code returns the code of an error envelope in err, or "".
func Code(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// Sandbox, Command, Chunk, Event and File are the parts of the wire's objects
// that tests look at.
type (
	Sandbox struct {
		ID              string            `json:"id"`
		Status          string            `json:"status"`
		TemplateSlug    string            `json:"templateSlug"`
		Metadata        map[string]string `json:"metadata"`
		DestroyedReason string            `json:"destroyedReason"`
	}
	Command struct {
		ID              string `json:"id"`
		SandboxID       string `json:"sandboxId"`
		Command         string `json:"command"`
		Status          string `json:"status"`
		ExitCode        *int   `json:"exitCode"`
		Stdout          string `json:"stdout"`
		Stderr          string `json:"stderr"`
		StdoutTruncated bool   `json:"stdoutTruncated"`
		KilledReason    string `json:"killedReason"`
	}
	Chunk struct {
		Seq    int64  `json:"seq"`
		Stream string `json:"stream"`
		Data   string `json:"data"`
	}
	Event struct {
		Type    string   `json:"type"`
		Seq     int64    `json:"seq"`
		Stream  string   `json:"stream"`
		Data    string   `json:"data"`
		Command *Command `json:"command"`
		Code    string   `json:"code"`
		Message string   `json:"message"`
	}
	File struct {
		Path      string `json:"path"`
		SizeBytes int64  `json:"sizeBytes"`
	}
)

// Do makes one call. in is sent as JSON unless nil, out is filled unless nil; a
// status of 400 or more is an *Error. key is the Idempotency-Key, or "".
func (c *Client) Do(ctx context.Context, method, path, key string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.Base+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	return c.send(req, out)
}

func (c *Client) send(req *http.Request, out any) error {
	req.Header.Set("Authorization", "Bearer "+c.Key)
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("reading the answer of %s %s: %w", req.Method, req.URL.Path, err)
	}
	if resp.StatusCode >= 400 {
		return envelope(resp.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("answer of %s %s is no JSON: %w: %.200q", req.Method, req.URL.Path, err, b)
	}
	return nil
}

func envelope(status int, b []byte) error {
	var env struct {
		Error *Error `json:"error"`
	}
	if err := json.Unmarshal(b, &env); err != nil || env.Error == nil {
		return fmt.Errorf("status %d without an error envelope: %.200q", status, b)
	}
	env.Error.Status = status
	return env.Error
}

// CreateSandbox makes a sandbox of a template; metadata may be nil.
func (c *Client) CreateSandbox(ctx context.Context, key, template string, metadata map[string]string) (Sandbox, error) {
	in := map[string]any{"template": template}
	if metadata != nil {
		in["metadata"] = metadata
	}
	var out struct{ Sandbox Sandbox }
	err := c.Do(ctx, http.MethodPost, "/v1/sandboxes", key, in, &out)
	return out.Sandbox, err
}

// GetSandbox reads one sandbox.
func (c *Client) GetSandbox(ctx context.Context, id string) (Sandbox, error) {
	var out struct{ Sandbox Sandbox }
	err := c.Do(ctx, http.MethodGet, "/v1/sandboxes/"+id, "", nil, &out)
	return out.Sandbox, err
}

// Sandboxes lists the live sandboxes, all pages of them.
func (c *Client) Sandboxes(ctx context.Context) ([]Sandbox, error) {
	var all []Sandbox
	for cursor := ""; ; {
		var page struct {
			Data       []Sandbox
			HasMore    bool
			NextCursor string
		}
		path := "/v1/sandboxes?limit=500"
		if cursor != "" {
			path += "&cursor=" + url.QueryEscape(cursor)
		}
		if err := c.Do(ctx, http.MethodGet, path, "", nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Data...)
		if !page.HasMore {
			return all, nil
		}
		cursor = page.NextCursor
	}
}

// KillSandbox ends a sandbox.
func (c *Client) KillSandbox(ctx context.Context, key, id string) (Sandbox, error) {
	var out struct{ Sandbox Sandbox }
	err := c.Do(ctx, http.MethodDelete, "/v1/sandboxes/"+id, key, nil, &out)
	return out.Sandbox, err
}

// Run runs a command to its end. timeout 0 = the server's default.
func (c *Client) Run(ctx context.Context, key, sandboxID, command string, timeout time.Duration) (Command, error) {
	return c.command(ctx, "run", key, sandboxID, command, timeout)
}

// Start starts a command.
func (c *Client) Start(ctx context.Context, key, sandboxID, command string) (Command, error) {
	return c.command(ctx, "start", key, sandboxID, command, 0)
}

func (c *Client) command(ctx context.Context, verb, key, sandboxID, command string, timeout time.Duration) (Command, error) {
	in := map[string]any{"command": command}
	if timeout > 0 {
		in["timeoutMs"] = timeout.Milliseconds()
	}
	var out struct{ Command Command }
	err := c.Do(ctx, http.MethodPost, "/v1/sandboxes/"+sandboxID+"/commands/"+verb, key, in, &out)
	return out.Command, err
}

// GetCommand reads one command.
func (c *Client) GetCommand(ctx context.Context, id string) (Command, error) {
	var out struct{ Command Command }
	err := c.Do(ctx, http.MethodGet, "/v1/commands/"+id, "", nil, &out)
	return out.Command, err
}

// Cancel cancels a command at once.
func (c *Client) Cancel(ctx context.Context, id string) (Command, error) {
	var out struct{ Command Command }
	err := c.Do(ctx, http.MethodPost, "/v1/commands/"+id+"/cancel", "", map[string]any{"mode": "force"}, &out)
	return out.Command, err
}

// Logs reads all that is kept of a command's log, page by page.
func (c *Client) Logs(ctx context.Context, id string) ([]Chunk, error) {
	var all []Chunk
	for after := int64(-1); ; {
		path := "/v1/commands/" + id + "/logs?limit=500"
		if after >= 0 {
			path += "&afterSeq=" + strconv.FormatInt(after, 10)
		}
		var page struct {
			Data    []Chunk
			HasMore bool
			NextSeq int64
		}
		if err := c.Do(ctx, http.MethodGet, path, "", nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Data...)
		if !page.HasMore {
			return all, nil
		}
		after = page.NextSeq
	}
}

// WriteFile writes a small file.
func (c *Client) WriteFile(ctx context.Context, key, sandboxID, path, content string) (File, error) {
	var out struct{ File File }
	err := c.Do(ctx, http.MethodPut, "/v1/sandboxes/"+sandboxID+"/files", key,
		map[string]any{"path": path, "content": content, "createParents": true}, &out)
	return out.File, err
}

// ReadFile reads a small file.
func (c *Client) ReadFile(ctx context.Context, sandboxID, path string) (string, error) {
	var out struct{ Content string }
	err := c.Do(ctx, http.MethodGet, "/v1/sandboxes/"+sandboxID+"/files/read?path="+url.QueryEscape(path), "", nil, &out)
	return out.Content, err
}

// Stream follows a command's events until the stream ends or fn fails.
// afterSeq -1 = from the oldest.
func (c *Client) Stream(ctx context.Context, id string, afterSeq int64, fn func(Event) error) error {
	path := "/v1/commands/" + id + "/stream"
	if afterSeq >= 0 {
		path += "?afterSeq=" + strconv.FormatInt(afterSeq, 10)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Base+path, nil)
	if err != nil {
		return err
	}
	return c.events(req, fn)
}

// RunStream starts a command and follows its events.
func (c *Client) RunStream(ctx context.Context, key, sandboxID, command string, fn func(Event) error) error {
	b, err := json.Marshal(map[string]any{"command": command})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.Base+"/v1/sandboxes/"+sandboxID+"/commands", bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	return c.events(req, fn)
}

func (c *Client) events(req *http.Request, fn func(Event) error) error {
	req.Header.Set("Authorization", "Bearer "+c.Key)
	req.Header.Set("Accept", "text/event-stream")
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return envelope(resp.StatusCode, b)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 256<<10), 4<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("event is no JSON: %w: %.200q", err, data)
		}
		if err := fn(e); err != nil {
			return err
		}
	}
	return lines.Err()
}
