package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

const (
	// trustFor is how long an answer of the store is believed. It bounds how late a
	// revocation by another process takes effect.
	trustFor = 900 * time.Millisecond
	// maxCached bounds the cache of keys.
	maxCached = 10_000
	// flushEvery is how often last uses are written.
	flushEvery = 10 * time.Second
	// flushTimeout bounds the write of last uses at the end.
	flushTimeout = 5 * time.Second
)

// Authenticator resolves presented keys. Close has to be called.
type Authenticator struct {
	store store.Store
	log   *slog.Logger
	now   func() time.Time

	mu     sync.Mutex
	epoch  uint64             // rises with every Forget
	keys   map[string]*cached // by hash and by id
	used   map[string]time.Time
	closed chan struct{}
	work   sync.WaitGroup
}

// cached is a key that was live when the store was asked.
type cached struct {
	principal Principal
	hash      string
	asked     time.Time
}

// NewAuthenticator returns an authenticator over a store.
func NewAuthenticator(s store.Store, log *slog.Logger) *Authenticator {
	a := &Authenticator{
		store:  s,
		log:    log,
		now:    time.Now,
		keys:   map[string]*cached{},
		used:   map[string]time.Time{},
		closed: make(chan struct{}),
	}
	a.work.Go(a.flushLoop)
	return a
}

// Authenticate resolves a presented secret, and remembers that its key was used.
// A secret that is no live key of this server is invalid_api_key.
func (a *Authenticator) Authenticate(ctx context.Context, secret string) (Principal, error) {
	if secret == "" {
		return Principal{}, sandbox.NewError(sandbox.CodeUnauthorized, "an API key is required")
	}
	if !wellFormed(secret) {
		return Principal{}, errInvalidKey()
	}
	hash := Hash(secret)
	p, live, err := a.resolve(hash, func() (sandbox.Key, error) { return a.store.KeyByHash(ctx, hash) })
	if err != nil {
		return Principal{}, fmt.Errorf("resolving a key: %w", err)
	}
	if !live {
		return Principal{}, errInvalidKey()
	}
	a.mu.Lock()
	a.used[p.KeyID] = a.now()
	a.mu.Unlock()
	return p, nil
}

func errInvalidKey() error {
	return sandbox.NewError(sandbox.CodeInvalidAPIKey, "the API key is not valid")
}

// Live resolves a key that was presented earlier, for what outlives a request:
// streams and signed URLs. ok is false once the key is revoked.
func (a *Authenticator) Live(ctx context.Context, keyID string) (p Principal, ok bool, err error) {
	p, ok, err = a.resolve(keyID, func() (sandbox.Key, error) { return a.store.Key(ctx, keyID) })
	if err != nil {
		return Principal{}, false, fmt.Errorf("looking a key up: %w", err)
	}
	return p, ok, nil
}

// resolve answers from the cache under index, or asks the store.
func (a *Authenticator) resolve(index string, ask func() (sandbox.Key, error)) (Principal, bool, error) {
	asked := a.now()
	a.mu.Lock()
	epoch := a.epoch
	if c := a.keys[index]; c != nil && asked.Sub(c.asked) < trustFor {
		a.mu.Unlock()
		return c.principal, true, nil
	}
	a.mu.Unlock()

	key, err := ask()
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return Principal{}, false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil || !key.RevokedAt.IsZero() {
		a.drop(a.keys[index])
		return Principal{}, false, nil
	}
	c := &cached{principal: principalOf(key), hash: key.Hash, asked: asked}
	// An answer that crossed a Forget may be older than the revocation.
	if epoch == a.epoch {
		a.keep(c)
	}
	return c.principal, true, nil
}

// keep remembers c under both of its names; a.mu is held.
func (a *Authenticator) keep(c *cached) {
	if len(a.keys) >= 2*maxCached && a.keys[c.hash] == nil {
		for _, old := range a.keys { // any one will do: it is asked for again in a second anyway
			a.drop(old)
			break
		}
	}
	a.keys[c.hash] = c
	a.keys[c.principal.KeyID] = c
}

// drop forgets c, which may be nil; a.mu is held.
func (a *Authenticator) drop(c *cached) {
	if c == nil {
		return
	}
	delete(a.keys, c.hash)
	delete(a.keys, c.principal.KeyID)
}

// Forget makes a revocation take effect at once: nothing that was read before
// this call is believed after it.
func (a *Authenticator) Forget(keyID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.epoch++
	a.drop(a.keys[keyID])
}

// Close writes the last uses and stops.
func (a *Authenticator) Close() error {
	close(a.closed)
	a.work.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	return a.flush(ctx)
}

func (a *Authenticator) flushLoop() {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		select {
		case <-a.closed:
			return
		case <-tick.C:
			if err := a.flush(ctx); err != nil {
				a.log.WarnContext(ctx, "recording the last uses of keys failed", "error", err)
			}
		}
	}
}

// flush writes the last uses; what cannot be written is kept for the next time.
func (a *Authenticator) flush(ctx context.Context) error {
	a.mu.Lock()
	used := a.used
	a.used = map[string]time.Time{}
	a.mu.Unlock()
	if len(used) == 0 {
		return nil
	}
	err := a.store.Update(ctx, func(tx store.Tx) error { return tx.TouchKeys(ctx, used) })
	if err != nil {
		a.mu.Lock()
		maps.Copy(used, a.used) // the newer ones win
		a.used = used
		a.mu.Unlock()
		return fmt.Errorf("recording the last uses of keys: %w", err)
	}
	return nil
}
