// Package control holds the use cases: the life of sandboxes and commands, files,
// artifacts, keys, metering, audit and collection of what is no longer needed.
// It declares what it needs of the store, the runtime, the guest, the logs and
// the blobs, and knows nothing of HTTP, SQL or gVisor.
//
// One rule runs through it: the intent and the id of whatever is made are stored
// before the side effect, so that after a kill at any point Recover finds each
// half-made thing and finishes or removes it.
package control

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"crownest.dev/crownest/internal/blob"
	"crownest.dev/crownest/internal/cmdlog"
	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/template"
)

// Templates is what control needs of the template store.
type Templates interface {
	// Catalogue lists every template, built or not.
	Catalogue() []template.Entry
	// Current returns the version new sandboxes of the template get.
	Current(slug string) (template.Version, error)
	// Versions returns every version of the template on this host, newest first.
	Versions(slug string) ([]template.Version, error)
	// ByVersion returns a version by its tplv_ id.
	ByVersion(id string) (template.Version, error)
}

// Blobs keeps the bytes of artifacts.
type Blobs interface {
	// Put stores what it reads from r; more than max bytes is blob.ErrTooLarge. A
	// failed Put leaves nothing behind.
	Put(ctx context.Context, key string, r io.Reader, max int64) (blob.Object, error)
	// Open reads length bytes from offset; length -1 = to the end.
	Open(ctx context.Context, key string, offset, length int64) (blob.Reader, error)
	Delete(ctx context.Context, key string) error
	// Keys walks all keys.
	Keys(ctx context.Context, fn func(key string) error) error
}

// Config holds the limits of the service. DefaultConfig fills it.
type Config struct {
	DefaultTemplate string
	DefaultTTL      time.Duration
	MaxTTL          time.Duration // at create
	MaxSession      time.Duration // from create to the last extension's end
	IdleTimeout     time.Duration // 0 = idle sandboxes are not reclaimed
	// PoolSize is the most instances of the default template that wait for a
	// claim; of every other template a quarter as many wait.
	PoolSize int
	// ArtifactRetention and LogRetention count from creation and end; 0 = for ever.
	ArtifactRetention time.Duration
	LogRetention      time.Duration
	PricingVersion    string
	// ComputeUnitSecondsPerCredit and SandboxHourUSD make the price of a credit.
	ComputeUnitSecondsPerCredit float64
	SandboxHourUSD              float64
	Resources                   sandbox.Resources
}

// DefaultConfig is what a self-hosted server starts with.
func DefaultConfig() Config {
	return Config{
		DefaultTemplate:             "python-node",
		DefaultTTL:                  time.Hour,
		MaxTTL:                      time.Hour,
		MaxSession:                  168 * time.Hour,
		PoolSize:                    8,
		ArtifactRetention:           30 * 24 * time.Hour,
		LogRetention:                30 * 24 * time.Hour,
		PricingVersion:              "2026-01",
		ComputeUnitSecondsPerCredit: 1000,
		SandboxHourUSD:              0.12,
		Resources:                   sandbox.DefaultResources,
	}
}

// Options are the parts a Service works with.
type Options struct {
	Config    Config
	Store     store.Store
	Logs      cmdlog.Logs
	Blobs     Blobs
	Templates Templates
	// Connect makes a session over a fresh connection to a guest and owns conn.
	Connect func(ctx context.Context, conn net.Conn) (guest.Session, error)
	// KeyRevoked tells the authenticator that a key is gone.
	KeyRevoked func(keyID string)
	Log        *slog.Logger
}

// Service implements the use cases.
type Service struct {
	cfg        Config
	store      store.Store
	driver     runtime.Driver
	logs       cmdlog.Logs
	blobs      Blobs
	templates  Templates
	connect    func(ctx context.Context, conn net.Conn) (guest.Session, error)
	keyRevoked func(string)
	log        *slog.Logger

	ctx    context.Context // ends when the service stops
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	stopping bool
	live     map[string]*live         // by sandbox id
	running  map[string]*liveCommand  // by command id
	uploads  map[string]struct{}      // uploads whose bytes are arriving
	stash    map[string]guest.Session // sessions of instances nobody claimed yet
	denied   deniedSampler
}

// New returns a Service over a driver that makeDriver builds: the driver needs
// the service's ready hook, the service the driver.
func New(o Options, makeDriver func(runtime.ReadyFunc) (runtime.Driver, error)) (*Service, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{
		cfg: o.Config, store: o.Store, logs: o.Logs, blobs: o.Blobs,
		templates: o.Templates, connect: o.Connect, keyRevoked: o.KeyRevoked, log: o.Log,
		ctx: ctx, cancel: cancel,
		live:    map[string]*live{},
		running: map[string]*liveCommand{},
		uploads: map[string]struct{}{},
		stash:   map[string]guest.Session{},
	}
	if s.keyRevoked == nil {
		s.keyRevoked = func(string) {}
	}
	d, err := makeDriver(s.instanceReady)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("starting the runtime driver: %w", err)
	}
	s.driver = d
	return s, nil
}

// Start begins the background work. Recover must have returned before.
func (s *Service) Start() {
	s.RefreshPool()
	s.spawn(s.watchExits)
	s.spawn(s.janitor)
}

// RefreshPool tells the driver which images to keep instances of.
func (s *Service) RefreshPool() {
	var targets []runtime.PoolTarget
	for _, e := range s.templates.Catalogue() {
		v, err := s.templates.Current(e.Slug)
		if err != nil {
			continue // not built yet
		}
		// Waiting instances hold memory: most creates name no template.
		most := (s.cfg.PoolSize + 3) / 4
		if e.Slug == s.cfg.DefaultTemplate {
			most = s.cfg.PoolSize
		}
		targets = append(targets, runtime.PoolTarget{Spec: s.spec(v), Max: most})
	}
	s.driver.Prepare(targets)
}

func (s *Service) spec(v template.Version) runtime.Spec {
	return runtime.Spec{ImageID: v.ID, ImagePath: v.ImagePath, Resources: s.cfg.Resources}
}

// spawn runs fn in a goroutine that Close waits for. It reports false, and runs
// nothing, once the service is stopping.
func (s *Service) spawn(fn func(ctx context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		fn(s.ctx)
	}()
	return true
}

// Close stops the service and leaves claimed sandboxes and their commands
// running, for the next process to adopt.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	s.mu.Lock()
	for _, l := range s.live {
		l.stop()
	}
	for id, sess := range s.stash {
		_ = sess.Close() // unclaimed: the driver ends these instances
		delete(s.stash, id)
	}
	s.mu.Unlock()
	if err := s.driver.Close(ctx); err != nil {
		return fmt.Errorf("closing the runtime driver: %w", err)
	}
	return nil
}

// errStopping ends waits when the server stops; clients see a cut connection or
// a retryable answer and find the work going on after the restart.
var errStopping = sandbox.NewError(sandbox.CodeSandboxNotReady, "The server is restarting; try again.")

// now is the time as the contract counts it.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
