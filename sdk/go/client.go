package crownest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// DefaultBaseURL is the hosted service.
const DefaultBaseURL = "https://api.crownest.dev"

const (
	// maxRetries bounds the repetitions of one ordinary call.
	maxRetries = 2
	// maxRetryAfter is the longest wait that a server may ask for; beyond it the
	// caller gets the error at once and decides.
	maxRetryAfter = 30 * time.Second
	// maxErrorBody bounds how much of an error response is read.
	maxErrorBody = 1 << 20
)

// Client speaks to one CrowNest server with one credential.
type Client struct {
	Sandboxes *SandboxesService
	Commands  *CommandsService
	Files     *FilesService
	Artifacts *ArtifactsService
	Projects  *ProjectsService
	APIKeys   *APIKeysService
	Templates *TemplatesService
	Usage     *UsageService
	Audit     *AuditService

	base      *url.URL
	apiKey    string
	header    http.Header
	http      *http.Client
	userAgent string
	reconnect []time.Duration
	idle      time.Duration
	poll      time.Duration
}

// Option configures a Client.
type Option func(*config)

type config struct {
	baseURL    string
	apiKey     string
	anonymous  bool
	header     http.Header
	httpClient *http.Client
	userAgent  string
}

// WithAPIKey sets the credential. Without it CROWNEST_BEARER_TOKEN and
// CROWNEST_API_KEY are looked at, in that order.
func WithAPIKey(key string) Option { return func(c *config) { c.apiKey = key } }

// WithoutCredential makes a client that sends no credential, even if the
// environment names one.
func WithoutCredential() Option { return func(c *config) { c.anonymous = true } }

// WithBaseURL sets the server, with or without a path prefix. Without it
// CROWNEST_API_URL and then DefaultBaseURL are used.
func WithBaseURL(base string) Option { return func(c *config) { c.baseURL = base } }

// WithHTTPClient sets the HTTP client. Redirects are never followed, whatever
// its CheckRedirect says, and a Timeout would also cut streams.
func WithHTTPClient(h *http.Client) Option { return func(c *config) { c.httpClient = h } }

// WithHeader adds a header to every call to the server.
func WithHeader(name, value string) Option {
	return func(c *config) { c.header.Set(name, value) }
}

// WithUserAgent replaces the User-Agent.
func WithUserAgent(ua string) Option { return func(c *config) { c.userAgent = ua } }

// NewClient returns a client. It makes no network call.
func NewClient(opts ...Option) (*Client, error) {
	cfg := config{header: http.Header{}, userAgent: "crownest-go"}
	for _, o := range opts {
		o(&cfg)
	}
	key := firstNonEmpty(cfg.apiKey, os.Getenv("CROWNEST_BEARER_TOKEN"), os.Getenv("CROWNEST_API_KEY"))
	switch {
	case cfg.anonymous:
		key = ""
	case key == "":
		return nil, ErrNoCredential
	case strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }):
		// Such a key cannot be a header value; say so without repeating it.
		return nil, errors.New("crownest: the API key holds white space or characters that no key has")
	}
	base, err := parseBase(firstNonEmpty(cfg.baseURL, os.Getenv("CROWNEST_API_URL"), DefaultBaseURL))
	if err != nil {
		return nil, err
	}
	c := &Client{
		base: base, apiKey: key, header: cfg.header, userAgent: cfg.userAgent,
		http:      noRedirects(cfg.httpClient),
		reconnect: reconnectDelays,
		idle:      streamIdle,
		poll:      pollInterval,
	}
	c.Sandboxes = &SandboxesService{c}
	c.Commands = &CommandsService{c}
	c.Files = &FilesService{c}
	c.Artifacts = &ArtifactsService{c}
	c.Projects = &ProjectsService{c}
	c.APIKeys = &APIKeysService{c}
	c.Templates = &TemplatesService{c}
	c.Usage = &UsageService{c}
	c.Audit = &AuditService{c}
	return c, nil
}

// BaseURL returns the server that the client speaks to.
func (c *Client) BaseURL() string { return c.base.String() }

