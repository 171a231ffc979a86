package crownest

import "time"

// SandboxStatus is the state of a sandbox.
type SandboxStatus string

// The states of a sandbox.
const (
	SandboxCreating  SandboxStatus = "creating"
	SandboxStarting  SandboxStatus = "starting"
	SandboxReady     SandboxStatus = "ready"
	SandboxRunning   SandboxStatus = "running"
	SandboxIdle      SandboxStatus = "idle"
	SandboxExpiring  SandboxStatus = "expiring"
	SandboxDestroyed SandboxStatus = "destroyed"
	SandboxFailed    SandboxStatus = "failed"
)

// SandboxInfo is the record of a sandbox.
type SandboxInfo struct {
	ID                string            `json:"id"`
	OrgID             string            `json:"orgId"`
	ProjectID         string            `json:"projectId"`
	Status            SandboxStatus     `json:"status"`
	TemplateID        string            `json:"templateId"`
	TemplateSlug      string            `json:"templateSlug"`
	TemplateVersion   string            `json:"templateVersion"`
	TemplateVersionID string            `json:"templateVersionId"`
	TTLMs             int64             `json:"ttlMs"`
	ExpiresAt         time.Time         `json:"expiresAt"`
	Metadata          map[string]string `json:"metadata"`
	CreatedAt         time.Time         `json:"createdAt"`
	DestroyedAt       time.Time         `json:"destroyedAt,omitzero"`
	DestroyedReason   string            `json:"destroyedReason,omitempty"`
	Network           *Network          `json:"network,omitempty"`
	Resources         *Resources        `json:"resources,omitempty"`

	raw
}

// Network says how much of the network a sandbox may reach. Egress is "none",
// "allowlist" or "internet".
type Network struct {
	Egress string   `json:"egress"`
	Allow  []string `json:"allow,omitempty"`
}

// Resources bounds what a sandbox may use.
type Resources struct {
	VCPU         float64 `json:"vcpu"`
	MemoryBytes  int64   `json:"memoryBytes"`
	DiskBytes    int64   `json:"diskBytes"`
	MaxProcesses int     `json:"maxProcesses"`
}

// CommandStatus is the state of a command.
type CommandStatus string

// The states of a command.
const (
	CommandQueued   CommandStatus = "queued"
	CommandStarting CommandStatus = "starting"
	CommandRunning  CommandStatus = "running"
	CommandExited   CommandStatus = "exited"
	CommandFailed   CommandStatus = "failed"
	CommandCanceled CommandStatus = "canceled"
	CommandTimedOut CommandStatus = "timed_out"
	CommandKilled   CommandStatus = "killed"
)

// Terminal reports whether a command in this state has ended. A state that this
// package does not know counts as ended, so that nobody waits for ever.
func (s CommandStatus) Terminal() bool {
	return s != CommandQueued && s != CommandStarting && s != CommandRunning
}

// Command is the record of a command. ExitCode is nil unless the command ended
// by itself.
type Command struct {
	ID                string            `json:"id"`
	SandboxID         string            `json:"sandboxId"`
	Command           string            `json:"command"`
	Cwd               string            `json:"cwd"`
	Env               map[string]string `json:"env"`
	Status            CommandStatus     `json:"status"`
	CancelMode        string            `json:"cancelMode,omitempty"`
	CanceledAt        time.Time         `json:"canceledAt,omitzero"`
	ExitCode          *int              `json:"exitCode,omitempty"`
	Stdout            string            `json:"stdout,omitempty"`
	Stderr            string            `json:"stderr,omitempty"`
	StdoutTruncated   bool              `json:"stdoutTruncated,omitempty"`
	StderrTruncated   bool              `json:"stderrTruncated,omitempty"`
	StartedAt         time.Time         `json:"startedAt,omitzero"`
	FinishedAt        time.Time         `json:"finishedAt,omitzero"`
	DurationMs        int64             `json:"durationMs,omitempty"`
	CollectStatus     string            `json:"collectStatus,omitempty"`
	CollectErrors     []CollectError    `json:"collectErrors,omitempty"`
	KilledReason      string            `json:"killedReason,omitempty"`
	TerminationSignal string            `json:"terminationSignal,omitempty"`
	CreatedAt         time.Time         `json:"createdAt,omitzero"`
	ArtifactIDs       []string          `json:"artifactIds,omitempty"`

	raw
}

