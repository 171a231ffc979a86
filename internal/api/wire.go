package api

import (
	"strings"
	"time"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
)

// timeLayout is RFC 3339 in UTC with exactly three decimals.
const timeLayout = "2006-01-02T15:04:05.000Z"

// timestamp formats a time; the zero time is absent.
func timestamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(timeLayout)
}

// The wire types have the shapes of contract section 3. What may be absent has
// omitempty; nothing is ever null.

type wireProject struct {
	ID        string `json:"id"`
	OrgID     string `json:"orgId"`
	Name      string `json:"name"`
	CreatedAt string `json:"createdAt" format:"date-time"`
}

func toProject(p sandbox.Project) wireProject {
	return wireProject{p.ID, p.OrgID, p.Name, timestamp(p.CreatedAt)}
}

type wireNetwork struct {
	Egress string   `json:"egress" enum:"none,allowlist,internet" doc:"How much of the network the sandbox may reach."`
	Allow  []string `json:"allow,omitempty" doc:"Host, *.domain, IP address or CIDR, each with an optional :port."`
}

type wireResources struct {
	VCPU         float64 `json:"vcpu"`
	MemoryBytes  int64   `json:"memoryBytes"`
	DiskBytes    int64   `json:"diskBytes"`
	MaxProcesses int     `json:"maxProcesses" doc:"Tasks, threads included."`
}

func toResources(r sandbox.Resources) wireResources {
	return wireResources{r.VCPU, r.MemoryBytes, r.DiskBytes, r.MaxProcesses}
}

type wireSandbox struct {
	ID                string            `json:"id"`
	OrgID             string            `json:"orgId"`
	ProjectID         string            `json:"projectId"`
	Status            string            `json:"status" enum:"creating,starting,ready,running,idle,expiring,destroyed,failed"`
	TemplateID        string            `json:"templateId"`
	TemplateSlug      string            `json:"templateSlug"`
	TemplateVersion   string            `json:"templateVersion"`
	TemplateVersionID string            `json:"templateVersionId"`
	TTLMs             int64             `json:"ttlMs"`
	ExpiresAt         string            `json:"expiresAt" format:"date-time"`
	Metadata          map[string]string `json:"metadata"`
	CreatedAt         string            `json:"createdAt" format:"date-time"`
	DestroyedAt       string            `json:"destroyedAt,omitempty" format:"date-time"`
	DestroyedReason   string            `json:"destroyedReason,omitempty" enum:"idle_expired,platform_cleanup,ttl_expired,user_killed"`
	Network           wireNetwork       `json:"network"`
	Resources         wireResources     `json:"resources"`
}

// noStrings is the empty map that is sent where there is nothing; never written to.
var noStrings = map[string]string{}

func toSandbox(s sandbox.Sandbox) wireSandbox {
	w := wireSandbox{
		ID: s.ID, OrgID: s.OrgID, ProjectID: s.ProjectID, Status: string(s.Status),
		TemplateID: s.TemplateID, TemplateSlug: s.TemplateSlug,
		TemplateVersion: s.TemplateVersion, TemplateVersionID: s.TemplateVersionID,
		TTLMs: s.TTL.Milliseconds(), ExpiresAt: timestamp(s.ExpiresAt),
		Metadata: s.Metadata, CreatedAt: timestamp(s.CreatedAt),
		DestroyedAt: timestamp(s.DestroyedAt), DestroyedReason: string(s.DestroyedReason),
		Network:   wireNetwork{string(s.Network.Egress), s.Network.Allow},
		Resources: toResources(s.Resources),
	}
	if w.Metadata == nil {
		w.Metadata = noStrings
	}
	if w.Network.Egress == "" {
		w.Network.Egress = string(sandbox.EgressNone)
	}
	return w
}

type wireCollectError struct {
	Code    string `json:"code" enum:"artifact_collect_failed,file_not_found,path_outside_workspace"`
	Message string `json:"message"`
	Path    string `json:"path"`
}

