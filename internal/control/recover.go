package control

import (
	"context"
	"fmt"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/sandbox"
	"golang.org/x/sync/errgroup"
)

// recoverParallel bounds how many forgotten instances are removed at a time.
const recoverParallel = 4

// Recover brings the records and what really runs on the host together: it adopts
// sandboxes and commands that live on, finishes what was half done, and removes
// what no record knows. It must return before any call is served.
func (s *Service) Recover(ctx context.Context) error {
	instances, err := s.driver.List(ctx)
	if err != nil {
		return fmt.Errorf("listing instances: %w", err)
	}
	byID := make(map[string]runtime.Instance, len(instances))
	for _, in := range instances {
		byID[in.ID] = in
	}
	active, err := s.store.ActiveSandboxes(ctx)
	if err != nil {
		return fmt.Errorf("listing active sandboxes: %w", err)
	}
	adopted := 0
	for _, sb := range active {
		in, exists := byID[sb.RuntimeID]
		delete(byID, sb.RuntimeID)
		if err := s.recoverSandbox(ctx, sb, in, exists); err != nil {
			return err
		}
		if exists {
			adopted++
		}
	}
	var g errgroup.Group
	g.SetLimit(recoverParallel)
	for id := range byID {
		g.Go(func() error {
			if err := s.driver.Release(ctx, id); err != nil {
				return fmt.Errorf("removing forgotten instance %s: %w", id, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(active) > 0 || len(byID) > 0 {
		s.log.Info("recovered", "sandboxes", len(active), "adopted", adopted, "removed", len(byID))
	}
	return nil
}

func (s *Service) recoverSandbox(ctx context.Context, sb sandbox.Sandbox, in runtime.Instance, exists bool) error {
	l := newLive(sb.ID)
	s.mu.Lock()
	s.live[sb.ID] = l
	s.mu.Unlock()
	if sb.Status == sandbox.StatusCreating || sb.Status == sandbox.StatusStarting {
		// Nothing ran in it yet: make it once more.
		if err := s.recoverCommands(ctx, l); err != nil {
			return err
		}
		recorded := make(chan error, 1)
		recorded <- nil
		s.spawn(func(ctx context.Context) { s.provision(ctx, sb, l, recorded) })
		return nil
	}
	l.runtimeID = sb.RuntimeID
	close(l.ready)
	cause := endCause{status: sandbox.StatusDestroyed, reason: sandbox.ReasonPlatformCleanup}
	switch {
	case sb.Status == sandbox.StatusExpiring:
		cause.reason = sb.DestroyedReason
		if sb.FailureCause != "" && sb.ReadyAt.IsZero() {
			cause.status = sandbox.StatusFailed
		}
		s.beginEnd(l, cause)
	case !exists || in.Ended:
		cause.detail = "the instance was gone after a restart of the server"
		s.beginEnd(l, cause)
	case in.Outdated:
		cause.detail = "the instance runs under another version of the isolation layer"
		s.beginEnd(l, cause)
	default:
		s.armDeadline(l, sb.ExpiresAt)
	}
	return s.recoverCommands(ctx, l)
}

// recoverCommands takes up the commands of a sandbox that had not ended.
func (s *Service) recoverCommands(ctx context.Context, l *live) error {
	commands, err := s.store.ActiveCommands(ctx, l.id)
	if err != nil {
		return fmt.Errorf("listing commands of %s: %w", l.id, err)
	}
	for _, cmd := range commands {
		if cmd.StartedAt.IsZero() {
			cmd.StartedAt = cmd.CreatedAt
		}
		// A command that waited in the queue lost its environment with the old
		// process; the guest does not know it, and so it ends as failed.
		s.launch(l, cmd, s.resumeCommand)
	}
	return nil
}
