package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// maxDirectoryEntries bounds one directory listing.
const maxDirectoryEntries = 10_000

// withSession calls fn with a working session, once more with a fresh one if the
// connection broke meanwhile. Mutating calls carry an operation id, so that the
// guest does twice-sent work once.
func (s *Service) withSession(ctx context.Context, l *live, fn func(context.Context, guest.Session) error) error {
	for attempt := 0; ; attempt++ {
		sess, err := s.sessionOf(ctx, l)
		if err == nil {
			err = fn(ctx, sess)
		}
		switch {
		case err == nil:
			return nil
		case l.isGone():
			return errDestroyed(l.id).Because(err)
		case errors.Is(err, guest.ErrDisconnected) && attempt < 2:
			continue
		case errors.Is(err, guest.ErrDisconnected):
			return fmt.Errorf("reaching sandbox %s: %w", l.id, err)
		}
		return err
	}
}

// enter returns a visible sandbox once it is usable, for a call that touches its
// files.
func (s *Service) enter(ctx context.Context, c Call, sandboxID string) (sandbox.Sandbox, *live, error) {
	sb, l, err := s.liveSandbox(ctx, c, sandboxID)
	if err != nil {
		return sb, nil, err
	}
	if err := s.usable(ctx, l, readyWaitOther); err != nil {
		return sb, nil, err
	}
	l.touch()
	return sb, l, nil
}

// inside runs fn for a call that touches a sandbox's files.
func (s *Service) inside(ctx context.Context, c Call, sandboxID string, fn func(context.Context, sandbox.Sandbox, guest.Session) error) error {
	sb, l, err := s.enter(ctx, c, sandboxID)
	if err != nil {
		return err
	}
	return s.withSession(ctx, l, func(ctx context.Context, sess guest.Session) error { return fn(ctx, sb, sess) })
}

// ListFiles lists one level of a directory.
func (s *Service) ListFiles(ctx context.Context, c Call, sandboxID, p string) (DirectoryListing, error) {
	if p == "" {
		p = workspace
	}
	var out DirectoryListing
	err := s.inside(ctx, c, sandboxID, func(ctx context.Context, _ sandbox.Sandbox, sess guest.Session) (err error) {
		out.Entries, out.Truncated, err = sess.List(ctx, p, maxDirectoryEntries)
		return err
	})
	return out, err
}

// StatFile describes one entry.
func (s *Service) StatFile(ctx context.Context, c Call, sandboxID, p string) (info sandbox.FileInfo, err error) {
	err = s.inside(ctx, c, sandboxID, func(ctx context.Context, _ sandbox.Sandbox, sess guest.Session) (err error) {
		info, err = sess.Stat(ctx, p)
		return err
	})
	return info, err
}

