// Package server puts the parts together and runs them: store, logs, blobs,
// templates, the isolation runtime, the use cases and the HTTP side. It is the
// only package that knows all of them, and holds no logic of its own beyond the
// order in which they start and stop.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"crownest.dev/crownest/internal/api"
	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/blob"
	"crownest.dev/crownest/internal/cmdlog"
	"crownest.dev/crownest/internal/config"
	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/guest/embedded"
	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/runtime/local"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store/sqldb"
	"crownest.dev/crownest/internal/template"
	"crownest.dev/crownest/internal/version"
)

const (
	// drainTimeout is how long answers may take after SIGTERM before they are cut.
	drainTimeout = 10 * time.Second
	// stopTimeout bounds the rest of the way down.
	stopTimeout = 30 * time.Second

	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 64 << 10
)

// Options are what Run needs.
type Options struct {
	Config config.Config
	Log    *slog.Logger
	// Listening is called with the base URL once connections are accepted.
	Listening func(url string)
}

// Run serves until ctx ends, then drains: answers under way may finish for ten
// seconds, sandboxes and commands live on.
func Run(ctx context.Context, o Options) (err error) {
	s, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return s.serve(ctx)
}

// NewLogger makes the logger that the configuration asks for.
func NewLogger(c config.Config, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// OpenStore opens the database that the configuration names.
func OpenStore(ctx context.Context, c config.Config, log *slog.Logger) (*sqldb.DB, error) {
	dsn := c.Database
	if dsn == "" {
		if err := os.MkdirAll(c.Data, 0o700); err != nil {
			return nil, fmt.Errorf("making the data directory: %w", err)
		}
		dsn = filepath.Join(c.Data, "crownest.db")
	}
	db, err := sqldb.Open(ctx, dsn, log)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	return db, nil
}

// OpenTemplates opens the template store that the configuration names.
func OpenTemplates(c config.Config) (*template.Store, error) {
	dir := c.TemplateDir
	if dir == "" {
		var err error
		if dir, err = template.DefaultDir(); err != nil {
			return nil, err
		}
	}
	return template.Open(dir)
}

type server struct {
	cfg       config.Config
	log       *slog.Logger
	listening func(string)
	ready     atomic.Bool

	// closers end what open started, last first.
	closers   []func(context.Context) error
	api       *api.Server
	control   *control.Service
	templates *template.Store
}

func open(ctx context.Context, o Options) (_ *server, err error) {
	s := &server{cfg: o.Config, log: o.Log, listening: o.Listening}
	if s.templates, err = OpenTemplates(s.cfg); err != nil {
		return nil, err
	}
	if err := checkDefaultTemplate(s.templates, s.cfg.DefaultTemplate); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	proxies, err := parsePrefixes(s.cfg.TrustedProxies)
	if err != nil {
		return nil, err
	}
	db, err := OpenStore(ctx, s.cfg, s.log)
	if err != nil {
		return nil, err
	}
	s.onClose(func(context.Context) error { return db.Close() })
	org, _, err := auth.EnsureOrg(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("making the organisation: %w", err)
	}
	var dev *api.DevSessions
	if s.cfg.Dev {
		s.log.Warn("running with dev: whoever reaches this port from this machine can be an owner",
			"CROWNEST_ORG_ID", org.ID, "CROWNEST_USER_ID", org.OperatorUserID, "CROWNEST_ROLE", "owner")
		dev = &api.DevSessions{OrgID: org.ID, UserID: org.OperatorUserID}
	}
	keys := auth.NewAuthenticator(db, s.log)
	s.onClose(func(context.Context) error { return keys.Close() })
	signer, err := auth.NewSigner(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("loading the signing key: %w", err)
	}
	logs, err := cmdlog.Open(filepath.Join(s.cfg.Data, "logs"), cmdlog.Options{MaxBytes: s.cfg.CommandLogBytes})
	if err != nil {
		return nil, fmt.Errorf("opening the command logs: %w", err)
	}
	s.onClose(func(context.Context) error { return logs.Close() })
	blobs, err := blob.Open(ctx, filepath.Join(s.cfg.Data, "blobs"))
	if err != nil {
		return nil, fmt.Errorf("opening the artifact store: %w", err)
	}
	s.onClose(func(context.Context) error { return blobs.Close() })
	binary, err := embedded.Binary()
	if err != nil {
		return nil, err
	}
	s.control, err = control.New(control.Options{
		Config: controlConfig(s.cfg), Store: db, Logs: logs, Blobs: blobs, Templates: s.templates,
		Connect: func(ctx context.Context, conn net.Conn) (guest.Session, error) {
			return guest.NewClient(ctx, conn, guest.Options{})
		},
		KeyRevoked: keys.Forget, Log: s.log,
	}, func(ready runtime.ReadyFunc) (runtime.Driver, error) {
		return local.New(ctx, local.Options{
			DataDir: s.cfg.Data, Guest: binary, Ready: ready, MaxSandboxes: s.cfg.MaxSandboxes,
			MemoryReserve: s.cfg.MemoryReserve, Logger: s.log,
		})
	})
	if err != nil {
		return nil, err
	}
	s.onClose(s.control.Close)
	if err := s.control.Recover(ctx); err != nil {
		return nil, fmt.Errorf("recovering: %w", err)
	}
	s.api, err = api.New(api.Options{
		Control: s.control, Auth: keys, Signer: signer, Store: db, Log: s.log,
		PublicURL: s.cfg.PublicURL, TrustedProxies: proxies, CORSOrigins: s.cfg.CORSOrigins,
		BodyLimit: s.cfg.BodyLimitBytes, Dev: dev,
		RateLimit: api.RateLimit{PerMinute: s.cfg.RateLimitPerMinute, Burst: s.cfg.RateLimitBurst},
		Ready:     s.ready.Load, BootID: sandbox.NewSuffix(), Version: version.Version,
	})
	if err != nil {
		return nil, fmt.Errorf("building the API: %w", err)
	}
	return s, nil
}

func (s *server) onClose(fn func(context.Context) error) { s.closers = append(s.closers, fn) }

func (s *server) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i](ctx))
	}
	s.closers = nil
	return errors.Join(errs...)
}

