package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/template"
)

const (
	workspace = "/workspace"
	// readyWait bounds how long a create, and readyWaitOther how long another
	// call, waits for a sandbox to become usable.
	readyWait      = 20 * time.Second
	readyWaitOther = 30 * time.Second
	// provisionTimeout bounds the states creating and starting.
	provisionTimeout = 2 * time.Minute
)

// CreateSandbox makes a sandbox and answers once it is usable.
func (s *Service) CreateSandbox(ctx context.Context, c Call, in CreateSandboxInput) (sandbox.Sandbox, error) {
	var none sandbox.Sandbox
	id := sandbox.ID(sandbox.PrefixSandbox, c.OperationID)
	switch _, err := s.store.Sandbox(ctx, id); {
	case err == nil:
		return s.awaitCreated(ctx, id)
	case !errors.Is(err, store.ErrNotFound):
		return none, fmt.Errorf("looking for an earlier sandbox of the same operation: %w", err)
	}
	sb, err := s.newSandbox(ctx, c, id, in)
	if err != nil {
		return none, err
	}
	l, err := s.register(sb.ID)
	if err != nil {
		return none, err
	}
	// The record is written while an instance is claimed and bound. A crash between
	// the two leaves an instance that no record names, which Recover removes.
	recorded := make(chan error, 1)
	if !s.spawn(func(ctx context.Context) { s.provision(ctx, sb, l, recorded) }) {
		s.unregister(l)
		return none, errStopping
	}
	create := s.auditEvent(c, "sandbox.create", "sandbox", sb.ID, sb.ProjectID, map[string]any{"template": sb.TemplateSlug})
	err = s.store.Update(ctx, func(tx store.Tx) error {
		if err := tx.InsertSandbox(ctx, sb); err != nil {
			return err
		}
		if err := tx.InsertUsage(ctx, s.usageEvent(sb, sandbox.MetricSandboxCreates, 1)); err != nil {
			return err
		}
		return tx.AppendAudit(ctx, create)
	})
	recorded <- err
	if err != nil {
		return none, fmt.Errorf("recording sandbox %s: %w", id, err)
	}
	return s.awaitCreated(ctx, id)
}

// newSandbox validates the input and returns the record to store.
func (s *Service) newSandbox(ctx context.Context, c Call, id string, in CreateSandboxInput) (sandbox.Sandbox, error) {
	var none sandbox.Sandbox
	if in.RestoreFrom != "" {
		return none, sandbox.NewError(sandbox.CodeFeatureNotEnabled, "Backups are not enabled on this server; leave restoreFrom out.")
	}
	ttl := s.cfg.DefaultTTL
	if in.TTLMs != nil {
		if *in.TTLMs < 1 {
			return none, sandbox.NewError(sandbox.CodeInvalidRequest, "ttlMs must be an integer of at least 1.").With("field", "ttlMs")
		}
		if *in.TTLMs > s.cfg.MaxTTL.Milliseconds() {
			return none, errTTL(s.cfg.MaxTTL)
		}
		ttl = time.Duration(*in.TTLMs) * time.Millisecond
	}
	if err := ValidateMetadata(in.Metadata); err != nil {
		return none, err
	}
	network, err := validateNetwork(in.Network)
	if err != nil {
		return none, err
	}
	project, err := s.resolveProject(ctx, c, in.ProjectID)
	if err != nil {
		return none, err
	}
	version, err := s.resolveTemplate(in.Template, in.TemplateVersionID)
	if err != nil {
		return none, err
	}
	created := now()
	return sandbox.Sandbox{
		ID: id, OrgID: c.OrgID, ProjectID: project.ID, Status: sandbox.StatusCreating,
		TemplateID: version.TemplateID, TemplateSlug: version.Slug,
		TemplateVersion: version.Version, TemplateVersionID: version.ID,
		TTL: ttl, CreatedAt: created, ExpiresAt: created.Add(ttl), Metadata: in.Metadata,
		Network: network, Resources: s.cfg.Resources, ComputeMultiplier: version.ComputeMultiplier,
	}, nil
}

