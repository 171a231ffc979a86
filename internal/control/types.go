package control

import (
	"context"
	"io"
	"time"

	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/template"
)

// Call says who asks, and under which operation.
type Call struct {
	auth.Principal
	RequestID string
	IP        string
	UserAgent string
	// OperationID is the suffix of the id that a mutation gives to what it makes
	// (26 characters, see sandbox.ID). A repeated call with the same one finds
	// what the first call made instead of making it again.
	OperationID string
}

// Page is one page of a list.
type Page[T any] struct {
	Items   []T
	HasMore bool
}

// CreateSandboxInput asks for a sandbox. Zero values mean omitted.
type CreateSandboxInput struct {
	ProjectID         string
	Template          string // slug
	TemplateVersionID string
	TTLMs             *int64
	Metadata          map[string]string
	RestoreFrom       string
	Network           *sandbox.Network
}

// ListSandboxesInput selects sandboxes.
type ListSandboxesInput struct {
	ProjectID  string
	Historical bool
	Metadata   map[string]string
	Page       store.Page
}

// CommandInput asks for a command.
type CommandInput struct {
	Command string
	Cwd     string
	Env     map[string]string
	// TimeoutMs: with Blocking the default is 60,000 and the maximum 600,000;
	// without it the sandbox's deadline.
	TimeoutMs *int64
	Collect   []sandbox.CollectItem
	CollectOn sandbox.CollectOn
	// Blocking says that the caller waits for the end (run, not start).
	Blocking bool
	// RequireRead refuses callers without command:read before anything starts.
	RequireRead bool
}

// StreamEvent is one event of a command's stream: exactly one field is set. After
// Terminal or Err the channel is closed.
type StreamEvent struct {
	Log      *sandbox.LogChunk
	Terminal *sandbox.Command
	Err      error
}

// LogPage is one page of a command's log.
type LogPage struct {
	Chunks  []sandbox.LogChunk
	HasMore bool
	NextSeq int64
}

// LogSelection says which streams a log download holds.
type LogSelection string

// Both interleaves the streams in the order of arrival.
const (
	LogBoth   LogSelection = "both"
	LogStdout LogSelection = "stdout"
	LogStderr LogSelection = "stderr"
)

// Content is an open object that can be read from an offset. Close must be called.
type Content struct {
	Name        string // base name for Content-Disposition
	ContentType string
	Size        int64 // of the whole object
	// OpenRange opens length bytes from offset; length -1 = to the end. May be
	// called once.
	OpenRange func(ctx context.Context, offset, length int64) (io.ReadCloser, error)
	Close     func() error
}

// UploadInput asks for a staged upload of one file.
type UploadInput struct {
	Path          string
	SizeBytes     *int64
	SHA256        string
	CreateParents bool
	Overwrite     *bool // nil = true
}

// UploadTicket is a staged upload that was accepted.
type UploadTicket struct {
	ID        string
	MaxSize   int64
	ExpiresAt time.Time
}

// WriteFileInput writes a small file.
type WriteFileInput struct {
	Path          string
	Content       []byte
	CreateParents bool
	Overwrite     *bool // nil = true
}

// DirectFileLimit bounds the decoded bytes of a direct read or write.
const DirectFileLimit = 256 << 10

// DirectoryListing is one level of a directory, sorted by name.
type DirectoryListing struct {
	Entries   []sandbox.FileInfo
	Truncated bool
}

// UsageSummary is what was used in the current period.
type UsageSummary struct {
	Start, End                  time.Time
	PricingVersion              string
	ComputeUnitSecondsPerCredit float64
	CurrencyPerCredit           float64
	ComputeUnitSeconds          float64
	Credits                     float64
	CreditsRemaining            *float64
	Quotas                      map[string]Quota
	Events                      []sandbox.UsageEvent // only if asked for
}

// Quota is one bucket of a usage summary.
type Quota struct {
	Current   float64
	Limit     float64
	Remaining *float64
	ResetAt   time.Time // zero = null on the wire
}

// AuditCheck is the result of walking an audit chain.
type AuditCheck struct {
	OK         bool
	Checked    int64
	FirstID    string
	LastID     string
	BrokenAtID string
}

// Template is a catalogue entry with its built versions, newest first.
type Template struct {
	ID, Slug, Name, Description string
	DefaultVersionID            string // empty until built
	Versions                    []template.Version
}
