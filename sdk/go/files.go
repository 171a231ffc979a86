package crownest

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// FilesService reads and writes files below /workspace. Direct reads and writes
// are for small files; Upload and Download take any size.
type FilesService struct{ c *Client }

// SandboxFiles is FilesService for one sandbox.
type SandboxFiles struct {
	s         *FilesService
	sandboxID string
}

// WriteOptions says how a file is written.
type WriteOptions struct {
	CreateParents bool
	// NoOverwrite fails where the file is there already.
	NoOverwrite    bool
	IdempotencyKey string
}

// MkdirOptions says how a directory is made. With Parents an existing one is fine.
type MkdirOptions struct {
	Parents        bool
	IdempotencyKey string
}

// MoveOptions says how a file is moved.
type MoveOptions struct {
	Overwrite      bool
	IdempotencyKey string
}

// UploadOptions says how a large file is written.
type UploadOptions struct {
	// SizeBytes and SHA256 (64 hex digits) are checked by the server where given.
	SizeBytes     *int64
	SHA256        string
	CreateParents bool
	NoOverwrite   bool
}

func filesPath(sandboxID string) string { return sandboxPath(sandboxID) + "/files" }

// Read returns a text file.
func (s *FilesService) Read(ctx context.Context, sandboxID, path string) (string, error) {
	content, err := s.ReadContent(ctx, sandboxID, path, "")
	if err != nil {
		return "", err
	}
	return content.Content, nil
}

// ReadBytes returns a file of any content.
func (s *FilesService) ReadBytes(ctx context.Context, sandboxID, path string) ([]byte, error) {
	content, err := s.ReadContent(ctx, sandboxID, path, "base64")
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(content.Content)
	if err != nil {
		return nil, fmt.Errorf("crownest: content of %s: %w", path, err)
	}
	return b, nil
}

// ReadContent returns a file in an encoding: "utf8" (or empty) or "base64".
func (s *FilesService) ReadContent(ctx context.Context, sandboxID, path, encoding string) (*FileContent, error) {
	q := url.Values{"path": {path}}
	if encoding != "" {
		q.Set("encoding", encoding)
	}
	content := new(FileContent)
	if err := s.c.do(ctx, call{method: http.MethodGet, path: filesPath(sandboxID) + "/read", query: q}, "", content); err != nil {
		return nil, err
	}
	return content, nil
}

// Write writes a text file.
func (s *FilesService) Write(ctx context.Context, sandboxID, path, content string, opts *WriteOptions) (*File, error) {
	return s.write(ctx, sandboxID, path, content, "utf8", opts)
}

// WriteBytes writes a file of any content.
func (s *FilesService) WriteBytes(ctx context.Context, sandboxID, path string, content []byte, opts *WriteOptions) (*File, error) {
	return s.write(ctx, sandboxID, path, base64.StdEncoding.EncodeToString(content), "base64", opts)
}

func (s *FilesService) write(ctx context.Context, sandboxID, path, content, encoding string, opts *WriteOptions) (*File, error) {
	var o WriteOptions
	if opts != nil {
		o = *opts
	}
	overwrite := !o.NoOverwrite
	body := struct {
		Path          string `json:"path"`
		Content       string `json:"content"`
		Encoding      string `json:"encoding"`
		CreateParents bool   `json:"createParents"`
		Overwrite     bool   `json:"overwrite"`
	}{path, content, encoding, o.CreateParents, overwrite}
	return s.one(ctx, call{method: http.MethodPut, path: filesPath(sandboxID), body: body, key: o.IdempotencyKey})
}

// List returns the entries of a directory, sorted by name. An empty path is
// /workspace.
func (s *FilesService) List(ctx context.Context, sandboxID, path string) ([]File, error) {
	if path == "" {
		path = "/workspace"
	}
	return collect(all[File](ctx, s.c, filesPath(sandboxID), url.Values{"path": {path}}))
}

// Stat describes a file or directory.
func (s *FilesService) Stat(ctx context.Context, sandboxID, path string) (*File, error) {
	return s.one(ctx, call{method: http.MethodGet, path: filesPath(sandboxID) + "/stat", query: url.Values{"path": {path}}})
}

// Mkdir makes a directory.
func (s *FilesService) Mkdir(ctx context.Context, sandboxID, path string, opts *MkdirOptions) (*File, error) {
	var o MkdirOptions
	if opts != nil {
		o = *opts
	}
	body := struct {
		Path    string `json:"path"`
		Parents bool   `json:"parents"`
	}{path, o.Parents}
	return s.one(ctx, call{method: http.MethodPost, path: filesPath(sandboxID) + "/mkdir", body: body, key: o.IdempotencyKey})
}

// Move renames a file or directory and describes the destination.
func (s *FilesService) Move(ctx context.Context, sandboxID, from, to string, opts *MoveOptions) (*File, error) {
	var o MoveOptions
	if opts != nil {
		o = *opts
	}
	body := struct {
		From      string `json:"from"`
		To        string `json:"to"`
		Overwrite bool   `json:"overwrite"`
	}{from, to, o.Overwrite}
	return s.one(ctx, call{method: http.MethodPost, path: filesPath(sandboxID) + "/move", body: body, key: o.IdempotencyKey})
}