// register makes room for one more live sandbox, or says that there is none.
func (s *Service) register(id string) (*live, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, errStopping
	}
	if n := s.driver.Capacity(); len(s.live) >= n {
		return nil, sandbox.NewError(sandbox.CodeCapacityExhausted,
			"This host runs as many sandboxes as it can bear (%d); end some, or try again later.", n).With("limit", n)
	}
	l := newLive(id)
	s.live[id] = l
	return l, nil
}

func (s *Service) unregister(l *live) {
	s.mu.Lock()
	delete(s.live, l.id)
	s.mu.Unlock()
}

// awaitCreated waits until the sandbox is ready, or long enough that the client
// should look again by itself.
func (s *Service) awaitCreated(ctx context.Context, id string) (sandbox.Sandbox, error) {
	if l := s.lookupLive(id); l != nil {
		timer := time.NewTimer(readyWait)
		defer timer.Stop()
		select {
		case <-l.ready:
		case <-timer.C:
		case <-ctx.Done():
			return sandbox.Sandbox{}, ctx.Err()
		case <-s.ctx.Done():
			return sandbox.Sandbox{}, errStopping
		}
		select {
		case <-l.ready:
			l.mu.Lock()
			err := l.err
			l.mu.Unlock()
			if sandbox.CodeCapacityExhausted.Is(err) {
				return sandbox.Sandbox{}, err
			}
			if err != nil {
				s.awaitEnd(ctx, l)
			}
		default:
		}
	}
	sb, err := s.store.Sandbox(ctx, id)
	if err != nil {
		return sb, fmt.Errorf("reading sandbox %s: %w", id, err)
	}
	if sb.Status == sandbox.StatusFailed {
		return sb, sandbox.NewError(sandbox.CodeInternal, "The sandbox could not be started.").With("sandboxId", id)
	}
	return sb, nil
}

// awaitEnd waits until the end of a sandbox is recorded.
func (s *Service) awaitEnd(ctx context.Context, l *live) {
	select {
	case <-l.ended:
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
}

// provision turns a sandbox into a usable one, or into a failed one. recorded
// delivers whether its record was written; without one there is no sandbox.
func (s *Service) provision(ctx context.Context, sb sandbox.Sandbox, l *live, recorded <-chan error) {
	ctx, cancel := context.WithTimeout(ctx, provisionTimeout)
	defer cancel()
	l.mu.Lock()
	l.cancelP = cancel
	l.mu.Unlock()
	if l.isGone() { // killed before it began
		cancel()
	}
	err := s.bindInstance(ctx, sb, l)
	if unrecorded := <-recorded; unrecorded != nil {
		s.discard(l, unrecorded)
		return
	}
	var expires time.Time // as of now: it may have been extended meanwhile
	if err == nil {
		expires, err = s.recordReady(ctx, sb.ID, l.runtimeID)
	}
	if err == nil {
		s.armDeadline(l, expires)
		close(l.ready)
		return
	}
	l.mu.Lock()
	l.err = err
	l.mu.Unlock()
	close(l.ready)
	switch {
	case s.ctx.Err() != nil:
		// The next process finds the record and goes on.
	case l.isGone():
		// Whoever ends it records the end.
	default:
		s.log.Error("sandbox could not be started", "sandbox", sb.ID, "error", err)
		s.beginEnd(l, endCause{status: sandbox.StatusFailed, reason: sandbox.ReasonPlatformCleanup, detail: err.Error()})
	}
}

// discard undoes what was done for a sandbox that could not be recorded.
func (s *Service) discard(l *live, cause error) {
	l.mu.Lock()
	l.err = cause
	l.mu.Unlock()
	if l.runtimeID != "" {
		s.retry(s.ctx, "releasing the instance of a sandbox without a record", l.id, func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), time.Minute)
			defer cancel()
			return s.driver.Release(ctx, l.runtimeID)
		})
	}
	l.stop()
	close(l.ready)
	s.unregister(l)
}

