package sandbox

import "time"

// Status is the state of a sandbox.
type Status string

// The states of contract section 5.2. Creating through Expiring count as active.
const (
	StatusCreating  Status = "creating"
	StatusStarting  Status = "starting"
	StatusReady     Status = "ready"
	StatusRunning   Status = "running"
	StatusIdle      Status = "idle"
	StatusExpiring  Status = "expiring"
	StatusDestroyed Status = "destroyed"
	StatusFailed    Status = "failed"
)

// Active reports whether a sandbox in this state still holds, or is about to
// hold, resources of the host.
func (s Status) Active() bool { return s != StatusDestroyed && s != StatusFailed }

// Ended is true from the moment on at which no new work is taken.
func (s Status) Ended() bool { return !s.Active() || s == StatusExpiring }

// DestroyedReason says who or what ended a sandbox.
type DestroyedReason string

// The reasons of contract section 3.
const (
	ReasonIdleExpired     DestroyedReason = "idle_expired"
	ReasonPlatformCleanup DestroyedReason = "platform_cleanup"
	ReasonTTLExpired      DestroyedReason = "ttl_expired"
	ReasonUserKilled      DestroyedReason = "user_killed"
)

// Resources bounds what one sandbox may use.
type Resources struct {
	VCPU         float64 `json:"vcpu"`
	MemoryBytes  int64   `json:"memoryBytes"`
	DiskBytes    int64   `json:"diskBytes"`
	MaxProcesses int     `json:"maxProcesses"` // tasks, threads included
}

// DefaultResources is the default size, which has the compute multiplier 1.0.
var DefaultResources = Resources{VCPU: 1, MemoryBytes: 1 << 30, DiskBytes: 2 << 30, MaxProcesses: 256}

// Egress says how much of the network a sandbox may reach.
type Egress string

// The egress policies of contract section 5.4.
const (
	EgressNone      Egress = "none"
	EgressAllowlist Egress = "allowlist"
	EgressInternet  Egress = "internet"
)

// Network is the egress policy of a sandbox.
type Network struct {
	Egress Egress   `json:"egress"`
	Allow  []string `json:"allow,omitempty"`
}

// Project groups the resources of an organisation.
type Project struct {
	ID, OrgID, Name string
	CreatedAt       time.Time
}

// DefaultProjectName is the project that every organisation has from the start.
const DefaultProjectName = "default"

// Sandbox is the record of one sandbox; it outlives the sandbox itself. Zero
// times and empty strings mean absent.
type Sandbox struct {
	ID, OrgID, ProjectID string
	Status               Status
	TemplateID           string
	TemplateSlug         string
	TemplateVersion      string
	TemplateVersionID    string
	TTL                  time.Duration // the last value asked for
	ExpiresAt            time.Time
	Metadata             map[string]string
	CreatedAt            time.Time
	ReadyAt              time.Time // when billing began
	DestroyedAt          time.Time
	DestroyedReason      DestroyedReason
	Network              Network
	Resources            Resources
	ComputeMultiplier    float64

	// RuntimeID names the runtime instance that is, or was, this sandbox.
	RuntimeID string
	// FailureCause is the internal reason of StatusFailed, for operators only.
	FailureCause string
	// MeteredMs is how many milliseconds of life are already in usage events.
	MeteredMs int64
}

// CommandStatus is the state of a command.
type CommandStatus string

// The states of contract section 6.1.
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

// Terminal reports whether a command in this state has ended for good.
func (s CommandStatus) Terminal() bool {
	switch s {
	case CommandQueued, CommandStarting, CommandRunning:
		return false
	}
	return true
}

// CancelMode says how a command is canceled.
type CancelMode string

// Graceful sends SIGTERM to the whole process tree and SIGKILL after ten
// seconds, force sends SIGKILL at once.
const (
	CancelGraceful CancelMode = "graceful"
	CancelForce    CancelMode = "force"
)

// CollectStatus is the state of the collection of a command's files.
type CollectStatus string

// The states of contract section 6.4.
const (
	CollectNotRequested CollectStatus = "not_requested"
	CollectPending      CollectStatus = "pending"
	CollectSucceeded    CollectStatus = "succeeded"
	CollectPartial      CollectStatus = "partial"
	CollectFailed       CollectStatus = "failed"
	CollectSkipped      CollectStatus = "skipped"
)

// CollectOn says after which ends of a command its files are collected.
type CollectOn string

// OnSuccess collects after exit code 0 only, OnAlways after every end.
const (
	OnSuccess CollectOn = "success"
	OnAlways  CollectOn = "always"
)

// CollectItem asks for one file to be kept as an artifact.
type CollectItem struct {
	Path string `json:"path"`
	Name string `json:"name,omitempty"`
}

