package api

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
)

// request is one request on its way through the checks.
type request struct {
	s     *Server
	op    *operation
	w     *responseWriter
	r     *http.Request
	id    string
	call  control.Call
	query url.Values

	// canonical is the canonical form of the JSON body, tree what it says; both
	// nil without a body.
	canonical []byte
	tree      map[string]any
	// viaURL is set when a signed URL stood in for the credential.
	viaURL bool
	// secret is the presented credential, for sealing answers.
	secret string
}

// responseWriter remembers whether the answer has begun.
type responseWriter struct {
	http.ResponseWriter
	rq    *request
	wrote bool
	code  int
}

func (w *responseWriter) WriteHeader(code int) {
	if !w.wrote {
		w.wrote, w.code = true, code
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *responseWriter) Write(b []byte) (int, error) {
	if !w.wrote {
		w.wrote, w.code = true, http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// route names what was asked for, without ids, for logs and the audit log.
func (rq *request) route() string {
	if rq.op == nil {
		return rq.r.Method
	}
	return rq.op.method + " " + rq.op.path
}

func (rq *request) principal() *auth.Principal { return &rq.call.Principal }

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.enter()
	defer s.leave()
	rq := &request{s: s, r: r, id: sandbox.NewID(sandbox.PrefixRequest)}
	rq.w = &responseWriter{ResponseWriter: w, rq: rq}
	if s.log.Enabled(s.base, slog.LevelDebug) {
		defer s.note(rq, time.Now())
	}
	defer s.recover(rq)

	h := w.Header()
	h.Set("X-Request-Id", rq.id)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if s.cors(rq) {
		return
	}
	p, ok := strings.CutPrefix(r.URL.Path, s.opts.PathPrefix)
	if !ok || !isClean(p) {
		s.writeError(rq, noSuch("route"))
		return
	}
	if s.opts.PathPrefix != "" {
		http.StripPrefix(s.opts.PathPrefix, s.mux).ServeHTTP(rq.w, r)
		return
	}
	s.mux.ServeHTTP(rq.w, r)
}

// note logs a request that was answered.
func (s *Server) note(rq *request, began time.Time) {
	s.log.LogAttrs(s.base, slog.LevelDebug, "request",
		slog.String("requestId", rq.id), slog.String("route", rq.route()), slog.Int("status", rq.w.code),
		slog.Duration("took", time.Since(began)), slog.String("key", rq.call.KeyID), slog.String("ip", rq.call.IP))
}

// isClean reports whether the mux would take the path as it is. It would redirect
// any other, and API routes never redirect.
func isClean(p string) bool {
	if p == "" || p[0] != '/' {
		return false
	}
	clean := path.Clean(p)
	return p == clean || len(p) == len(clean)+1 && p[len(p)-1] == '/' && clean != "/"
}

// recover turns a panic into an envelope and one log record.
func (s *Server) recover(rq *request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler { //nolint:errorlint // the server compares it so, too
		panic(v)
	}
	s.log.Error("handler panicked", "requestId", rq.id, "route", rq.route(), "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	if rq.w.wrote {
		panic(http.ErrAbortHandler)
	}
	_, body := envelope(nil, rq.id)
	s.writeJSON(rq, http.StatusInternalServerError, encodeJSON(body))
}

// serveRoute takes a request through the checks of contract section 1.2.
func (s *Server) serveRoute(rt *route, rq *request, r *http.Request) {
	rq.r = r // with the path values
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	op, ok := rt.methods[method]
	if !ok || r.Method == http.MethodHead && !op.head() {
		rq.w.Header().Set("Allow", rt.allow)
		s.writeError(rq, sandbox.NewError(sandbox.CodeMethodNotAllowed, "This route takes %s.", rt.allow))
		return
	}
	rq.op = op
	if err := s.admit(rq); err != nil {
		s.writeError(rq, err)
		return
	}
	op.handle(rq)
}

// admit runs the checks that come before the handler.
func (s *Server) admit(rq *request) error {
	op, r := rq.op, rq.r
	rq.call.RequestID = rq.id
	rq.call.IP = s.clientIP(r)
	rq.call.UserAgent = userAgent(r)
	query, queryErr := url.ParseQuery(r.URL.RawQuery)
	rq.query = query
	if op.public {
		return nil
	}
	if err := s.authenticate(rq); err != nil {
		return err
	}
	if !rq.viaURL {
		if err := s.limit(rq); err != nil {
			return err
		}
	}
	if op.human && rq.principal().Kind != auth.KindHuman {
		return sandbox.NewError(sandbox.CodeForbidden, "API keys cannot create API keys; use `crownest admin keys create` on the server.").
			With("reason", "key_minting")
	}
	if !rq.viaURL {
		if err := rq.require(op.scope); err != nil {
			return err
		}
	}
	if queryErr != nil {
		return sandbox.NewError(sandbox.CodeInvalidRequest, "The query string is malformed.").Because(queryErr)
	}
	if op.request != nil && !op.raw {
		if err := rq.readBody(); err != nil {
			return err
		}
	}
	for _, c := range op.conditional {
		if c.asked(rq) {
			if err := rq.require(c.scope); err != nil {
				return err
			}
		}
	}
	if err := rq.checkParams(); err != nil {
		return err
	}
	return rq.checkPathParams()
}

// require refuses callers without a scope; the empty scope needs none.
func (rq *request) require(scope string) error {
	if scope == "" || rq.principal().Has(scope) {
		return nil
	}
	return sandbox.NewError(sandbox.CodeForbidden, "This credential lacks the scope %s.", scope).With("requiredScope", scope)
}

// allowed lists the methods of a route for the Allow header.
func (rt *route) allowed() string {
	var methods []string
	for m, op := range rt.methods {
		methods = append(methods, m)
		if m == http.MethodGet && op.head() {
			methods = append(methods, http.MethodHead)
		}
	}
	slices.Sort(methods)
	return strings.Join(methods, ", ")
}

// head reports whether HEAD may ask for what GET gives: downloads and documents.
func (op *operation) head() bool { return op.signed || op.public }

// writeJSON writes a complete JSON answer.
func (s *Server) writeJSON(rq *request, status int, body []byte) {
	h := rq.w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	writeBody(rq, status, body)
}

func writeBody(rq *request, status int, body []byte) {
	rq.w.Header()["Content-Length"] = []string{itoa(len(body))}
	rq.writeDeadline()
	rq.w.WriteHeader(status)
	if rq.r.Method != http.MethodHead {
		_, _ = rq.w.Write(body) // a client that is gone needs no answer
	}
}

// writeDeadline bounds the writes that follow, so that a client that stops reading
// cannot hold resources for ever. It outlives the request on a connection that is
// kept alive: whatever writes calls it first.
func (rq *request) writeDeadline() {
	_ = http.NewResponseController(rq.w).SetWriteDeadline(time.Now().Add(rq.s.timing.write))
}

// cors answers preflights and marks answers for the configured origins. It
// reports whether the request is done.
func (s *Server) cors(rq *request) bool {
	if len(s.origins) == 0 {
		return false
	}
	h := rq.w.Header()
	h.Add("Vary", "Origin")
	origin := rq.r.Header.Get("Origin")
	if origin == "" || !s.origins["*"] && !s.origins[origin] {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", "X-Request-Id, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, Idempotent-Replayed, Content-Disposition, Content-Range")
	if rq.r.Method != http.MethodOptions || rq.r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, DELETE")
	h.Set("Access-Control-Allow-Headers", "Authorization, X-Api-Key, Content-Type, Idempotency-Key, Range")
	h.Set("Access-Control-Max-Age", "600")
	rq.writeDeadline()
	rq.w.WriteHeader(http.StatusNoContent)
	return true
}

// remoteAddr is the address of the peer of the connection.
func remoteAddr(r *http.Request) netip.Addr {
	if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		return a.Addr().Unmap()
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	a, _ := netip.ParseAddr(host)
	return a.Unmap()
}

// trusted reports whether an address is that of a configured proxy.
func (s *Server) trusted(a netip.Addr) bool {
	for _, p := range s.opts.TrustedProxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// clientIP is the nearest address on the way to the client that is not one of our
// proxies.
func (s *Server) clientIP(r *http.Request) string {
	addr := remoteAddr(r)
	if !addr.IsValid() {
		return ""
	}
	if !s.trusted(addr) {
		return addr.String()
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		a, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		if addr = a.Unmap(); !s.trusted(addr) {
			break
		}
	}
	return addr.String()
}

// baseURL is how the client reaches this API: the configured URL, else scheme and
// host of the request.
func (s *Server) baseURL(r *http.Request) string {
	if s.opts.PublicURL != "" {
		return s.opts.PublicURL
	}
	scheme, host := "http", r.Host
	if r.TLS != nil {
		scheme = "https"
	}
	if s.trusted(remoteAddr(r)) {
		if proto := lastValue(r.Header.Get("X-Forwarded-Proto")); proto == "http" || proto == "https" {
			scheme = proto
		}
		if forwarded := lastValue(r.Header.Get("X-Forwarded-Host")); validHost(forwarded) {
			host = forwarded
		}
	}
	if !validHost(host) {
		host = "localhost"
	}
	return scheme + "://" + host + s.opts.PathPrefix
}

// lastValue is what the nearest proxy added to a list.
func lastValue(header string) string {
	return strings.TrimSpace(header[strings.LastIndexByte(header, ',')+1:])
}

// validHost keeps anything but a host and port out of the URLs we hand out.
func validHost(host string) bool {
	if host == "" || len(host) > 255 {
		return false
	}
	for i := range len(host) {
		c := host[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '.', c == '-', c == '_', c == ':', c == '[', c == ']':
		default:
			return false
		}
	}
	return true
}

// maxUserAgent bounds what is kept of the header in the audit log.
const maxUserAgent = 256

func userAgent(r *http.Request) string {
	ua := text(r.UserAgent())
	if len(ua) > maxUserAgent {
		ua = strings.ToValidUTF8(ua[:maxUserAgent], "")
	}
	return ua
}
