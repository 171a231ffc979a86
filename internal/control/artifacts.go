package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"path"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"crownest.dev/crownest/internal/blob"
	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

const (
	maxArtifactBytes = 5 << 30
	maxArtifactName  = 255
	maxPathBytes     = 4096
)

// validateItem checks what can be said of a collect item without the sandbox.
func validateItem(item sandbox.CollectItem) error {
	switch {
	case item.Path == "" || len(item.Path) > maxPathBytes:
		return sandbox.NewError(sandbox.CodeInvalidRequest, "path must be 1 to %d bytes.", maxPathBytes).With("field", "path")
	case strings.IndexByte(item.Path, 0) >= 0:
		return sandbox.NewError(sandbox.CodeInvalidRequest, "path must not contain a NUL character.").With("field", "path")
	case item.Name != "" && !validArtifactName(item.Name):
		return sandbox.NewError(sandbox.CodeInvalidRequest,
			"name must be 1 to %d characters without a slash or control characters.", maxArtifactName).With("field", "name")
	}
	return nil
}

func validArtifactName(name string) bool {
	if name == "" || utf8.RuneCountInString(name) > maxArtifactName || !utf8.ValidString(name) {
		return false
	}
	return strings.IndexFunc(name, func(r rune) bool { return r == '/' || unicode.IsControl(r) }) < 0
}

// CreateArtifact keeps one file of a sandbox.
func (s *Service) CreateArtifact(ctx context.Context, c Call, sandboxID string, item sandbox.CollectItem) (sandbox.Artifact, error) {
	id := sandbox.ID(sandbox.PrefixArtifact, c.OperationID)
	if a, err := s.Artifact(ctx, c, id); err == nil {
		return a, nil // the same operation again
	} else if !sandbox.CodeNotFound.Is(err) {
		return a, err
	}
	if err := validateItem(item); err != nil {
		return sandbox.Artifact{}, err
	}
	sb, l, err := s.liveSandbox(ctx, c, sandboxID)
	if err != nil {
		return sandbox.Artifact{}, err
	}
	defer l.begin()()
	if err := s.usable(ctx, l, readyWaitOther); err != nil {
		return sandbox.Artifact{}, err
	}
	a, err := s.keep(ctx, l, sandbox.Artifact{ID: id, OrgID: sb.OrgID, ProjectID: sb.ProjectID, SandboxID: sb.ID}, item)
	if err != nil {
		return sandbox.Artifact{}, err
	}
	err = s.store.Update(ctx, func(tx store.Tx) error { return s.insertArtifact(ctx, tx, c, a) })
	if err != nil {
		return sandbox.Artifact{}, fmt.Errorf("recording artifact %s: %w", a.ID, err)
	}
	return a, nil
}

// insertArtifact writes an artifact with its usage and audit events.
func (s *Service) insertArtifact(ctx context.Context, tx store.Tx, c Call, a sandbox.Artifact) error {
	if err := tx.InsertArtifact(ctx, a); err != nil {
		return fmt.Errorf("writing artifact %s: %w", a.ID, err)
	}
	err := tx.InsertUsage(ctx, sandbox.UsageEvent{
		OrgID: a.OrgID, ProjectID: a.ProjectID, ResourceID: a.ID, Metric: sandbox.MetricArtifactBytesStored,
		Amount: float64(a.Size), PricingVersion: s.cfg.PricingVersion, CreatedAt: a.CreatedAt,
	})
	if err != nil {
		return fmt.Errorf("metering artifact %s: %w", a.ID, err)
	}
	e := s.auditEvent(c, "artifact.create", "artifact", a.ID, a.ProjectID, map[string]any{"sandboxId": a.SandboxID, "sizeBytes": a.Size})
	e.OrgID = a.OrgID
	return tx.AppendAudit(ctx, e)
}