func parseBase(s string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimRight(strings.TrimSpace(s), "/"))
	if err != nil {
		return nil, fmt.Errorf("crownest: base URL: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("crownest: base URL %q is not an http or https URL", s)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("crownest: base URL must not hold a user, a query or a fragment")
	}
	return u, nil
}

// noRedirects copies h, or makes the default client. A redirect would carry the
// x- headers and bodies of the request to a place the caller did not choose.
func noRedirects(h *http.Client) *http.Client {
	var client http.Client
	if h != nil {
		client = *h
	} else {
		client.Transport = &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			ForceAttemptHTTP2:   true,
			MaxIdleConns:        100,
			MaxIdleConnsPerHost: 100,
			IdleConnTimeout:     90 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second,
			// A blocking call answers its headers within 20 s; a sandbox that is
			// still starting may hold other calls for 30 s.
			ResponseHeaderTimeout: 120 * time.Second,
			WriteBufferSize:       64 << 10,
			ReadBufferSize:        64 << 10,
		}
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client
}

// call is one request to the API.
type call struct {
	method string
	path   string // escaped, below the base
	query  url.Values
	body   any    // sent as JSON; nil = no body
	key    string // Idempotency-Key; mutations without one get a random one
	accept string
}

// do performs an ordinary call and decodes the object that the answer holds
// under field ("" = the whole answer) into out.
func (c *Client) do(ctx context.Context, rq call, field string, out any) error {
	_, body, err := c.exchange(ctx, rq)
	if err != nil {
		return err
	}
	if err := decodeField(body, field, out); err != nil {
		return fmt.Errorf("crownest: answer to %s %s: %w", rq.method, rq.path, err)
	}
	return nil
}

// exchange performs an ordinary call, repeating it where that is safe and asked
// for, and returns the whole successful answer.
func (c *Client) exchange(ctx context.Context, rq call) (http.Header, []byte, error) {
	rq.fillKey()
	for attempt := 0; ; attempt++ {
		header, body, err := c.attempt(ctx, rq)
		if err == nil {
			return header, body, nil
		}
		wait, again := c.retryWait(err, attempt)
		if !again || ctx.Err() != nil {
			return nil, nil, err
		}
		if sleep(ctx, wait) != nil {
			return nil, nil, err
		}
	}
}

func (c *Client) attempt(ctx context.Context, rq call) (http.Header, []byte, error) {
	resp, err := c.open(ctx, rq)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, &connectionError{fmt.Errorf("crownest: reading the answer to %s %s: %w", rq.method, rq.path, err)}
	}
	return resp.Header, body, nil
}

// openRetry is open with the repetitions of an ordinary call.
func (c *Client) openRetry(ctx context.Context, rq call) (*http.Response, error) {
	rq.fillKey()
	for attempt := 0; ; attempt++ {
		resp, err := c.open(ctx, rq)
		if err == nil {
			return resp, nil
		}
		wait, again := c.retryWait(err, attempt)
		if !again || ctx.Err() != nil || sleep(ctx, wait) != nil {
			return nil, err
		}
	}
}

// open sends one request and returns a successful response, whose body the
// caller closes.
func (c *Client) open(ctx context.Context, rq call) (*http.Response, error) {
	var body io.Reader
	if rq.body != nil {
		b, err := json.Marshal(rq.body)
		if err != nil {
			return nil, fmt.Errorf("crownest: encoding the body of %s %s: %w", rq.method, rq.path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, rq.method, c.url(rq.path, rq.query), body)
	if err != nil {
		return nil, fmt.Errorf("crownest: %w", err)
	}
	c.authorize(req)
	if body != nil {
		req.Header.Set("Content-Type", "application/json; charset=utf-8")
	}
	if rq.key != "" {
		req.Header.Set("Idempotency-Key", rq.key)
	}
	req.Header.Set("Accept", firstNonEmpty(rq.accept, "application/json"))
	return c.send(req)
}

// send performs a request and turns everything but a 2xx answer into an error.
func (c *Client) send(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		if ctxErr := req.Context().Err(); ctxErr != nil {
			return nil, fmt.Errorf("crownest: %s %s: %w", req.Method, req.URL.Path, ctxErr)
		}
		return nil, &connectionError{fmt.Errorf("crownest: %w", redactURL(err))}
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	apiErr := parseError(resp.StatusCode, resp.Header, body)
	apiErr.RetryAfter = retryAfter(resp)
	return nil, apiErr
}

// authorize adds the credential and the client's own headers if, and only if,
// the request goes to the base's own origin.
func (c *Client) authorize(req *http.Request) {
	req.Header.Set("User-Agent", c.userAgent)
	if origin(req.URL) != origin(c.base) {
		return
	}
	for name, values := range c.header {
		req.Header[name] = values
	}
	if c.apiKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.apiKey)
	}
}