type wireCommand struct {
	ID                string             `json:"id"`
	SandboxID         string             `json:"sandboxId"`
	Command           string             `json:"command"`
	Cwd               string             `json:"cwd"`
	Env               map[string]string  `json:"env" doc:"Always empty: values are never stored."`
	Status            string             `json:"status" enum:"queued,starting,running,exited,failed,canceled,timed_out,killed"`
	CancelMode        string             `json:"cancelMode,omitempty" enum:"graceful,force"`
	CanceledAt        string             `json:"canceledAt,omitempty" format:"date-time"`
	ExitCode          *int               `json:"exitCode,omitempty"`
	Stdout            *string            `json:"stdout,omitempty" doc:"The first MiB."`
	Stderr            *string            `json:"stderr,omitempty" doc:"The first MiB."`
	StdoutTruncated   bool               `json:"stdoutTruncated,omitempty"`
	StderrTruncated   bool               `json:"stderrTruncated,omitempty"`
	CreatedAt         string             `json:"createdAt" format:"date-time"`
	StartedAt         string             `json:"startedAt,omitempty" format:"date-time"`
	FinishedAt        string             `json:"finishedAt,omitempty" format:"date-time"`
	DurationMs        *int64             `json:"durationMs,omitempty"`
	CollectStatus     string             `json:"collectStatus,omitempty" enum:"not_requested,pending,succeeded,partial,failed,skipped"`
	CollectErrors     []wireCollectError `json:"collectErrors,omitempty"`
	ArtifactIDs       []string           `json:"artifactIds,omitempty"`
	KilledReason      string             `json:"killedReason,omitempty" enum:"sandbox_destroyed"`
	TerminationSignal string             `json:"terminationSignal,omitempty" enum:"SIGTERM,SIGKILL"`
}

// toCommand returns the shape of a command. Output is there once the command is
// terminal, except in lists.
func toCommand(c sandbox.Command, output bool) wireCommand {
	w := wireCommand{
		ID: c.ID, SandboxID: c.SandboxID, Command: c.Command, Cwd: c.Cwd, Env: noStrings,
		Status: string(c.Status), CancelMode: string(c.CancelMode), CanceledAt: timestamp(c.CanceledAt),
		ExitCode: c.ExitCode, CreatedAt: timestamp(c.CreatedAt),
		StartedAt: timestamp(c.StartedAt), FinishedAt: timestamp(c.FinishedAt),
		CollectStatus: string(c.CollectStatus), ArtifactIDs: c.ArtifactIDs,
		KilledReason: c.KilledReason, TerminationSignal: c.TerminationSignal,
	}
	if output && c.Status.Terminal() {
		w.Stdout, w.Stderr = &c.Stdout, &c.Stderr
		w.StdoutTruncated, w.StderrTruncated = c.StdoutTruncated, c.StderrTruncated
	}
	if !c.StartedAt.IsZero() && !c.FinishedAt.IsZero() {
		ms := c.Duration.Milliseconds()
		w.DurationMs = &ms
	}
	for _, e := range c.CollectErrors {
		w.CollectErrors = append(w.CollectErrors, wireCollectError{string(e.Code), e.Message, e.Path})
	}
	return w
}

type wireLogChunk struct {
	CommandID string `json:"commandId"`
	CreatedAt string `json:"createdAt" format:"date-time"`
	Data      string `json:"data"`
	Seq       int64  `json:"seq"`
	Stream    string `json:"stream" enum:"stdout,stderr"`
}

type wireFileStat struct {
	Path       string `json:"path"`
	SizeBytes  int64  `json:"sizeBytes"`
	Type       string `json:"type" enum:"file,directory"`
	ModifiedAt string `json:"modifiedAt,omitempty" format:"date-time"`
}

type wireFileEntry struct {
	Name       string `json:"name"`
	Path       string `json:"path"`
	SizeBytes  int64  `json:"sizeBytes"`
	Type       string `json:"type" enum:"file,directory"`
	ModifiedAt string `json:"modifiedAt,omitempty" format:"date-time"`
}

func toFileStat(f sandbox.FileInfo) wireFileStat {
	return wireFileStat{f.Path, f.Size, string(f.Type), timestamp(f.ModifiedAt)}
}

func toFileEntry(f sandbox.FileInfo) wireFileEntry {
	return wireFileEntry{f.Name, f.Path, f.Size, string(f.Type), timestamp(f.ModifiedAt)}
}

type wireArtifact struct {
	ID                 string `json:"id"`
	OrgID              string `json:"orgId"`
	ProjectID          string `json:"projectId"`
	SandboxID          string `json:"sandboxId"`
	Name               string `json:"name"`
	ObjectKey          string `json:"objectKey" doc:"Opaque."`
	SizeBytes          int64  `json:"sizeBytes"`
	ContentType        string `json:"contentType,omitempty"`
	SourcePath         string `json:"sourcePath,omitempty"`
	CreatedAt          string `json:"createdAt" format:"date-time"`
	DeletedAt          string `json:"deletedAt,omitempty" format:"date-time"`
	RetentionExpiresAt string `json:"retentionExpiresAt,omitempty" format:"date-time"`
	SHA256             string `json:"sha256,omitempty"`
	CommandID          string `json:"commandId,omitempty"`
}

