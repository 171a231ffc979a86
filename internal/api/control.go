package api

import (
	"context"
	"io"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// Control is what the API needs of the use cases; control.Service provides it.
// Each method checks visibility, state and quota itself and returns
// *sandbox.Error values that may go to the client. Scopes, the shape of the
// request and idempotency are the API's business.
type Control interface {
	Projects(ctx context.Context, c control.Call, p store.Page) (control.Page[sandbox.Project], error)
	CreateProject(ctx context.Context, c control.Call, name string) (sandbox.Project, error)

	Keys(ctx context.Context, c control.Call, p store.Page) (control.Page[sandbox.Key], error)
	Key(ctx context.Context, c control.Call, id string) (sandbox.Key, error)
	// CreateKey makes a key for a signed-in person; the secret is returned once.
	CreateKey(ctx context.Context, c control.Call, name string, scopes, projectIDs []string) (string, sandbox.Key, error)
	RevokeKey(ctx context.Context, c control.Call, id string) (sandbox.Key, error)

	Templates(ctx context.Context, c control.Call) ([]control.Template, error)
	Template(ctx context.Context, c control.Call, slug string) (control.Template, error)

	Usage(ctx context.Context, c control.Call, events bool) (control.UsageSummary, error)
	AuditEvents(ctx context.Context, c control.Call, f store.AuditFilter, projectID string) (control.Page[sandbox.AuditEvent], error)
	VerifyAudit(ctx context.Context, c control.Call) (control.AuditCheck, error)
	// Denied records a refused request in the audit log, rate-limited.
	Denied(ctx context.Context, c control.Call, route string, err error)

	CreateSandbox(ctx context.Context, c control.Call, in control.CreateSandboxInput) (sandbox.Sandbox, error)
	Sandboxes(ctx context.Context, c control.Call, in control.ListSandboxesInput) (control.Page[sandbox.Sandbox], error)
	Sandbox(ctx context.Context, c control.Call, id string) (sandbox.Sandbox, error)
	ExtendSandbox(ctx context.Context, c control.Call, id string, ttlMs int64) (sandbox.Sandbox, error)
	KillSandbox(ctx context.Context, c control.Call, id string) (sandbox.Sandbox, error)

	// StartCommand accepts a command and returns its record, queued or running (or
	// already terminal, for a repeated operation). From then on it depends on no
	// context of the caller's.
	StartCommand(ctx context.Context, c control.Call, sandboxID string, in control.CommandInput) (sandbox.Command, error)
	// WaitCommand returns the terminal record, collection included. It only fails
	// if ctx ends or the server stops.
	WaitCommand(ctx context.Context, c control.Call, id string) (sandbox.Command, error)
	Command(ctx context.Context, c control.Call, id string) (sandbox.Command, error)
	Commands(ctx context.Context, c control.Call, sandboxID string, p store.Page) (control.Page[sandbox.Command], error)
	// CancelCommand returns the terminal record.
	CancelCommand(ctx context.Context, c control.Call, id string, mode sandbox.CancelMode) (sandbox.Command, error)
	CommandLogs(ctx context.Context, c control.Call, id string, afterSeq *int64, limit int) (control.LogPage, error)
	// StreamCommand delivers retained chunks, live chunks and the terminal record.
	// The channel is closed after the final event, or when ctx ends. stream_gap
	// before the start is the error returned.
	StreamCommand(ctx context.Context, c control.Call, id string, afterSeq *int64) (<-chan control.StreamEvent, error)
	// CommandLogContent opens the exact bytes of a log.
	CommandLogContent(ctx context.Context, c control.Call, id string, which control.LogSelection) (control.Content, error)

	ListFiles(ctx context.Context, c control.Call, sandboxID, path string) (control.DirectoryListing, error)
	StatFile(ctx context.Context, c control.Call, sandboxID, path string) (sandbox.FileInfo, error)
	// ReadFile reads at most control.DirectFileLimit bytes; above: file_too_large.
	ReadFile(ctx context.Context, c control.Call, sandboxID, path string) ([]byte, sandbox.FileInfo, error)
	WriteFile(ctx context.Context, c control.Call, sandboxID string, in control.WriteFileInput) (sandbox.FileInfo, error)
	DeleteFile(ctx context.Context, c control.Call, sandboxID, path string) error
	MakeDirectory(ctx context.Context, c control.Call, sandboxID, path string, parents bool) (sandbox.FileInfo, error)
	MoveFile(ctx context.Context, c control.Call, sandboxID, from, to string, overwrite bool) (sandbox.FileInfo, error)
	// FileContent opens a file of any size for download.
	FileContent(ctx context.Context, c control.Call, sandboxID, path string) (control.Content, error)
	CreateUpload(ctx context.Context, c control.Call, sandboxID string, in control.UploadInput) (control.UploadTicket, error)
	// PutUpload takes the bytes of a staged upload; contentLength -1 = unknown.
	PutUpload(ctx context.Context, c control.Call, sandboxID, uploadID string, contentLength int64, body io.Reader) (sandbox.FileInfo, error)

	CreateArtifact(ctx context.Context, c control.Call, sandboxID string, item sandbox.CollectItem) (sandbox.Artifact, error)
	Artifacts(ctx context.Context, c control.Call, sandboxID string, p store.Page) (control.Page[sandbox.Artifact], error)
	Artifact(ctx context.Context, c control.Call, id string) (sandbox.Artifact, error)
	ArtifactContent(ctx context.Context, c control.Call, id string) (control.Content, error)
	DeleteArtifact(ctx context.Context, c control.Call, id string) (sandbox.Artifact, error)
}
