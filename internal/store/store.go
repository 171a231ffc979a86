// Package store says what the records of the service are and what may be asked
// of them: one contract, kept by every engine. It knows the domain and nothing of
// SQL, HTTP or the runtime. The suite in storetest holds for every implementation.
package store

import (
	"context"
	"errors"
	"time"

	"crownest.dev/crownest/internal/sandbox"
)

// Errors of the contract, wrapped with what was being done.
var (
	ErrNotFound = errors.New("no such record")
	ErrConflict = errors.New("record already exists or changed meanwhile")
	// ErrAuditTruncated ends a walk along an audit chain whose last events are gone.
	ErrAuditTruncated = errors.New("audit chain does not reach its recorded end")
)

// Store keeps records. What a method returned without an error survives the end
// of the process at any moment.
type Store interface {
	Reader
	// Update runs fn in one serializable read-write transaction. fn may run more
	// than once; it must have no effects outside tx, and not call Update itself. An
	// error from fn rolls back and is returned unchanged.
	Update(ctx context.Context, fn func(tx Tx) error) error
	Close() error
}

// Page bounds a list that is ordered newest first by (created, id).
type Page struct {
	Limit     int       // at least 1
	AfterTime time.Time // zero = from the newest
	AfterID   string
}

// SandboxFilter selects sandboxes of one organisation.
type SandboxFilter struct {
	OrgID      string
	ProjectIDs []string // nil = all
	Historical bool     // also destroyed and failed ones
	Metadata   map[string]string
	Page
}

// ArtifactFilter selects the live artifacts of one sandbox.
type ArtifactFilter struct {
	SandboxID string
	Page
}

// AuditFilter selects audit events of one organisation.
type AuditFilter struct {
	OrgID                       string
	ProjectIDs                  []string // nil = all, events without a project included
	Action, ActorID, ResourceID string
	Since, Until                time.Time
	Page
}

// Reader is the reading half, usable inside and outside of a transaction.
type Reader interface {
	// Org returns the one organisation of a self-hosted server and its operator
	// user; ErrNotFound before the first start made them.
	Org(ctx context.Context) (Org, error)

	Project(ctx context.Context, id string) (sandbox.Project, error)
	ProjectByName(ctx context.Context, orgID, name string) (sandbox.Project, error)
	// Projects lists newest first; ids nil = all of the organisation.
	Projects(ctx context.Context, orgID string, ids []string, p Page) ([]sandbox.Project, error)

	Key(ctx context.Context, id string) (sandbox.Key, error)
	KeyByHash(ctx context.Context, hash string) (sandbox.Key, error)
	Keys(ctx context.Context, orgID string, p Page) ([]sandbox.Key, error)

	Sandbox(ctx context.Context, id string) (sandbox.Sandbox, error)
	Sandboxes(ctx context.Context, f SandboxFilter) ([]sandbox.Sandbox, error)
	// ActiveSandboxes returns every sandbox that is not destroyed or failed, of
	// all organisations, for reconciling and timers.
	ActiveSandboxes(ctx context.Context) ([]sandbox.Sandbox, error)
	CountActiveSandboxes(ctx context.Context, orgID string, projectIDs []string) (int, error)

	Command(ctx context.Context, id string) (sandbox.Command, error)
	// Commands lists newest first, without stdout and stderr.
	Commands(ctx context.Context, sandboxID string, p Page) ([]sandbox.Command, error)
	// ActiveCommands returns the commands of a sandbox that have not ended.
	ActiveCommands(ctx context.Context, sandboxID string) ([]sandbox.Command, error)
	// CommandTotals counts all commands of a sandbox, for its tombstone.
	CommandTotals(ctx context.Context, sandboxID string) (count int, err error)

	Artifact(ctx context.Context, id string) (sandbox.Artifact, error)
	Artifacts(ctx context.Context, f ArtifactFilter) ([]sandbox.Artifact, error)
	// ExpiredArtifacts returns live artifacts whose retention ended before t.
	ExpiredArtifacts(ctx context.Context, t time.Time, limit int) ([]sandbox.Artifact, error)
	// ExpiredCommandLogs returns ids of ended commands that finished before t and
	// whose log has not been dropped yet.
	ExpiredCommandLogs(ctx context.Context, t time.Time, limit int) ([]string, error)

	Upload(ctx context.Context, id string) (sandbox.Upload, error)

	// UsageTotals sums amounts by metric in [start, end); projectIDs nil = all.
	UsageTotals(ctx context.Context, orgID string, projectIDs []string, start, end time.Time) (map[string]float64, error)
	// UsageEvents returns the latest events, newest first.
	UsageEvents(ctx context.Context, orgID string, projectIDs []string, limit int) ([]sandbox.UsageEvent, error)
	// UsageOfResource sums one metric over everything recorded for a resource.
	UsageOfResource(ctx context.Context, resourceID, metric string) (float64, error)

	AuditEvents(ctx context.Context, f AuditFilter) ([]sandbox.AuditEvent, error)
	// WalkAudit calls fn for every event of the chain, oldest first, and ends with
	// ErrAuditTruncated if events are missing at its end.
	WalkAudit(ctx context.Context, orgID string, fn func(sandbox.AuditEvent) error) error

	// Operation returns an idempotency record that has not expired.
	Operation(ctx context.Context, namespace string) (Operation, error)
	// Secret returns a named server secret (signing keys); ErrNotFound if unset.
	Secret(ctx context.Context, name string) ([]byte, error)
}

