package sandbox

import "slices"

// Scopes of API keys, in the order of contract section 10.1.
const (
	ScopeSandboxCreate      = "sandbox:create"
	ScopeSandboxRead        = "sandbox:read"
	ScopeSandboxKill        = "sandbox:kill"
	ScopeSandboxExtend      = "sandbox:extend"
	ScopeCommandRun         = "command:run"
	ScopeCommandRead        = "command:read"
	ScopeCommandCancel      = "command:cancel"
	ScopeCodeRun            = "code:run"
	ScopeFileRead           = "file:read"
	ScopeFileWrite          = "file:write"
	ScopeArtifactCreate     = "artifact:create"
	ScopeArtifactRead       = "artifact:read"
	ScopeArtifactDelete     = "artifact:delete"
	ScopePreviewCreate      = "preview:create"
	ScopePreviewRead        = "preview:read"
	ScopePreviewRevoke      = "preview:revoke"
	ScopeWorkspaceRunCreate = "workspace_run:create"
	ScopeWorkspaceRunRead   = "workspace_run:read"
	ScopeWorkspaceRunCancel = "workspace_run:cancel"
	ScopeBackupCreate       = "backup:create"
	ScopeBackupRead         = "backup:read"
	ScopeBackupRestore      = "backup:restore"
	ScopeBackupDelete       = "backup:delete"
	ScopeUsageRead          = "usage:read"
	ScopeAPIKeyRead         = "api_key:read"
	ScopeAPIKeyRevoke       = "api_key:revoke"
	ScopeProjectCreate      = "project:create"
	ScopeAuditRead          = "audit:read"
)

// AllScopes lists every scope a key may hold.
var AllScopes = []string{
	ScopeSandboxCreate, ScopeSandboxRead, ScopeSandboxKill, ScopeSandboxExtend,
	ScopeCommandRun, ScopeCommandRead, ScopeCommandCancel, ScopeCodeRun,
	ScopeFileRead, ScopeFileWrite, ScopeArtifactCreate, ScopeArtifactRead, ScopeArtifactDelete,
	ScopePreviewCreate, ScopePreviewRead, ScopePreviewRevoke,
	ScopeWorkspaceRunCreate, ScopeWorkspaceRunRead, ScopeWorkspaceRunCancel,
	ScopeBackupCreate, ScopeBackupRead, ScopeBackupRestore, ScopeBackupDelete,
	ScopeUsageRead, ScopeAPIKeyRead, ScopeAPIKeyRevoke, ScopeProjectCreate, ScopeAuditRead,
}

// DefaultScopes is the default preset: the 19 scopes of everyday work.
var DefaultScopes = AllScopes[:19:19]

// ValidScope reports whether s is a scope a key may hold.
func ValidScope(s string) bool { return slices.Contains(AllScopes, s) }
