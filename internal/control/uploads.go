package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

const (
	uploadLifetime = 15 * time.Minute
	maxUploadBytes = 5 << 30
)

var hexDigest = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

// CreateUpload accepts a staged upload of one file.
func (s *Service) CreateUpload(ctx context.Context, c Call, sandboxID string, in UploadInput) (UploadTicket, error) {
	if in.SHA256 != "" && !hexDigest.MatchString(in.SHA256) {
		return UploadTicket{}, sandbox.NewError(sandbox.CodeInvalidRequest, "sha256 must be 64 hexadecimal digits.").With("field", "sha256")
	}
	u := sandbox.Upload{
		ID: sandbox.ID(sandbox.PrefixUpload, c.OperationID), SandboxID: sandboxID, Path: in.Path,
		Size: -1, SHA256: strings.ToLower(in.SHA256), CreateParents: in.CreateParents,
		Overwrite: in.Overwrite == nil || *in.Overwrite, Status: sandbox.UploadPending, CreatedAt: now(),
	}
	u.ExpiresAt = u.CreatedAt.Add(uploadLifetime)
	if in.SizeBytes != nil {
		if u.Size = *in.SizeBytes; u.Size < 0 {
			return UploadTicket{}, sandbox.NewError(sandbox.CodeInvalidRequest, "sizeBytes must not be negative.").With("field", "sizeBytes")
		}
	}
	var most int64
	err := s.inside(ctx, c, sandboxID, func(ctx context.Context, sb sandbox.Sandbox, sess guest.Session) error {
		u.OrgID, u.ProjectID = sb.OrgID, sb.ProjectID
		if most = uploadLimit(sb); u.Size > most {
			return errUploadTooLarge(most)
		}
		return sess.CheckWrite(ctx, writeRequest(u, most))
	})
	if err != nil {
		return UploadTicket{}, err
	}
	err = s.store.Update(ctx, func(tx store.Tx) error { return tx.InsertUpload(ctx, u) })
	if errors.Is(err, store.ErrConflict) { // the same operation again
		if u, err = s.store.Upload(ctx, u.ID); err != nil {
			return UploadTicket{}, fmt.Errorf("reading upload %s: %w", u.ID, err)
		}
	} else if err != nil {
		return UploadTicket{}, fmt.Errorf("recording upload %s: %w", u.ID, err)
	}
	return UploadTicket{ID: u.ID, MaxSize: most, ExpiresAt: u.ExpiresAt}, nil
}

func uploadLimit(sb sandbox.Sandbox) int64 { return min(maxUploadBytes, sb.Resources.DiskBytes) }

func errUploadTooLarge(most int64) *sandbox.Error {
	return sandbox.NewError(sandbox.CodeFileTooLarge, "Uploads into this sandbox are at most %d bytes.", most).With("maxBytes", most)
}

func writeRequest(u sandbox.Upload, most int64) guest.WriteRequest {
	return guest.WriteRequest{
		OperationID: u.ID, Path: u.Path, CreateParents: u.CreateParents, Overwrite: u.Overwrite,
		Size: u.Size, SHA256: u.SHA256, Max: most,
	}
}

// PutUpload takes the bytes of a staged upload.
func (s *Service) PutUpload(ctx context.Context, c Call, sandboxID, uploadID string, contentLength int64, body io.Reader) (sandbox.FileInfo, error) {
	var none sandbox.FileInfo
	u, err := s.store.Upload(ctx, uploadID)
	if errors.Is(err, store.ErrNotFound) || err == nil && (u.SandboxID != sandboxID || u.OrgID != c.OrgID || !c.CanSeeProject(u.ProjectID)) {
		return none, sandbox.NewError(sandbox.CodeUploadNotFound, "No such upload: %s.", uploadID)
	} else if err != nil {
		return none, fmt.Errorf("reading upload %s: %w", uploadID, err)
	}
	if u.Status == sandbox.UploadFinalized {
		return none, errUploadTaken(uploadID)
	}
	if time.Now().After(u.ExpiresAt) {
		return none, sandbox.NewError(sandbox.CodeUploadExpired, "Upload %s has expired; ask for a new one.", uploadID)
	}
	release, ok := s.claimUpload(uploadID)
	if !ok {
		return none, errUploadTaken(uploadID)
	}
	defer release()
	if u.Size >= 0 && contentLength >= 0 && contentLength != u.Size {
		return none, sandbox.NewError(sandbox.CodeUploadSizeMismatch, "%d bytes were announced, but the request carries %d.", u.Size, contentLength).
			With("declaredBytes", u.Size)
	}
	sb, l, err := s.enter(ctx, c, sandboxID)
	if err != nil {
		return none, err
	}
	most := uploadLimit(sb)
	if contentLength > most {
		return none, errUploadTooLarge(most)
	}
	done, err := l.transfer()
	if err != nil {
		return none, err
	}
	defer done()
	var info sandbox.FileInfo
	read := &countingReader{r: body}
	err = s.withSession(ctx, l, func(ctx context.Context, sess guest.Session) (err error) {
		if read.n > 0 {
			// A part of the body is gone with the broken connection.
			return sandbox.NewError(sandbox.CodeSandboxNotReady, "The connection to the sandbox broke during the upload; send it again.")
		}
		info, err = sess.Write(ctx, writeRequest(u, most), read)
		return err
	})
	if err != nil {
		return none, err
	}
	u.Status = sandbox.UploadFinalized
	err = s.recordFile(ctx, c, "file.upload", sb, info.Path, info.Size, func(tx store.Tx) error { return tx.UpdateUpload(ctx, u) })
	return info, err
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func errUploadTaken(id string) *sandbox.Error {
	return sandbox.NewError(sandbox.CodeUploadConflict, "Upload %s has its bytes already.", id)
}

// claimUpload keeps two requests from filling one upload at the same time.
func (s *Service) claimUpload(id string) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, busy := s.uploads[id]; busy {
		return nil, false
	}
	s.uploads[id] = struct{}{}
	return func() {
		s.mu.Lock()
		delete(s.uploads, id)
		s.mu.Unlock()
	}, true
}