// bindInstance claims an instance and makes it the sandbox's.
func (s *Service) bindInstance(ctx context.Context, sb sandbox.Sandbox, l *live) error {
	version, err := s.templates.ByVersion(sb.TemplateVersionID)
	if err != nil {
		return fmt.Errorf("finding template version %s: %w", sb.TemplateVersionID, err)
	}
	spec := s.spec(version)
	spec.Resources = sb.Resources
	in, err := s.driver.Acquire(ctx, spec)
	if err != nil {
		if errors.Is(err, runtime.ErrCapacity) {
			return sandbox.NewError(sandbox.CodeCapacityExhausted, "This host has no room for another sandbox now; try again later.").Because(err)
		}
		return fmt.Errorf("acquiring an instance: %w", err)
	}
	l.runtimeID = in.ID
	sess := s.takeStash(in.ID)
	if sess == nil {
		if sess, err = s.dial(ctx, in.ID); err != nil {
			return fmt.Errorf("connecting to the guest: %w", err)
		}
	}
	l.mu.Lock()
	l.session = sess
	l.mu.Unlock()
	if err := sess.Bind(ctx, s.binding(sb)); err != nil {
		return fmt.Errorf("binding the instance: %w", err)
	}
	return nil
}

func (s *Service) recordReady(ctx context.Context, id, runtimeID string) (expires time.Time, err error) {
	err = s.modify(ctx, id, func(_ store.Tx, r *sandbox.Sandbox) error {
		if r.Status != sandbox.StatusCreating && r.Status != sandbox.StatusStarting {
			return errDestroyed(id)
		}
		r.Status, r.RuntimeID, r.ReadyAt = sandbox.StatusReady, runtimeID, now()
		expires = r.ExpiresAt
		return nil
	})
	return expires, err
}

// modify changes a sandbox record in one transaction; fn sees the stored record.
func (s *Service) modify(ctx context.Context, id string, fn func(tx store.Tx, r *sandbox.Sandbox) error) error {
	return s.store.Update(ctx, func(tx store.Tx) error {
		r, err := tx.Sandbox(ctx, id)
		if err != nil {
			return fmt.Errorf("reading sandbox %s: %w", id, err)
		}
		if err := fn(tx, &r); err != nil {
			return err
		}
		if err := tx.UpdateSandbox(ctx, r); err != nil {
			return fmt.Errorf("writing sandbox %s: %w", id, err)
		}
		return nil
	})
}

// Sandboxes lists sandboxes that the caller may see.
func (s *Service) Sandboxes(ctx context.Context, c Call, in ListSandboxesInput) (Page[sandbox.Sandbox], error) {
	projects, err := s.projectFilter(c, in.ProjectID)
	if err != nil {
		return Page[sandbox.Sandbox]{}, err
	}
	f := store.SandboxFilter{
		OrgID: c.OrgID, ProjectIDs: projects, Historical: in.Historical,
		Metadata: in.Metadata, Page: in.Page,
	}
	page, err := paged(in.Page, func(p store.Page) ([]sandbox.Sandbox, error) {
		f.Page = p
		return s.store.Sandboxes(ctx, f)
	})
	if err != nil {
		return page, fmt.Errorf("listing sandboxes: %w", err)
	}
	for i := range page.Items {
		s.refine(&page.Items[i])
	}
	return page, nil
}

// Sandbox returns one sandbox, also one that has ended.
func (s *Service) Sandbox(ctx context.Context, c Call, id string) (sandbox.Sandbox, error) {
	sb, err := s.visibleSandbox(ctx, c, id)
	if err != nil {
		return sb, err
	}
	s.refine(&sb)
	return sb, nil
}

func (s *Service) refine(sb *sandbox.Sandbox) {
	if l := s.lookupLive(sb.ID); l != nil {
		sb.Status = l.status(sb.Status, s.cfg.IdleTimeout > 0)
	}
}

// visibleSandbox reads a record and hides what the caller may not see.
func (s *Service) visibleSandbox(ctx context.Context, c Call, id string) (sandbox.Sandbox, error) {
	sb, err := s.store.Sandbox(ctx, id)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return sb, errNotFound("sandbox", id)
	case err != nil:
		return sb, fmt.Errorf("reading sandbox %s: %w", id, err)
	case sb.OrgID != c.OrgID || !c.CanSeeProject(sb.ProjectID):
		return sandbox.Sandbox{}, errNotFound("sandbox", id)
	}
	return sb, nil
}