// serve accepts connections until ctx ends, then drains.
func (s *server) serve(ctx context.Context) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", s.cfg.Listen, err)
	}
	httpServer := &http.Server{
		Handler: s.api, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaderBytes,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.control.Start()
	var background sync.WaitGroup
	bctx, stopBackground := context.WithCancel(ctx)
	defer func() {
		stopBackground()
		background.Wait()
	}()
	background.Go(func() { s.prepareTemplates(bctx) })

	failed := make(chan error, 1)
	go func() { failed <- httpServer.Serve(listener) }()
	if s.listening != nil {
		s.listening("http://" + listener.Addr().String())
	}
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	s.log.Info("draining", "atMost", drainTimeout)
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	// Long answers and streams are cut when the time is up; their work goes on.
	var drained sync.WaitGroup
	drained.Go(func() {
		if err := s.api.Drain(drain); err != nil {
			s.log.Info("answers were cut", "error", err)
		}
	})
	if err := httpServer.Shutdown(drain); err != nil {
		_ = httpServer.Close()
	}
	drained.Wait()
	s.api.Close()
	_ = <-failed // Serve tells that it was shut down
	return nil
}

// prepareTemplates builds what is missing, the default first, and declares the
// server ready as soon as sandboxes can be made from that one.
func (s *server) prepareTemplates(ctx context.Context) {
	order := []string{s.cfg.DefaultTemplate}
	for _, e := range s.templates.Catalogue() {
		if e.Slug != s.cfg.DefaultTemplate {
			order = append(order, e.Slug)
		}
	}
	for i, slug := range order {
		_, err := s.templates.Current(slug)
		if errors.Is(err, template.ErrNotBuilt) && s.cfg.BuildTemplates {
			s.log.Info("building a template; its first build takes minutes", "template", slug)
			_, err = s.templates.Build(ctx, slug, nil)
			if err == nil {
				s.control.RefreshPool()
			}
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, template.ErrNotBuilt):
			s.log.Info("template is not built; sandboxes cannot use it", "template", slug)
		case err != nil:
			s.log.Error("template could not be built; fix the cause and run `crownest templates build`", "template", slug, "error", err)
		case i == 0:
			s.ready.Store(true)
			s.log.Info("ready", "template", slug)
		}
	}
}

func controlConfig(c config.Config) control.Config {
	out := control.DefaultConfig()
	out.DefaultTemplate = c.DefaultTemplate
	out.MaxTTL, out.MaxSession, out.IdleTimeout = c.MaxTTL, c.MaxSession, c.IdleTimeout
	out.DefaultTTL = min(out.DefaultTTL, c.MaxTTL)
	out.PoolSize = c.Pool
	out.ArtifactRetention = time.Duration(c.ArtifactRetentionDays) * 24 * time.Hour
	out.LogRetention = time.Duration(c.LogRetentionDays) * 24 * time.Hour
	out.PricingVersion = c.PricingVersion
	out.ComputeUnitSecondsPerCredit, out.SandboxHourUSD = c.ComputeUnitSecondsPerCredit, c.SandboxHourUSD
	out.Resources = sandbox.Resources{VCPU: c.VCPU, MemoryBytes: c.MemoryBytes, DiskBytes: c.DiskBytes, MaxProcesses: c.MaxProcesses}
	return out
}

// checkDefaultTemplate refuses a name that could never become ready.
func checkDefaultTemplate(t *template.Store, slug string) error {
	var known []string
	for _, e := range t.Catalogue() {
		if e.Slug == slug {
			return nil
		}
		known = append(known, e.Slug)
	}
	return fmt.Errorf("configuration: default_template %q: no such template; use one of %s", slug, strings.Join(known, ", "))
}

func parsePrefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range list {
		if !strings.Contains(text, "/") {
			if a, err := netip.ParseAddr(text); err == nil {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
				continue
			}
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("configuration: trusted_proxies: %w", err)
		}
		out = append(out, p)
	}
	return out, nil
}