// CollectError says why a file was not collected.
type CollectError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Path    string `json:"path"`
}

// The streams of a command's output.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// LogChunk is a piece of a command's output. Seq is one series over both streams.
type LogChunk struct {
	CommandID string    `json:"commandId"`
	Seq       int64     `json:"seq"`
	Stream    string    `json:"stream"`
	Data      string    `json:"data"`
	CreatedAt time.Time `json:"createdAt"`

	raw
}

// File describes a file or directory below the workspace. Name is set in lists
// only.
type File struct {
	Name       string    `json:"name,omitempty"`
	Path       string    `json:"path"`
	SizeBytes  int64     `json:"sizeBytes"`
	Type       string    `json:"type"`
	ModifiedAt time.Time `json:"modifiedAt,omitzero"`

	raw
}

// FileContent is the answer of a direct read.
type FileContent struct {
	Content   string `json:"content"`
	Encoding  string `json:"encoding"`
	Path      string `json:"path"`
	SizeBytes int64  `json:"sizeBytes"`

	raw
}

// Artifact is a file that was kept and outlives its sandbox.
type Artifact struct {
	ID                 string    `json:"id"`
	OrgID              string    `json:"orgId"`
	ProjectID          string    `json:"projectId"`
	SandboxID          string    `json:"sandboxId"`
	CommandID          string    `json:"commandId,omitempty"`
	Name               string    `json:"name"`
	ObjectKey          string    `json:"objectKey"`
	SizeBytes          int64     `json:"sizeBytes"`
	SHA256             string    `json:"sha256,omitempty"`
	ContentType        string    `json:"contentType,omitempty"`
	SourcePath         string    `json:"sourcePath,omitempty"`
	CreatedAt          time.Time `json:"createdAt"`
	DeletedAt          time.Time `json:"deletedAt,omitzero"`
	RetentionExpiresAt time.Time `json:"retentionExpiresAt,omitzero"`

	raw
}

// DownloadURL is a short-lived URL that needs no credential.
type DownloadURL struct {
	URL       string            `json:"url"`
	Method    string            `json:"method"`
	AuthMode  string            `json:"authMode"`
	Headers   map[string]string `json:"headers"`
	ExpiresAt time.Time         `json:"expiresAt"`

	raw
}

// UploadURL is where the bytes of one file are to be sent.
type UploadURL struct {
	UploadID     string            `json:"uploadId"`
	URL          string            `json:"url"`
	Method       string            `json:"method"`
	Headers      map[string]string `json:"headers"`
	ExpiresAt    time.Time         `json:"expiresAt"`
	MaxSizeBytes int64             `json:"maxSizeBytes"`

	raw
}

// Project groups resources of an organisation.
type Project struct {
	ID        string    `json:"id"`
	OrgID     string    `json:"orgId"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"createdAt"`

	raw
}

// APIKey is the record of a key, without its secret.
type APIKey struct {
	ID              string    `json:"id"`
	OrgID           string    `json:"orgId"`
	Name            string    `json:"name"`
	Prefix          string    `json:"prefix"`
	Last4           string    `json:"last4"`
	ProjectIDs      []string  `json:"projectIds,omitempty"`
	Scopes          []string  `json:"scopes"`
	CreatedByUserID string    `json:"createdByUserId"`
	CreatedAt       time.Time `json:"createdAt"`
	RevokedAt       time.Time `json:"revokedAt,omitzero"`
	LastUsedAt      time.Time `json:"lastUsedAt,omitzero"`

	raw
}

// Template is what a sandbox can be made of.
type Template struct {
	ID               string            `json:"id"`
	Slug             string            `json:"slug"`
	Name             string            `json:"name"`
	Description      string            `json:"description"`
	DefaultVersionID string            `json:"defaultVersionId"`
	Versions         []TemplateVersion `json:"versions"`

	raw
}