// CollectError says why one file was not collected.
type CollectError struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Path    string `json:"path"`
}

// Command is the record of one command. Env values are never part of it.
type Command struct {
	ID, SandboxID, OrgID, ProjectID string
	Command                         string
	Cwd                             string
	Status                          CommandStatus
	CancelMode                      CancelMode
	CanceledAt                      time.Time
	ExitCode                        *int
	Stdout, Stderr                  string // the first MiB of each, once terminal
	StdoutTruncated                 bool
	StderrTruncated                 bool
	CreatedAt, StartedAt            time.Time
	FinishedAt                      time.Time
	Duration                        time.Duration
	Timeout                         time.Duration // 0 = the sandbox's deadline
	Collect                         []CollectItem
	CollectOn                       CollectOn
	CollectStatus                   CollectStatus
	CollectErrors                   []CollectError
	ArtifactIDs                     []string
	KilledReason                    string
	TerminationSignal               string
	FailureCause                    string // internal reason of CommandFailed, for operators only
}

// KilledSandboxDestroyed is the only value of Command.KilledReason.
const KilledSandboxDestroyed = "sandbox_destroyed"

// Stream names one of the two output streams of a command.
type Stream string

// The two streams; both share one series of sequence numbers.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// LogChunk is one piece of a command's output, at most 64 KiB.
type LogChunk struct {
	CommandID string
	Seq       int64 // from 1, no holes, one series over both streams
	Stream    Stream
	Data      []byte // exact bytes; text routes replace what is not UTF-8
	CreatedAt time.Time
}

// FileType tells files from directories; everything else counts as a file.
type FileType string

// The types of contract section 8.
const (
	FileTypeFile      FileType = "file"
	FileTypeDirectory FileType = "directory"
)

// FileInfo describes one entry below the workspace.
type FileInfo struct {
	Name       string
	Path       string // absolute
	Size       int64
	Type       FileType
	ModifiedAt time.Time
}

// Artifact is a file that was kept and outlives its sandbox.
type Artifact struct {
	ID, OrgID, ProjectID, SandboxID string
	CommandID                       string
	Name                            string
	ObjectKey                       string
	Size                            int64
	SHA256                          string
	ContentType                     string
	SourcePath                      string
	CreatedAt, DeletedAt            time.Time
	RetentionExpiresAt              time.Time // zero = kept for ever
}

// Upload is a staged upload of one file into a sandbox.
type Upload struct {
	ID, OrgID, ProjectID, SandboxID string
	Path                            string
	Size                            int64 // -1 = not declared
	SHA256                          string
	CreateParents, Overwrite        bool
	Status                          UploadStatus
	CreatedAt, ExpiresAt            time.Time
}

// UploadStatus is the state of a staged upload.
type UploadStatus string

// A pending upload waits for its bytes, a finalized one took them.
const (
	UploadPending   UploadStatus = "pending"
	UploadFinalized UploadStatus = "finalized"
)

// Key is an API key without its secret.
type Key struct {
	ID, OrgID, Name, Prefix, Last4 string
	Hash                           string   // hex SHA-256 of the secret
	ProjectIDs                     []string // empty = all projects of the organisation
	Scopes                         []string
	CreatedByUserID                string
	CreatedAt, RevokedAt           time.Time
	LastUsedAt                     time.Time
}

// UsageEvent is one metered amount.
type UsageEvent struct {
	ID             int64
	OrgID          string
	ProjectID      string
	ResourceID     string
	Metric         string
	Amount         float64
	PricingVersion string
	CreatedAt      time.Time
}

// The metrics of contract section 10.3.
const (
	MetricComputeUnitSeconds  = "compute_unit_seconds"
	MetricArtifactBytesStored = "artifact_bytes_stored"
	MetricCodeRunInvocations  = "code_run_invocations"
	MetricCommandInvocations  = "command_invocations"
	MetricFileBytesWritten    = "file_bytes_written"
	MetricPreviewMinutes      = "preview_minutes"
	MetricSandboxCreates      = "sandbox_creates"
)

// AuditEvent is one link of an organisation's audit chain.
type AuditEvent struct {
	ID, OrgID, ProjectID string
	Actor                AuditActor
	Action               string // for instance sandbox.create
	ResourceType         string
	ResourceID           string
	Outcome              string // success, denied, error
	RequestID            string
	CreatedAt            time.Time
	Details              map[string]any
	PrevHash, Hash       string
}

// AuditActor says who did it.
type AuditActor struct {
	Kind      string // human, api_key, agent_credential, system
	ID        string
	IP        string
	UserAgent string
}

// Outcomes of an audit event.
const (
	OutcomeSuccess = "success"
	OutcomeDenied  = "denied"
	OutcomeError   = "error"
)