// Delete removes a file or an empty directory.
func (s *FilesService) Delete(ctx context.Context, sandboxID, path string) error {
	return s.c.do(ctx, call{method: http.MethodDelete, path: filesPath(sandboxID), query: url.Values{"path": {path}}}, "", nil)
}

// DownloadURL returns a short-lived URL for a file.
func (s *FilesService) DownloadURL(ctx context.Context, sandboxID, path string) (*DownloadURL, error) {
	body := struct {
		Path string `json:"path"`
	}{path}
	u := new(DownloadURL)
	if err := s.c.do(ctx, call{method: http.MethodPost, path: filesPath(sandboxID) + "/download-url", body: body}, "", u); err != nil {
		return nil, err
	}
	return u, nil
}

// Download copies a file of any size to w. size, if not nil, is told the number
// of bytes before the first one (-1 if unknown).
func (s *FilesService) Download(ctx context.Context, sandboxID, path string, w io.Writer, size func(total int64)) (int64, error) {
	u, err := s.DownloadURL(ctx, sandboxID, path)
	if err != nil {
		return 0, err
	}
	return s.c.download(ctx, u, w, size)
}

// UploadURL asks where the bytes of a file are to be sent.
func (s *FilesService) UploadURL(ctx context.Context, sandboxID, path string, opts *UploadOptions) (*UploadURL, error) {
	var o UploadOptions
	if opts != nil {
		o = *opts
	}
	body := struct {
		Path          string `json:"path"`
		SizeBytes     *int64 `json:"sizeBytes,omitempty"`
		SHA256        string `json:"sha256,omitempty"`
		CreateParents bool   `json:"createParents"`
		Overwrite     bool   `json:"overwrite"`
	}{path, o.SizeBytes, o.SHA256, o.CreateParents, !o.NoOverwrite}
	u := new(UploadURL)
	if err := s.c.do(ctx, call{method: http.MethodPost, path: filesPath(sandboxID) + "/upload-url", body: body}, "", u); err != nil {
		return nil, err
	}
	return u, nil
}

// Upload writes a file of any size from r. The file appears only when all of it
// has arrived and matches what opts say.
func (s *FilesService) Upload(ctx context.Context, sandboxID, path string, r io.Reader, opts *UploadOptions) (*File, error) {
	u, err := s.UploadURL(ctx, sandboxID, path, opts)
	if err != nil {
		return nil, err
	}
	size := int64(-1)
	if opts != nil && opts.SizeBytes != nil {
		size = *opts.SizeBytes
	}
	file := new(File)
	if err := s.c.upload(ctx, u, r, size, "file", file); err != nil {
		return nil, err
	}
	return file, nil
}

func (s *FilesService) one(ctx context.Context, rq call) (*File, error) {
	file := new(File)
	if err := s.c.do(ctx, rq, "file", file); err != nil {
		return nil, err
	}
	return file, nil
}

// Read returns a text file of this sandbox.
func (h *SandboxFiles) Read(ctx context.Context, path string) (string, error) {
	return h.s.Read(ctx, h.sandboxID, path)
}

// ReadBytes returns a file of any content.
func (h *SandboxFiles) ReadBytes(ctx context.Context, path string) ([]byte, error) {
	return h.s.ReadBytes(ctx, h.sandboxID, path)
}

// Write writes a text file.
func (h *SandboxFiles) Write(ctx context.Context, path, content string, opts *WriteOptions) (*File, error) {
	return h.s.Write(ctx, h.sandboxID, path, content, opts)
}

// WriteBytes writes a file of any content.
func (h *SandboxFiles) WriteBytes(ctx context.Context, path string, content []byte, opts *WriteOptions) (*File, error) {
	return h.s.WriteBytes(ctx, h.sandboxID, path, content, opts)
}

// List returns the entries of a directory. An empty path is /workspace.
func (h *SandboxFiles) List(ctx context.Context, path string) ([]File, error) {
	return h.s.List(ctx, h.sandboxID, path)
}

// Stat describes a file or directory.
func (h *SandboxFiles) Stat(ctx context.Context, path string) (*File, error) {
	return h.s.Stat(ctx, h.sandboxID, path)
}

// Mkdir makes a directory.
func (h *SandboxFiles) Mkdir(ctx context.Context, path string, opts *MkdirOptions) (*File, error) {
	return h.s.Mkdir(ctx, h.sandboxID, path, opts)
}

// Move renames a file or directory.
func (h *SandboxFiles) Move(ctx context.Context, from, to string, opts *MoveOptions) (*File, error) {
	return h.s.Move(ctx, h.sandboxID, from, to, opts)
}

// Delete removes a file or an empty directory.
func (h *SandboxFiles) Delete(ctx context.Context, path string) error {
	return h.s.Delete(ctx, h.sandboxID, path)
}

// DownloadURL returns a short-lived URL for a file.
func (h *SandboxFiles) DownloadURL(ctx context.Context, path string) (*DownloadURL, error) {
	return h.s.DownloadURL(ctx, h.sandboxID, path)
}

// Download copies a file of any size to w.
func (h *SandboxFiles) Download(ctx context.Context, path string, w io.Writer) (int64, error) {
	return h.s.Download(ctx, h.sandboxID, path, w, nil)
}

// Upload writes a file of any size from r.
func (h *SandboxFiles) Upload(ctx context.Context, path string, r io.Reader, opts *UploadOptions) (*File, error) {
	return h.s.Upload(ctx, h.sandboxID, path, r, opts)
}
