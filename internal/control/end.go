package control

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/template"
)

// endCause says how and why a sandbox ends.
type endCause struct {
	status sandbox.Status // destroyed or failed
	reason sandbox.DestroyedReason
	call   *Call  // who asked; nil = the system
	detail string // for operators
}

// KillSandbox ends a sandbox. When it returns no process of it is left.
func (s *Service) KillSandbox(ctx context.Context, c Call, id string) (sandbox.Sandbox, error) {
	sb, err := s.visibleSandbox(ctx, c, id)
	if err != nil || !sb.Status.Active() {
		return sb, err // killing what has ended changes nothing
	}
	if l := s.lookupLive(id); l != nil {
		s.beginEnd(l, endCause{status: sandbox.StatusDestroyed, reason: sandbox.ReasonUserKilled, call: &c})
		select {
		case <-l.ended:
		case <-s.ctx.Done():
			return sb, errStopping
		case <-ctx.Done():
			return sb, ctx.Err()
		}
	}
	return s.visibleSandbox(ctx, c, id)
}

// beginEnd starts the end of a sandbox; the first cause wins and later calls do
// nothing. l.ended is closed when the end is recorded.
func (s *Service) beginEnd(l *live, cause endCause) {
	l.mu.Lock()
	if l.reason != "" {
		l.mu.Unlock()
		return
	}
	l.reason = cause.reason
	close(l.gone)
	if l.deadline != nil {
		l.deadline.Stop()
	}
	cancel := l.cancelP
	l.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	// A refusal means that the server stops: the next one finds the record, as
	// ready or expiring, and decides again.
	s.spawn(func(ctx context.Context) { s.finishEnd(ctx, l, cause) })
}

// finishEnd sees the end of a sandbox through. It survives the stop of the server
// only as far as single steps go; Recover takes up what is left.
func (s *Service) finishEnd(ctx context.Context, l *live, cause endCause) {
	work := context.WithoutCancel(ctx)
	ok := s.retry(ctx, "recording that the sandbox ends", l.id, func() error {
		return s.modify(work, l.id, func(_ store.Tx, r *sandbox.Sandbox) error {
			if r.Status.Active() && r.Status != sandbox.StatusExpiring {
				r.Status, r.DestroyedReason, r.FailureCause = sandbox.StatusExpiring, cause.reason, cause.detail
			}
			return nil
		})
	})
	<-l.ready // provisioning was told to give up
	if ok && l.runtimeID != "" {
		ok = s.retry(ctx, "releasing the instance", l.id, func() error {
			rctx, cancel := context.WithTimeout(work, time.Minute)
			defer cancel()
			return s.driver.Release(rctx, l.runtimeID)
		})
	}
	if !ok {
		return
	}
	l.stop()
	if !s.awaitCommands(ctx, l.id) {
		return
	}
	if !s.retry(ctx, "recording the end", l.id, func() error { return s.recordEnd(work, l.id, cause) }) {
		return
	}
	s.unregister(l)
	close(l.ended)
}

// retry repeats what must succeed until it does or the server stops.
func (s *Service) retry(ctx context.Context, what, id string, fn func() error) bool {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		err := fn()
		if err == nil {
			return true
		}
		s.log.Error(what+" failed, will be tried again", "id", id, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false
		}
	}
}

// recordEnd writes the final state, the rest of the bill and the tombstone.
func (s *Service) recordEnd(ctx context.Context, id string, cause endCause) error {
	return s.modify(ctx, id, func(tx store.Tx, r *sandbox.Sandbox) error {
		if !r.Status.Active() {
			return nil
		}
		r.Status, r.DestroyedAt = cause.status, now()
		if r.DestroyedReason == "" {
			r.DestroyedReason = cause.reason
		}
		if cause.status == sandbox.StatusFailed {
			r.DestroyedReason = ""
		}
		orphans, err := tx.ActiveCommands(ctx, id)
		if err != nil {
			return fmt.Errorf("finding commands that still run: %w", err)
		}
		for _, cmd := range orphans {
			killCommand(&cmd, r.DestroyedAt)
			if err := tx.UpdateCommand(ctx, cmd); err != nil && !errors.Is(err, store.ErrConflict) {
				return fmt.Errorf("recording the end of command %s: %w", cmd.ID, err)
			}
		}
		if e, ok := s.meter(r, r.DestroyedAt); ok {
			if err := tx.InsertUsage(ctx, e); err != nil {
				return fmt.Errorf("metering: %w", err)
			}
		}
		tombstone, err := s.tombstone(ctx, tx, *r, cause)
		if err != nil {
			return err
		}
		return tx.AppendAudit(ctx, tombstone)
	})
}