// liveSandbox returns a visible sandbox that takes work, usable or still starting.
func (s *Service) liveSandbox(ctx context.Context, c Call, id string) (sandbox.Sandbox, *live, error) {
	sb, err := s.visibleSandbox(ctx, c, id)
	if err != nil {
		return sb, nil, err
	}
	l := s.lookupLive(id)
	if sb.Status.Ended() || l == nil || l.isGone() {
		return sb, nil, errDestroyed(id)
	}
	return sb, l, nil
}

// usable waits until a sandbox is ready, at most for d.
func (s *Service) usable(ctx context.Context, l *live, d time.Duration) error {
	select {
	case <-l.ready:
	default:
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-l.ready:
		case <-timer.C:
			return sandbox.NewError(sandbox.CodeSandboxNotReady, "Sandbox %s is still starting; try again.", l.id)
		case <-s.ctx.Done():
			return errStopping
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil || l.isGone() {
		return errDestroyed(l.id)
	}
	return nil
}

// ExtendSandbox moves the end of a sandbox, counted from now, also downwards.
func (s *Service) ExtendSandbox(ctx context.Context, c Call, id string, ttlMs int64) (sandbox.Sandbox, error) {
	if ttlMs < 1 {
		return sandbox.Sandbox{}, sandbox.NewError(sandbox.CodeInvalidRequest, "ttlMs must be an integer of at least 1.").With("field", "ttlMs")
	}
	if _, err := s.visibleSandbox(ctx, c, id); err != nil {
		return sandbox.Sandbox{}, err
	}
	if ttlMs > s.cfg.MaxSession.Milliseconds() {
		return sandbox.Sandbox{}, errTTL(s.cfg.MaxSession)
	}
	_, l, err := s.liveSandbox(ctx, c, id)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	ttl := time.Duration(ttlMs) * time.Millisecond
	l.extend.Lock() // so that the timer is set in the order of the records
	defer l.extend.Unlock()
	var out sandbox.Sandbox
	err = s.modify(ctx, id, func(tx store.Tx, r *sandbox.Sandbox) error {
		if r.Status.Ended() || l.isGone() {
			return errDestroyed(id)
		}
		expires := now().Add(ttl)
		if left := s.cfg.MaxSession - time.Since(r.CreatedAt); expires.Sub(r.CreatedAt) > s.cfg.MaxSession {
			return errTTL(max(left, 0))
		}
		r.TTL, r.ExpiresAt = ttl, expires
		out = *r
		return tx.AppendAudit(ctx, s.auditEvent(c, "sandbox.extend", "sandbox", id, r.ProjectID, map[string]any{"ttlMs": ttlMs}))
	})
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	s.armDeadline(l, out.ExpiresAt)
	s.refine(&out)
	return out, nil
}

func errTTL(most time.Duration) *sandbox.Error {
	return sandbox.NewError(sandbox.CodeTTLExceeded, "ttlMs is above the most that is allowed here, %d.", most.Milliseconds()).
		With("maxTtlMs", most.Milliseconds())
}

// resolveTemplate picks the version of a new sandbox.
func (s *Service) resolveTemplate(slug, versionID string) (version template.Version, err error) {
	if versionID != "" {
		v, err := s.templates.ByVersion(versionID)
		if err != nil {
			return v, sandbox.NewError(sandbox.CodeNotFound, "No such template version: %s.", versionID)
		}
		if slug != "" && v.Slug != slug {
			return v, sandbox.NewError(sandbox.CodeInvalidRequest, "Template version %s is not one of template %s.", versionID, slug).With("field", "templateVersionId")
		}
		return v, nil
	}
	if slug == "" {
		slug = s.cfg.DefaultTemplate
	}
	known := false
	for _, e := range s.templates.Catalogue() {
		known = known || e.Slug == slug
	}
	if !known {
		return version, sandbox.NewError(sandbox.CodeNotFound, "No such template: %s.", slug)
	}
	v, err := s.templates.Current(slug)
	if err != nil {
		return v, sandbox.NewError(sandbox.CodeSandboxNotReady, "Template %s is not built yet; the operator builds it with `crownest templates build %s`.", slug, slug).Because(err)
	}
	return v, nil
}

// Bounds of contract section 5.1.
const (
	maxMetadataKeys  = 16
	maxMetadataValue = 512
	maxMetadataBytes = 4096
	maxAllowEntries  = 100
)

var metadataKey = regexp.MustCompile(`^[A-Za-z0-9_.:/-]{1,64}$`)

// ValidateMetadata checks metadata and source metadata against their limits.
func ValidateMetadata(m map[string]string) error {
	if len(m) > maxMetadataKeys {
		return sandbox.NewError(sandbox.CodeMetadataTooManyKeys, "metadata has %d keys; at most %d are allowed.", len(m), maxMetadataKeys).With("maxKeys", maxMetadataKeys)
	}
	total := 0
	for k, v := range m {
		if !metadataKey.MatchString(k) {
			return sandbox.NewError(sandbox.CodeInvalidMetadataKey, "metadata keys are 1 to 64 characters of A-Z a-z 0-9 _ . : / -.").With("key", strings.ToValidUTF8(k, "\uFFFD"))
		}
		if utf8.RuneCountInString(v) > maxMetadataValue {
			return sandbox.NewError(sandbox.CodeInvalidMetadataValue, "The metadata value of %s is longer than %d characters.", k, maxMetadataValue).With("key", k)
		}
		total += len(k) + len(v)
	}
	if total > maxMetadataBytes {
		return sandbox.NewError(sandbox.CodeMetadataTooLarge, "metadata is %d bytes in all; at most %d are allowed.", total, maxMetadataBytes).With("maxBytes", maxMetadataBytes)
	}
	return nil
}

var hostName = regexp.MustCompile(`^(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.?$`)

// validateNetwork checks a network policy. Egress is closed on this server: a
// policy that asks for any is refused rather than silently narrowed.
func validateNetwork(n *sandbox.Network) (sandbox.Network, error) {
	if n == nil || n.Egress == "" && len(n.Allow) == 0 {
		return sandbox.Network{Egress: sandbox.EgressNone}, nil
	}
	bad := func(format string, args ...any) (sandbox.Network, error) {
		return sandbox.Network{}, sandbox.NewError(sandbox.CodeInvalidRequest, format, args...).With("field", "network")
	}
	switch n.Egress {
	case sandbox.EgressNone, sandbox.EgressInternet, sandbox.EgressAllowlist:
	default:
		return bad("network.egress must be none, allowlist or internet.")
	}
	if len(n.Allow) > 0 && n.Egress != sandbox.EgressAllowlist {
		return bad("network.allow needs network.egress allowlist.")
	}
	if len(n.Allow) > maxAllowEntries {
		return bad("network.allow has %d entries; at most %d are allowed.", len(n.Allow), maxAllowEntries)
	}
	for _, entry := range n.Allow {
		if !validAllowEntry(entry) {
			return bad("network.allow entries are a host, *.domain, IP address or CIDR, each with an optional :port.")
		}
	}
	if n.Egress != sandbox.EgressNone {
		return sandbox.Network{}, sandbox.NewError(sandbox.CodeFeatureNotEnabled, "This server gives sandboxes no network; use egress none.")
	}
	return sandbox.Network{Egress: sandbox.EgressNone}, nil
}

func validAllowEntry(entry string) bool {
	if _, err := netip.ParsePrefix(entry); err == nil {
		return true
	}
	if _, err := netip.ParseAddr(entry); err == nil {
		return true
	}
	if _, err := netip.ParseAddrPort(entry); err == nil {
		return true
	}
	if i := strings.LastIndexByte(entry, ':'); i >= 0 {
		if port, err := strconv.Atoi(entry[i+1:]); err != nil || port < 1 || port > 65535 {
			return false
		}
		entry = entry[:i]
		if _, err := netip.ParsePrefix(entry); err == nil {
			return true
		}
	}
	return len(entry) <= 255 && hostName.MatchString(entry)
}