// ReadFile reads a small file whole.
func (s *Service) ReadFile(ctx context.Context, c Call, sandboxID, p string) (content []byte, info sandbox.FileInfo, err error) {
	err = s.inside(ctx, c, sandboxID, func(ctx context.Context, _ sandbox.Sandbox, sess guest.Session) error {
		f, err := sess.Open(ctx, p, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		info = f.Info()
		if info.Size > DirectFileLimit {
			return errDirectLimit("POST /v1/sandboxes/{sandboxId}/files/download-url")
		}
		content, err = io.ReadAll(io.LimitReader(f, DirectFileLimit+1))
		if err == nil && len(content) > DirectFileLimit {
			err = errDirectLimit("POST /v1/sandboxes/{sandboxId}/files/download-url")
		}
		return err
	})
	info.Size = int64(len(content))
	return content, info, err
}

func errDirectLimit(route string) *sandbox.Error {
	return sandbox.NewError(sandbox.CodeFileTooLarge, "The file is larger than %d bytes; use the staged route.", DirectFileLimit).
		With("maxBytes", DirectFileLimit).With("stagedRoute", route)
}

// WriteFile writes a small file atomically.
func (s *Service) WriteFile(ctx context.Context, c Call, sandboxID string, in WriteFileInput) (info sandbox.FileInfo, err error) {
	if len(in.Content) > DirectFileLimit {
		return info, errDirectLimit("POST /v1/sandboxes/{sandboxId}/files/upload-url")
	}
	var sb sandbox.Sandbox
	err = s.inside(ctx, c, sandboxID, func(ctx context.Context, r sandbox.Sandbox, sess guest.Session) (err error) {
		sb = r
		info, err = sess.Write(ctx, guest.WriteRequest{
			OperationID: c.OperationID, Path: in.Path, CreateParents: in.CreateParents,
			Overwrite: in.Overwrite == nil || *in.Overwrite,
			Size:      int64(len(in.Content)), Max: DirectFileLimit,
		}, bytes.NewReader(in.Content))
		return err
	})
	if err != nil {
		return info, err
	}
	return info, s.recordFile(ctx, c, "file.write", sb, info.Path, info.Size, nil)
}

// recordFile stores the audit and usage events of a file operation that happened.
func (s *Service) recordFile(ctx context.Context, c Call, action string, sb sandbox.Sandbox, p string, written int64, more func(store.Tx) error) error {
	event := s.auditEvent(c, action, "sandbox", sb.ID, sb.ProjectID, map[string]any{"path": p})
	err := s.store.Update(ctx, func(tx store.Tx) error {
		if more != nil {
			if err := more(tx); err != nil {
				return err
			}
		}
		if written > 0 {
			if err := tx.InsertUsage(ctx, s.usageEvent(sb, sandbox.MetricFileBytesWritten, float64(written))); err != nil {
				return err
			}
		}
		return tx.AppendAudit(ctx, event)
	})
	if err != nil {
		return fmt.Errorf("recording %s: %w", action, err)
	}
	return nil
}

// DeleteFile removes a file, link or empty directory.
func (s *Service) DeleteFile(ctx context.Context, c Call, sandboxID, p string) error {
	var sb sandbox.Sandbox
	err := s.inside(ctx, c, sandboxID, func(ctx context.Context, r sandbox.Sandbox, sess guest.Session) error {
		sb = r
		return sess.Delete(ctx, c.OperationID, p)
	})
	if err != nil {
		return err
	}
	return s.recordFile(ctx, c, "file.delete", sb, p, 0, nil)
}

// MakeDirectory makes a directory.
func (s *Service) MakeDirectory(ctx context.Context, c Call, sandboxID, p string, parents bool) (info sandbox.FileInfo, err error) {
	var sb sandbox.Sandbox
	err = s.inside(ctx, c, sandboxID, func(ctx context.Context, r sandbox.Sandbox, sess guest.Session) (err error) {
		sb = r
		info, err = sess.Mkdir(ctx, c.OperationID, p, parents)
		return err
	})
	if err != nil {
		return info, err
	}
	return info, s.recordFile(ctx, c, "file.mkdir", sb, info.Path, 0, nil)
}

// MoveFile renames a file or directory.
func (s *Service) MoveFile(ctx context.Context, c Call, sandboxID, from, to string, overwrite bool) (info sandbox.FileInfo, err error) {
	var sb sandbox.Sandbox
	err = s.inside(ctx, c, sandboxID, func(ctx context.Context, r sandbox.Sandbox, sess guest.Session) (err error) {
		sb = r
		info, err = sess.Move(ctx, c.OperationID, from, to, overwrite)
		return err
	})
	if err != nil {
		return info, err
	}
	return info, s.recordFile(ctx, c, "file.move", sb, info.Path, 0, nil)
}

// FileContent opens a file of any size for download. The file is opened again for
// the range that is asked for; each opening is of one regular file.
func (s *Service) FileContent(ctx context.Context, c Call, sandboxID, p string) (Content, error) {
	var out Content
	_, l, err := s.enter(ctx, c, sandboxID)
	if err != nil {
		return out, err
	}
	err = s.withSession(ctx, l, func(ctx context.Context, sess guest.Session) error {
		f, err := sess.Open(ctx, p, 0)
		if err != nil {
			return err
		}
		info := f.Info()
		if err := f.Close(); err != nil {
			return err
		}
		out = Content{
			Name: path.Base(info.Path), ContentType: "application/octet-stream", Size: info.Size,
			OpenRange: func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
				done, err := l.transfer()
				if err != nil {
					return nil, err
				}
				f, err := sess.Open(ctx, p, offset)
				if err != nil {
					done()
					return nil, err
				}
				if length < 0 {
					length = info.Size - offset
				}
				return transferredFile{io.LimitReader(f, length), f, done}, nil
			},
			Close: func() error { return nil },
		}
		return nil
	})
	return out, err
}

// transferredFile is the part of a file that is on its way out.
type transferredFile struct {
	io.Reader
	file guest.File
	done func()
}

func (t transferredFile) Close() error {
	defer t.done()
	return t.file.Close()
}