// Tx is a transaction. Inserts of an existing id are ErrConflict.
type Tx interface {
	Reader

	InsertOrg(ctx context.Context, o Org) error
	InsertProject(ctx context.Context, p sandbox.Project) error
	InsertKey(ctx context.Context, k sandbox.Key) error
	RevokeKey(ctx context.Context, id string, at time.Time) error
	// TouchKeys records last uses.
	TouchKeys(ctx context.Context, lastUsed map[string]time.Time) error

	InsertSandbox(ctx context.Context, s sandbox.Sandbox) error
	// UpdateSandbox writes every mutable field of s if the stored status is still
	// one of from (any, if from is empty); otherwise ErrConflict.
	UpdateSandbox(ctx context.Context, s sandbox.Sandbox, from ...sandbox.Status) error

	InsertCommand(ctx context.Context, c sandbox.Command) error
	// UpdateCommand writes every mutable field of c. A stored terminal status
	// never changes: then ErrConflict.
	UpdateCommand(ctx context.Context, c sandbox.Command) error
	// MarkCommandLogDropped remembers that retention removed the log.
	MarkCommandLogDropped(ctx context.Context, id string) error

	InsertArtifact(ctx context.Context, a sandbox.Artifact) error
	DeleteArtifact(ctx context.Context, id string, at time.Time) error

	InsertUpload(ctx context.Context, u sandbox.Upload) error
	UpdateUpload(ctx context.Context, u sandbox.Upload) error

	InsertUsage(ctx context.Context, e ...sandbox.UsageEvent) error
	// AppendAudit completes each event with PrevHash and Hash and appends it to
	// its organisation's chain.
	AppendAudit(ctx context.Context, e ...sandbox.AuditEvent) error

	// BeginOperation inserts o, or returns what is stored under its namespace. An
	// expired record is replaced. A stored record that is not done and has no
	// owner, or an owner other than o.Owner, belonged to a request that is gone:
	// it is taken over (owner = o.Owner, its OperationID kept), provided the
	// fingerprints are equal. fresh says that the caller has to do the work: the
	// record is new or was taken over.
	BeginOperation(ctx context.Context, o Operation) (stored Operation, fresh bool, err error)
	// FinishOperation stores the answer and, if set, a new expiry.
	FinishOperation(ctx context.Context, o Operation) error
	// ReleaseOperation clears the owner: the answer must not be stored, but a
	// retry must get the same OperationID.
	ReleaseOperation(ctx context.Context, namespace string) error
	// DropOperation removes the record: nothing happened under it.
	DropOperation(ctx context.Context, namespace string) error
	// PruneOperations deletes up to limit records that expired before t.
	PruneOperations(ctx context.Context, t time.Time, limit int) (int, error)

	SetSecret(ctx context.Context, name string, value []byte) error
}

// Org is the organisation that owns everything on a self-hosted server.
type Org struct {
	ID, Name       string
	OperatorUserID string
	CreatedAt      time.Time
}

// Operation is an idempotency record.
type Operation struct {
	Namespace   string // hash over organisation, credential, method, route, path and key
	Fingerprint string // hash over the request
	OperationID string // suffix of the resource id that the request makes
	Owner       string // boot id of the server process that works on it; empty = nobody
	Done        bool
	Status      int
	Body        []byte // sealed where Sealed
	Sealed      bool
	CreatedAt   time.Time
	ExpiresAt   time.Time
}