func (c *Client) url(path string, query url.Values) string {
	s := c.base.String() + path
	if len(query) > 0 {
		s += "?" + query.Encode()
	}
	return s
}

// origin is scheme, host and port in one comparable form.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return strings.ToLower(u.Scheme + "://" + u.Hostname() + ":" + port)
}

func (rq *call) fillKey() {
	if rq.key == "" && rq.method != http.MethodGet && rq.method != http.MethodHead {
		rq.key = newUUID()
	}
}

// connectionError marks a call that broke without an answer: repeating it with
// the same key is safe.
type connectionError struct{ error }

func (e *connectionError) Unwrap() error { return e.error }

// IsConnectionError reports whether a call failed because the connection to the
// server could not be made or broke before an answer.
func IsConnectionError(err error) bool {
	var broken *connectionError
	return errors.As(err, &broken)
}

// retryWait says whether a failed call may be repeated, and after what time.
func (c *Client) retryWait(err error, attempt int) (time.Duration, bool) {
	if attempt >= maxRetries {
		return 0, false
	}
	var apiErr *APIError
	if errors.As(err, &apiErr) {
		return apiErr.RetryAfter, apiErr.RetryAfter > 0 && apiErr.RetryAfter <= maxRetryAfter
	}
	var broken *connectionError
	if errors.As(err, &broken) {
		return c.reconnect[attempt], true
	}
	return 0, false
}

// retryAfter returns the wait that a 429 or 503 asks for, at least a millisecond
// if it asks for any.
func retryAfter(resp *http.Response) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	v := resp.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(v); err == nil && seconds >= 0 && seconds < 1<<31 {
		return max(time.Duration(seconds)*time.Second, time.Millisecond)
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(time.Until(at), time.Millisecond)
	}
	return 0
}

// redactURL drops the query of the URL that net/http puts into its errors: it
// may be a signed one.
func redactURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		place, _, _ := strings.Cut(ue.URL, "?")
		return fmt.Errorf("%s %s: %w", strings.ToUpper(ue.Op), place, ue.Err)
	}
	return err
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// newUUID returns a random UUID, version 4.
func newUUID() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // crypto/rand.Read never fails
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

func firstNonEmpty(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// raw is part of every resource: it keeps the JSON that the server sent.
type raw struct{ json json.RawMessage }

// RawJSON returns the resource as the server sent it, with fields that this
// version of the package does not know. It is nil for values not decoded from an
// answer.
func (r raw) RawJSON() json.RawMessage { return r.json }

func (r *raw) setRaw(b json.RawMessage) { r.json = b }

// decodeField decodes one member of an answer, or all of it.
func decodeField(body []byte, field string, out any) error {
	member := json.RawMessage(body)
	if field != "" {
		var object map[string]json.RawMessage
		if err := json.Unmarshal(body, &object); err != nil {
			return fmt.Errorf("not a JSON object: %w", err)
		}
		var ok bool
		if member, ok = object[field]; !ok {
			return fmt.Errorf("member %q is missing", field)
		}
	}
	return decode(member, out)
}

func decode(b json.RawMessage, out any) error {
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return err
	}
	if r, ok := out.(interface{ setRaw(json.RawMessage) }); ok {
		r.setRaw(bytes.TrimSpace(b))
	}
	return nil
}