// TemplateVersion is one immutable version of a template.
type TemplateVersion struct {
	ID                string           `json:"id"`
	TemplateID        string           `json:"templateId"`
	Version           string           `json:"version"`
	CreatedAt         time.Time        `json:"createdAt"`
	DeprecatedAt      time.Time        `json:"deprecatedAt,omitzero"`
	ImageSizeBytes    int64            `json:"imageSizeBytes"`
	Resources         Resources        `json:"resources"`
	ComputeMultiplier float64          `json:"computeMultiplier"`
	Contents          TemplateContents `json:"contents"`
}

// TemplateContents says what is in a template version.
type TemplateContents struct {
	OS       string            `json:"os"`
	Runtimes map[string]string `json:"runtimes"`
	Packages []string          `json:"packages"`
}

// UsageSummary is the use of the current period.
type UsageSummary struct {
	Period                      UsagePeriod            `json:"period"`
	PricingVersion              string                 `json:"pricingVersion"`
	ComputeUnitSecondsPerCredit float64                `json:"computeUnitSecondsPerCredit"`
	CurrencyPerCredit           float64                `json:"currencyPerCredit"`
	ComputeUnitSeconds          UsageAmount            `json:"computeUnitSeconds"`
	Credits                     UsageAmount            `json:"credits"`
	Quotas                      map[string]UsageBucket `json:"quotas"`
	Events                      []UsageEvent           `json:"events,omitempty"`

	raw
}

// UsagePeriod is a calendar month in UTC.
type UsagePeriod struct {
	Start   time.Time `json:"start"`
	End     time.Time `json:"end"`
	ResetAt time.Time `json:"resetAt"`
}

// UsageAmount is an amount used and, where there is a limit, what remains.
type UsageAmount struct {
	Used      float64  `json:"used"`
	Remaining *float64 `json:"remaining,omitempty"`
}

// UsageBucket is one quota. Remaining is nil where nothing but the host limits it.
type UsageBucket struct {
	Current   *float64   `json:"current,omitempty"`
	Limit     float64    `json:"limit"`
	Remaining *float64   `json:"remaining,omitempty"`
	ResetAt   *time.Time `json:"resetAt,omitempty"`
}

// UsageEvent is one metered amount.
type UsageEvent struct {
	Metric         string    `json:"metric"`
	Amount         float64   `json:"amount"`
	CreatedAt      time.Time `json:"createdAt"`
	OrgID          string    `json:"orgId"`
	ProjectID      string    `json:"projectId,omitempty"`
	ResourceID     string    `json:"resourceId,omitempty"`
	PricingVersion string    `json:"pricingVersion,omitempty"`
}

// AuditEvent is one link of the organisation's append-only chain.
type AuditEvent struct {
	ID        string         `json:"id"`
	OrgID     string         `json:"orgId"`
	ProjectID string         `json:"projectId,omitempty"`
	Actor     AuditActor     `json:"actor"`
	Action    string         `json:"action"`
	Resource  AuditResource  `json:"resource"`
	Outcome   string         `json:"outcome"`
	RequestID string         `json:"requestId,omitempty"`
	CreatedAt time.Time      `json:"createdAt"`
	Details   map[string]any `json:"details"`
	PrevHash  string         `json:"prevHash"`
	Hash      string         `json:"hash"`

	raw
}

// AuditActor says who did it.
type AuditActor struct {
	Kind      string `json:"kind"`
	ID        string `json:"id"`
	IP        string `json:"ip,omitempty"`
	UserAgent string `json:"userAgent,omitempty"`
}

// AuditResource says what it was done to.
type AuditResource struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

// AuditVerification is the result of a walk along the chain.
type AuditVerification struct {
	OK         bool   `json:"ok"`
	Checked    int64  `json:"checked"`
	FirstID    string `json:"firstId,omitempty"`
	LastID     string `json:"lastId,omitempty"`
	BrokenAtID string `json:"brokenAtId,omitempty"`

	raw
}