func toArtifact(a sandbox.Artifact) wireArtifact {
	return wireArtifact{
		ID: a.ID, OrgID: a.OrgID, ProjectID: a.ProjectID, SandboxID: a.SandboxID,
		Name: a.Name, ObjectKey: a.ObjectKey, SizeBytes: a.Size, ContentType: a.ContentType,
		SourcePath: a.SourcePath, CreatedAt: timestamp(a.CreatedAt), DeletedAt: timestamp(a.DeletedAt),
		RetentionExpiresAt: timestamp(a.RetentionExpiresAt), SHA256: a.SHA256, CommandID: a.CommandID,
	}
}

type wireApiKey struct {
	ID              string   `json:"id"`
	OrgID           string   `json:"orgId"`
	Name            string   `json:"name"`
	Prefix          string   `json:"prefix"`
	Last4           string   `json:"last4"`
	ProjectIDs      []string `json:"projectIds,omitempty" doc:"Absent: all projects of the organisation."`
	Scopes          []string `json:"scopes"`
	CreatedByUserID string   `json:"createdByUserId"`
	CreatedAt       string   `json:"createdAt" format:"date-time"`
	RevokedAt       string   `json:"revokedAt,omitempty" format:"date-time"`
	LastUsedAt      string   `json:"lastUsedAt,omitempty" format:"date-time"`
}

func toKey(k sandbox.Key) wireApiKey {
	return wireApiKey{
		ID: k.ID, OrgID: k.OrgID, Name: k.Name, Prefix: k.Prefix, Last4: k.Last4,
		ProjectIDs: k.ProjectIDs, Scopes: nonNil(k.Scopes), CreatedByUserID: k.CreatedByUserID,
		CreatedAt: timestamp(k.CreatedAt), RevokedAt: timestamp(k.RevokedAt), LastUsedAt: timestamp(k.LastUsedAt),
	}
}

type wireDownloadUrl struct {
	AuthMode  string            `json:"authMode" enum:"api_key"`
	Headers   map[string]string `json:"headers"`
	Method    string            `json:"method" enum:"GET"`
	URL       string            `json:"url" format:"uri"`
	ExpiresAt string            `json:"expiresAt" format:"date-time"`
}

type wireUploadUrl struct {
	UploadID     string            `json:"uploadId"`
	Method       string            `json:"method" enum:"PUT"`
	URL          string            `json:"url" format:"uri"`
	Headers      map[string]string `json:"headers"`
	ExpiresAt    string            `json:"expiresAt" format:"date-time"`
	MaxSizeBytes int64             `json:"maxSizeBytes"`
}

type wireTemplateContents struct {
	OS       string            `json:"os"`
	Runtimes map[string]string `json:"runtimes" doc:"Name to version."`
	Packages []string          `json:"packages"`
}

type wireTemplateVersion struct {
	ID                string               `json:"id"`
	TemplateID        string               `json:"templateId"`
	Version           string               `json:"version"`
	CreatedAt         string               `json:"createdAt" format:"date-time"`
	DeprecatedAt      string               `json:"deprecatedAt,omitempty" format:"date-time"`
	ImageSizeBytes    int64                `json:"imageSizeBytes"`
	Resources         wireResources        `json:"resources"`
	ComputeMultiplier float64              `json:"computeMultiplier"`
	Contents          wireTemplateContents `json:"contents"`
}

type wireTemplate struct {
	ID               string                `json:"id"`
	Slug             string                `json:"slug"`
	Name             string                `json:"name"`
	Description      string                `json:"description"`
	DefaultVersionID string                `json:"defaultVersionId,omitempty" doc:"Absent until the template is built."`
	Versions         []wireTemplateVersion `json:"versions"`
}

func toTemplate(t control.Template) wireTemplate {
	w := wireTemplate{
		ID: t.ID, Slug: t.Slug, Name: t.Name, Description: t.Description,
		DefaultVersionID: t.DefaultVersionID, Versions: make([]wireTemplateVersion, 0, len(t.Versions)),
	}
	for _, v := range t.Versions {
		runtimes := v.Contents.Runtimes
		if runtimes == nil {
			runtimes = noStrings
		}
		w.Versions = append(w.Versions, wireTemplateVersion{
			ID: v.ID, TemplateID: v.TemplateID, Version: v.Version, CreatedAt: timestamp(v.CreatedAt),
			ImageSizeBytes: v.ImageSizeBytes, Resources: toResources(v.Resources),
			ComputeMultiplier: v.ComputeMultiplier,
			Contents:          wireTemplateContents{v.Contents.OS, runtimes, nonNil(v.Contents.Packages)},
		})
	}
	return w
}

// list is the page of a list whose items are T.
type list[T any] struct {
	Data       []T    `json:"data"`
	HasMore    bool   `json:"hasMore"`
	NextCursor string `json:"nextCursor,omitempty" doc:"Opaque; give it back as cursor."`
}

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// text replaces what is not UTF-8.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