func (s *Service) tombstone(ctx context.Context, tx store.Tx, r sandbox.Sandbox, cause endCause) (sandbox.AuditEvent, error) {
	commands, err := tx.CommandTotals(ctx, r.ID)
	if err != nil {
		return sandbox.AuditEvent{}, fmt.Errorf("counting commands: %w", err)
	}
	written, err := tx.UsageOfResource(ctx, r.ID, sandbox.MetricFileBytesWritten)
	if err != nil {
		return sandbox.AuditEvent{}, fmt.Errorf("summing bytes written: %w", err)
	}
	action, by := "sandbox.expire", "system"
	switch {
	case cause.status == sandbox.StatusFailed, cause.reason == sandbox.ReasonPlatformCleanup:
		action = "sandbox.fail"
	case cause.reason == sandbox.ReasonUserKilled:
		action = "sandbox.kill"
	}
	call := Call{}
	if cause.call != nil {
		call, by = *cause.call, cause.call.ActorID()
	}
	metadata := map[string]any{}
	for k, v := range r.Metadata {
		metadata[k] = v
	}
	details := map[string]any{
		"template": r.TemplateSlug, "templateVersionId": r.TemplateVersionID, "metadata": metadata,
		"lifetimeMs": r.DestroyedAt.Sub(r.CreatedAt).Milliseconds(), "endedBy": by,
		"commands": commands, "fileBytesWritten": int64(written),
		"computeUnitSeconds": computeUnits(r.MeteredMs, r.ComputeMultiplier),
	}
	if r.DestroyedReason != "" {
		details["reason"] = string(r.DestroyedReason)
	}
	e := s.auditEvent(call, action, "sandbox", r.ID, r.ProjectID, details)
	if cause.call == nil {
		e.OrgID = r.OrgID
	}
	return e, nil
}

// meter moves the meter of a sandbox up to t and returns the event to record.
func (s *Service) meter(r *sandbox.Sandbox, t time.Time) (sandbox.UsageEvent, bool) {
	if r.ReadyAt.IsZero() {
		return sandbox.UsageEvent{}, false
	}
	if t.After(r.ExpiresAt) {
		t = r.ExpiresAt
	}
	total := t.Sub(r.ReadyAt).Milliseconds()
	if total <= r.MeteredMs {
		return sandbox.UsageEvent{}, false
	}
	// The difference of rounded totals, so that the parts add up to the whole.
	amount := computeUnits(total, r.ComputeMultiplier) - computeUnits(r.MeteredMs, r.ComputeMultiplier)
	r.MeteredMs = total
	return s.usageEvent(*r, sandbox.MetricComputeUnitSeconds, math.Round(amount*1000)/1000), true
}

// computeUnits turns metered milliseconds into compute unit seconds, three decimals.
func computeUnits(ms int64, multiplier float64) float64 {
	return math.Round(float64(ms)*multiplier) / 1000
}

// armDeadline makes the sandbox end at t.
func (s *Service) armDeadline(l *live, t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reason != "" {
		return
	}
	if l.deadline != nil {
		l.deadline.Stop()
	}
	l.deadline = time.AfterFunc(time.Until(t), func() {
		s.spawn(func(ctx context.Context) { s.expire(ctx, l) })
	})
}

// expire ends a sandbox whose time is up. The record decides: an extension that
// was acknowledged holds, and once expiring is written none is.
func (s *Service) expire(ctx context.Context, l *live) {
	var until time.Time
	ok := s.retry(ctx, "expiring a sandbox", l.id, func() error {
		return s.modify(ctx, l.id, func(_ store.Tx, r *sandbox.Sandbox) error {
			until = r.ExpiresAt
			if r.Status.Active() && r.Status != sandbox.StatusExpiring && !until.After(time.Now()) {
				r.Status, r.DestroyedReason = sandbox.StatusExpiring, sandbox.ReasonTTLExpired
			}
			return nil
		})
	})
	switch {
	case !ok:
		// The next process finds the record.
	case until.After(time.Now()):
		s.armDeadline(l, until)
	default:
		s.beginEnd(l, endCause{status: sandbox.StatusDestroyed, reason: sandbox.ReasonTTLExpired})
	}
}

// watchExits ends sandboxes whose instance ended by itself.
func (s *Service) watchExits(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case exit, ok := <-s.driver.Exits():
			if !ok {
				return
			}
			l := s.liveByRuntime(exit.ID)
			if l == nil {
				continue
			}
			s.log.Warn("instance ended by itself", "sandbox", l.id, "instance", exit.ID, "cause", exit.Cause)
			s.beginEnd(l, endCause{
				status: sandbox.StatusDestroyed, reason: sandbox.ReasonPlatformCleanup, detail: exit.Cause,
			})
		}
	}
}

func (s *Service) liveByRuntime(runtimeID string) *live {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.live {
		select {
		case <-l.ready:
			if l.runtimeID == runtimeID {
				return l
			}
		default: // runtimeID is not settled yet; provisioning will notice
		}
	}
	return nil
}

func (s *Service) binding(sb sandbox.Sandbox) guest.Binding {
	return guest.Binding{
		SandboxID: sb.ID,
		Hostname:  "sandbox",
		// The guest sets HOME, USER, SHELL and LANG by itself; named here they would
		// make every command start a shell of its own.
		Env: []string{
			"CROWNEST=1",
			"CROWNEST_SANDBOX_ID=" + sb.ID,
			"CROWNEST_PROJECT_ID=" + sb.ProjectID,
			"CROWNEST_TEMPLATE=" + sb.TemplateSlug,
			"PATH=" + template.Path,
		},
		MaxProcesses: sb.Resources.MaxProcesses,
		Now:          time.Now(),
	}
}