// keep copies one file of the sandbox into the blob store and completes the
// record, which the caller stores. A blob that no record names is swept later.
func (s *Service) keep(ctx context.Context, l *live, a sandbox.Artifact, item sandbox.CollectItem) (sandbox.Artifact, error) {
	done, err := l.transfer()
	if err != nil {
		return a, err
	}
	defer done()
	err = s.withSession(ctx, l, func(ctx context.Context, sess guest.Session) error {
		f, err := sess.Open(ctx, item.Path, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if f.Info().Size > maxArtifactBytes {
			return errArtifactTooLarge()
		}
		a.SourcePath = f.Info().Path
		a.ObjectKey = "artifacts/" + a.ID
		o, err := s.blobs.Put(ctx, a.ObjectKey, f, maxArtifactBytes)
		if errors.Is(err, blob.ErrTooLarge) {
			return errArtifactTooLarge() // it grew while it was read
		}
		a.Size, a.SHA256 = o.Size, o.SHA256
		return err
	})
	if err != nil {
		return a, err
	}
	a.Name = item.Name
	if a.Name == "" {
		a.Name = path.Base(a.SourcePath)
	}
	if !validArtifactName(a.Name) {
		a.Name = strings.ToValidUTF8(strings.Map(func(r rune) rune {
			if r == '/' || unicode.IsControl(r) {
				return '_'
			}
			return r
		}, a.Name), "_")
	}
	a.ContentType = contentType(a.Name)
	a.CreatedAt = now()
	if s.cfg.ArtifactRetention > 0 {
		a.RetentionExpiresAt = a.CreatedAt.Add(s.cfg.ArtifactRetention)
	}
	return a, nil
}

func errArtifactTooLarge() *sandbox.Error {
	return sandbox.NewError(sandbox.CodeFileTooLarge, "The file is larger than %d bytes.", int64(maxArtifactBytes)).
		With("maxBytes", int64(maxArtifactBytes))
}

func contentType(name string) string {
	if t := mime.TypeByExtension(path.Ext(name)); t != "" {
		return t
	}
	return "application/octet-stream"
}

// collect gathers the files a command was asked for and completes its record. The
// status of the command stays running until it returns.
func (s *Service) collect(ctx context.Context, l *live, end *sandbox.Command) []sandbox.Artifact {
	success := end.Status == sandbox.CommandExited && end.ExitCode != nil && *end.ExitCode == 0
	if !success && end.CollectOn != sandbox.OnAlways {
		end.CollectStatus = sandbox.CollectSkipped
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, collectLimit)
	defer cancel()
	var kept []sandbox.Artifact
	for _, item := range end.Collect {
		a := sandbox.Artifact{
			ID: sandbox.NewID(sandbox.PrefixArtifact), OrgID: end.OrgID, ProjectID: end.ProjectID,
			SandboxID: end.SandboxID, CommandID: end.ID,
		}
		a, err := s.keep(ctx, l, a, item)
		if err == nil {
			kept = append(kept, a)
			end.ArtifactIDs = append(end.ArtifactIDs, a.ID)
			continue
		}
		end.CollectErrors = append(end.CollectErrors, s.collectError(end.ID, item, err))
	}
	switch {
	case len(end.CollectErrors) == 0:
		end.CollectStatus = sandbox.CollectSucceeded
	case len(kept) == 0:
		end.CollectStatus = sandbox.CollectFailed
	default:
		end.CollectStatus = sandbox.CollectPartial
	}
	return kept
}

func (s *Service) collectError(commandID string, item sandbox.CollectItem, err error) sandbox.CollectError {
	out := sandbox.CollectError{Code: sandbox.CodeArtifactCollectFailed, Message: "The file could not be collected.", Path: item.Path}
	if e := answered(err); e != nil {
		out.Message = e.Message
		if e.Code == sandbox.CodeFileNotFound || e.Code == sandbox.CodePathOutsideWorkspace {
			out.Code = e.Code
		}
		return out
	}
	if errors.Is(err, context.DeadlineExceeded) {
		out.Message = "Collecting took longer than " + collectLimit.String() + "."
		return out
	}
	s.log.Error("collecting a file failed", "command", commandID, "error", err)
	return out
}

// Artifacts lists the artifacts of a sandbox, also after its end.
func (s *Service) Artifacts(ctx context.Context, c Call, sandboxID string, p store.Page) (Page[sandbox.Artifact], error) {
	if _, err := s.visibleSandbox(ctx, c, sandboxID); err != nil {
		return Page[sandbox.Artifact]{}, err
	}
	page, err := paged(p, func(p store.Page) ([]sandbox.Artifact, error) {
		return s.store.Artifacts(ctx, store.ArtifactFilter{SandboxID: sandboxID, Page: p})
	})
	if err != nil {
		return page, fmt.Errorf("listing artifacts of %s: %w", sandboxID, err)
	}
	t := time.Now()
	kept := page.Items[:0]
	for _, a := range page.Items {
		if a.RetentionExpiresAt.IsZero() || a.RetentionExpiresAt.After(t) {
			kept = append(kept, a)
		}
	}
	page.Items = kept
	return page, nil
}

// Artifact returns one artifact that has not been deleted and not expired.
func (s *Service) Artifact(ctx context.Context, c Call, id string) (sandbox.Artifact, error) {
	a, err := s.store.Artifact(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return a, errNotFound("artifact", id)
	} else if err != nil {
		return a, fmt.Errorf("reading artifact %s: %w", id, err)
	}
	expired := !a.RetentionExpiresAt.IsZero() && !a.RetentionExpiresAt.After(time.Now())
	if a.OrgID != c.OrgID || !c.CanSeeProject(a.ProjectID) || !a.DeletedAt.IsZero() || expired {
		return sandbox.Artifact{}, errNotFound("artifact", id)
	}
	return a, nil
}

// ArtifactContent opens the bytes of an artifact.
func (s *Service) ArtifactContent(ctx context.Context, c Call, id string) (Content, error) {
	a, err := s.Artifact(ctx, c, id)
	if err != nil {
		return Content{}, err
	}
	return Content{
		Name: a.Name, ContentType: a.ContentType, Size: a.Size,
		OpenRange: func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
			r, err := s.blobs.Open(ctx, a.ObjectKey, offset, length)
			if err != nil {
				return nil, sandbox.NewError(sandbox.CodeDownloadExportFailed, "The stored bytes of artifact %s cannot be read.", id).Because(err)
			}
			event := s.auditEvent(c, "artifact.download", "artifact", id, a.ProjectID, nil)
			if err := s.store.Update(ctx, func(tx store.Tx) error { return tx.AppendAudit(ctx, event) }); err != nil {
				_ = r.Close()
				return nil, fmt.Errorf("recording the download of %s: %w", id, err)
			}
			return r, nil
		},
		Close: func() error { return nil },
	}, nil
}

// DeleteArtifact removes an artifact for good.
func (s *Service) DeleteArtifact(ctx context.Context, c Call, id string) (sandbox.Artifact, error) {
	a, err := s.Artifact(ctx, c, id)
	if err != nil {
		return a, err
	}
	a.DeletedAt = now()
	err = s.store.Update(ctx, func(tx store.Tx) error {
		if err := tx.DeleteArtifact(ctx, id, a.DeletedAt); err != nil {
			return err
		}
		return tx.AppendAudit(ctx, s.auditEvent(c, "artifact.delete", "artifact", id, a.ProjectID, nil))
	})
	if err != nil {
		return a, fmt.Errorf("recording the deletion of %s: %w", id, err)
	}
	s.removeBlob(ctx, a.ObjectKey)
	return a, nil
}

// removeBlob deletes bytes that no record names any more; a failure is made up
// for by the sweep at the next start.
func (s *Service) removeBlob(ctx context.Context, key string) {
	if err := s.blobs.Delete(ctx, key); err != nil {
		s.log.Warn("a deleted artifact's bytes are still there", "key", key, "error", err)
	}
}
