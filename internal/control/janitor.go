package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

const (
	meterEvery   = time.Minute
	idleEvery    = 10 * time.Second
	collectEvery = time.Minute
	// janitorBatch bounds what one round removes, so that live work never waits long.
	janitorBatch = 200
)

// janitor meters live sandboxes, reclaims idle ones and removes what has expired.
func (s *Service) janitor(ctx context.Context) {
	s.sweepBlobs(ctx)
	meter, idle, collect := time.NewTicker(meterEvery), time.NewTicker(idleEvery), time.NewTicker(collectEvery)
	defer meter.Stop()
	defer idle.Stop()
	defer collect.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-meter.C:
			err = s.meterAll(ctx)
		case <-idle.C:
			s.reclaimIdle()
		case <-collect.C:
			err = errors.Join(s.expireArtifacts(ctx), s.expireLogs(ctx), s.pruneOperations(ctx))
		}
		if err != nil && ctx.Err() == nil {
			s.log.Error("housekeeping failed, will be tried again", "error", err)
		}
	}
}

// meterAll bills every ready sandbox up to now, so that a crash loses little and
// usage is current. Each sandbox is a transaction of its own: short ones let live
// work in between.
func (s *Service) meterAll(ctx context.Context) error {
	active, err := s.store.ActiveSandboxes(ctx)
	if err != nil {
		return fmt.Errorf("listing active sandboxes: %w", err)
	}
	for _, sb := range active {
		if s.lookupLive(sb.ID) == nil && time.Since(sb.CreatedAt) > provisionTimeout {
			// A record that nobody works on, left by a write whose outcome was unclear.
			if err := s.recoverSandbox(ctx, sb, runtime.Instance{}, false); err != nil {
				return fmt.Errorf("taking up %s: %w", sb.ID, err)
			}
			continue
		}
		if sb.Status != sandbox.StatusReady {
			continue
		}
		err := s.modify(ctx, sb.ID, func(tx store.Tx, r *sandbox.Sandbox) error {
			if r.Status != sandbox.StatusReady {
				return nil // its end does the rest
			}
			if e, ok := s.meter(r, now()); ok {
				return tx.InsertUsage(ctx, e)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("metering %s: %w", sb.ID, err)
		}
	}
	return nil
}

func (s *Service) reclaimIdle() {
	if s.cfg.IdleTimeout == 0 {
		return
	}
	s.mu.Lock()
	var idle []*live
	for _, l := range s.live {
		select {
		case <-l.ready:
		default:
			continue
		}
		l.mu.Lock()
		if l.active == 0 && time.Since(l.lastUse) > s.cfg.IdleTimeout {
			idle = append(idle, l)
		}
		l.mu.Unlock()
	}
	s.mu.Unlock()
	for _, l := range idle {
		s.beginEnd(l, endCause{status: sandbox.StatusDestroyed, reason: sandbox.ReasonIdleExpired})
	}
}

func (s *Service) expireArtifacts(ctx context.Context) error {
	expired, err := s.store.ExpiredArtifacts(ctx, now(), janitorBatch)
	if err != nil {
		return fmt.Errorf("finding expired artifacts: %w", err)
	}
	for _, a := range expired {
		err := s.store.Update(ctx, func(tx store.Tx) error { return tx.DeleteArtifact(ctx, a.ID, now()) })
		if err != nil {
			return fmt.Errorf("expiring artifact %s: %w", a.ID, err)
		}
		s.removeBlob(ctx, a.ObjectKey)
	}
	return nil
}

func (s *Service) expireLogs(ctx context.Context) error {
	if s.cfg.LogRetention == 0 {
		return nil
	}
	ids, err := s.store.ExpiredCommandLogs(ctx, now().Add(-s.cfg.LogRetention), janitorBatch)
	if err != nil {
		return fmt.Errorf("finding expired logs: %w", err)
	}
	for _, id := range ids {
		if err := s.logs.Drop(ctx, id); err != nil {
			return fmt.Errorf("dropping the log of %s: %w", id, err)
		}
		if err := s.store.Update(ctx, func(tx store.Tx) error { return tx.MarkCommandLogDropped(ctx, id) }); err != nil {
			return fmt.Errorf("recording the dropped log of %s: %w", id, err)
		}
	}
	return nil
}

func (s *Service) pruneOperations(ctx context.Context) error {
	return s.store.Update(ctx, func(tx store.Tx) error {
		_, err := tx.PruneOperations(ctx, now(), janitorBatch)
		return err
	})
}

// sweepBlobs removes bytes that a crash left without a record. It runs once,
// after a start; work of this process is younger than the start and left alone.
func (s *Service) sweepBlobs(ctx context.Context) {
	started := time.Now().UTC().Add(-time.Second)
	err := s.blobs.Keys(ctx, func(key string) error {
		id, ok := strings.CutPrefix(key, "artifacts/")
		if !ok || !olderThan(id, started) {
			return nil
		}
		a, err := s.store.Artifact(ctx, id)
		if err == nil && a.DeletedAt.IsZero() || err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return s.blobs.Delete(ctx, key)
	})
	if err != nil && ctx.Err() == nil {
		s.log.Error("sweeping unreferenced blobs failed; the next start tries again", "error", err)
	}
}

// olderThan compares the time inside an identifier, which sorts like its text.
func olderThan(id string, t time.Time) bool {
	return id < sandbox.IDAt(sandbox.PrefixArtifact, t)
}
