package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/store"
)

const (
	// defaultBodyLimit bounds JSON bodies.
	defaultBodyLimit = 4 << 20
	// readTimeout bounds requests that change nothing and are not streams.
	readTimeout = time.Minute
	// mutationTimeout bounds what an accepted mutation may take: the longest
	// blocking command with its collection, and room for a start.
	mutationTimeout = 20 * time.Minute
)

// Operations is what idempotency needs of the store.
type Operations interface {
	Update(ctx context.Context, fn func(tx store.Tx) error) error
}

// RateLimit is a token bucket per key. Zero PerMinute = off.
type RateLimit struct {
	PerMinute int
	Burst     int
}

// DefaultRateLimit lets a client poll every half second.
var DefaultRateLimit = RateLimit{PerMinute: 1200, Burst: 240}

// Options are the parts and settings of the API.
type Options struct {
	Control Control
	Auth    *auth.Authenticator
	Signer  *auth.Signer
	Store   Operations
	Log     *slog.Logger

	// PublicURL replaces scheme and host of requests in the URLs that are handed
	// out; it may end in a path.
	PublicURL string
	// PathPrefix is where the API is mounted, for instance /crownest; empty = root.
	PathPrefix string
	// TrustedProxies may say in X-Forwarded-* what a client really asked for.
	TrustedProxies []netip.Prefix
	// CORSOrigins may call from browsers; "*" = all.
	CORSOrigins []string

	BodyLimit int64     // of JSON bodies; 0 = 4 MiB
	RateLimit RateLimit // zero = off
	// Dev, if set, lets headers on loopback connections stand for a signed-in person.
	Dev *DevSessions
	// Ready reports whether the server can do its work.
	Ready func() bool
	// BootID names this run of this process among the owners of operations.
	BootID  string
	Version string
}

// Server is the HTTP handler of the API.
type Server struct {
	opts    Options
	control Control
	auth    *auth.Authenticator
	signer  *auth.Signer
	store   Operations
	log     *slog.Logger

	mux        *http.ServeMux
	routes     map[string]*route
	operations []*operation
	registry   huma.Registry
	document   []byte // OpenAPI without servers, with a place for them
	limiter    *limiter
	origins    map[string]bool
	timing     timing

	largeBodies chan struct{} // one place for each that is being taken apart

	base     context.Context // ends when answers are cut
	cut      context.CancelFunc
	draining atomic.Bool

	mu      sync.Mutex
	active  int           // requests on their way
	idle    chan struct{} // closed when active falls to 0 while draining
	working map[string]*claim
}

// ValidateStrictCasing is a setting of the validator for the whole process:
// member names are exact.
func init() { huma.ValidateStrictCasing = true }

// New builds the API.
func New(o Options) (*Server, error) {
	if o.BodyLimit == 0 {
		o.BodyLimit = defaultBodyLimit
	}
	if o.Ready == nil {
		o.Ready = func() bool { return true }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.PathPrefix = strings.TrimRight(o.PathPrefix, "/")
	if o.PathPrefix != "" && !strings.HasPrefix(o.PathPrefix, "/") {
		return nil, fmt.Errorf("path prefix %q must begin with a slash", o.PathPrefix)
	}
	o.PublicURL = strings.TrimRight(o.PublicURL, "/")

	s := &Server{
		opts: o, control: o.Control, auth: o.Auth, signer: o.Signer, store: o.Store, log: o.Log,
		routes:   map[string]*route{},
		registry: huma.NewMapRegistry("#/components/schemas/", schemaName),
		limiter:  newLimiter(o.RateLimit),
		origins:  map[string]bool{},
		timing:   contractTiming,
		idle:     make(chan struct{}),
		working:  map[string]*claim{},

		largeBodies: make(chan struct{}, largeBodiesMax),
	}
	s.base, s.cut = context.WithCancel(context.Background())
	for _, origin := range o.CORSOrigins {
		s.origins[strings.TrimRight(origin, "/")] = true
	}

	s.addDiscovery()
	s.addProjects()
	s.addUsage()
	s.addKeys()
	s.addTemplates()
	s.addSandboxes()
	s.addCommands()
	s.addFiles()
	s.addArtifacts()
	s.addAudit()

	var err error
	if s.document, err = s.buildDocument(); err != nil {
		return nil, fmt.Errorf("building the OpenAPI document: %w", err)
	}
	s.mux = http.NewServeMux()
	for path, rt := range s.routes {
		rt.allow = rt.allowed()
		s.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			s.serveRoute(rt, w.(*responseWriter).rq, r)
		})
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		rq := w.(*responseWriter).rq
		s.writeError(rq, noSuch("route"))
	})
	return s, nil
}

// Drain waits until no request is on its way, or until ctx ends; then it cuts
// what is left. Accepted work goes on without its answers.
func (s *Server) Drain(ctx context.Context) error {
	if !s.draining.Swap(true) {
		s.mu.Lock()
		if s.active == 0 {
			close(s.idle)
		}
		s.mu.Unlock()
	}
	defer s.cut()
	select {
	case <-s.idle:
		return nil
	case <-ctx.Done():
	}
	s.cut()
	// Cut handlers return at once, unless they sit in a write, which has a
	// deadline of its own.
	grace := time.NewTimer(time.Second)
	defer grace.Stop()
	select {
	case <-s.idle:
		return nil
	case <-grace.C:
		return fmt.Errorf("draining the API: %w", ctx.Err())
	}
}

// Close cuts every answer at once.
func (s *Server) Close() { s.cut() }

// enter and leave count the requests on their way, for Drain.
func (s *Server) enter() {
	s.mu.Lock()
	s.active++
	s.mu.Unlock()
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	if s.active == 0 && s.draining.Load() {
		select {
		case <-s.idle: // a request that came late
		default:
			close(s.idle)
		}
	}
}
