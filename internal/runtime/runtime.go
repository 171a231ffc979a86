// Package runtime says what it takes to make a sandbox exist. A Driver starts
// isolated instances, hands back one byte stream to the guest inside each, and
// removes them again. It knows nothing of commands, files, previews, projects or
// HTTP: that smallness is what makes one machine and many machines interchangeable.
//
// The conformance suite in runtimetest runs against every driver.
package runtime

import (
	"context"
	"errors"
	"net"
	"time"

	"crownest.dev/crownest/internal/sandbox"
)

// Errors that a Driver returns, wrapped with what was being done.
var (
	// ErrNotFound says that the driver has no such instance, or has it no longer.
	ErrNotFound = errors.New("no such instance")
	// ErrCapacity says that the host is full.
	ErrCapacity = errors.New("no capacity left on this host")
	// ErrNoImage says that the image of the template version is not there (yet).
	ErrNoImage = errors.New("template image not available")
	// ErrClosed says that the driver is shutting down.
	ErrClosed = errors.New("driver is closed")
)

// Spec says what instance is wanted.
type Spec struct {
	// ImageID names the template version (tplv_...); pooled instances are kept per ImageID.
	ImageID string
	// ImagePath is the root file system image on this host.
	ImagePath string
	Resources sandbox.Resources
}

// Instance is one isolated machine that runs the guest as PID 1.
type Instance struct {
	// ID is the driver's own name for it: [a-z0-9-], at most 40 characters.
	ID        string
	ImageID   string
	Resources sandbox.Resources
	CreatedAt time.Time
	// Claimed is false while the instance waits in the pool.
	Claimed bool
	// Ended says that the instance does not run: an earlier server process left
	// it half made, or it ended by itself. All that is left to do is Release.
	Ended bool
	// Outdated says that another build of the isolation runtime made the instance.
	// It still runs, but cannot be dialled for sure: end it as platform_cleanup.
	Outdated bool
}

// Stats is what the host measured about one instance, guest and sentry included.
type Stats struct {
	CPU         time.Duration
	MemoryBytes int64
	Processes   int
	DiskBytes   int64
	OOMKills    int64
}

// Exit says that an instance ended without having been released.
type Exit struct {
	ID    string
	Cause string // for operators: out of memory, crashed, ...
	At    time.Time
}

// Driver makes instances exist. All methods may be called concurrently, honour
// their context and return errors wrapped around those above where they apply.
type Driver interface {
	// Acquire claims an instance: a pooled one where there is one, else a fresh
	// one. The instance returned has passed the driver's Ready hook.
	Acquire(ctx context.Context, spec Spec) (Instance, error)
	// Dial opens a new connection to the guest of an instance, for use after a
	// restart or when the first one broke. A new connection supersedes the old.
	Dial(ctx context.Context, id string) (net.Conn, error)
	// Release ends an instance and removes all it held on the host. When it
	// returns nil no process of it is left. Releasing what is gone is no error.
	Release(ctx context.Context, id string) error
	// Stats measures one instance.
	Stats(ctx context.Context, id string) (Stats, error)
	// List returns every instance that exists, also those that an earlier server
	// process made: after a start the caller adopts or releases each of them.
	List(ctx context.Context) ([]Instance, error)
	// Prepare says which images are in demand and how many instances of each to
	// keep waiting at the most; the driver adapts below that. It returns at once.
	Prepare(specs []PoolTarget)
	// Exits delivers instances that ended by themselves. It is closed by Close.
	Exits() <-chan Exit
	// Capacity is the number of claimed instances this host can bear.
	Capacity() int
	// Close stops filling the pool and releases the instances nobody claimed.
	// Claimed ones live on.
	Close(ctx context.Context) error
}

// PoolTarget is one image and the most instances of it that should wait.
type PoolTarget struct {
	Spec Spec
	Max  int
}

// ReadyFunc is called by a driver with the first connection to a fresh instance,
// before the instance counts as started or enters the pool. The callee owns the
// connection from then on, also if it returns an error, after which the driver
// discards the instance.
type ReadyFunc func(ctx context.Context, in Instance, conn net.Conn) error
