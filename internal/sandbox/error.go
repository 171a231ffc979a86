package sandbox

import (
	"errors"
	"fmt"
)

// Code is a machine-readable error code of the wire contract. Callers branch on
// it; the text beside it is for people.
type Code string

// The codes of contract section 2 that this server sends.
const (
	CodeInvalidRequest          Code = "invalid_request"
	CodeTTLExceeded             Code = "sandbox_ttl_exceeded"
	CodeReservedEnvKey          Code = "reserved_env_key"
	CodeInvalidMetadataKey      Code = "invalid_metadata_key"
	CodeInvalidMetadataValue    Code = "invalid_metadata_value"
	CodeMetadataTooManyKeys     Code = "metadata_too_many_keys"
	CodeMetadataTooLarge        Code = "metadata_too_large"
	CodeUnsupportedCodeLanguage Code = "unsupported_code_language"
	CodeUnsupportedPreviewAuth  Code = "unsupported_preview_auth_mode"
	CodeUnsupportedRuntime      Code = "unsupported_runtime_option"
	CodeInvalidFileEncoding     Code = "invalid_file_encoding"
	CodePathOutsideWorkspace    Code = "path_outside_workspace"
	CodePathIsDirectory         Code = "path_is_directory"
	CodePathNotDirectory        Code = "path_not_directory"
	CodeUploadChecksumMismatch  Code = "upload_checksum_mismatch"
	CodeUploadSizeMismatch      Code = "upload_size_mismatch"
	CodeUnauthorized            Code = "unauthorized"
	CodeInvalidAPIKey           Code = "invalid_api_key"
	CodeCreditExhausted         Code = "credit_exhausted"
	CodeSpendCapReached         Code = "billing_spend_cap_reached"
	CodeForbidden               Code = "forbidden"
	CodeOrgSuspended            Code = "org_suspended"
	CodeFeatureNotEnabled       Code = "feature_not_enabled"
	CodeNotFound                Code = "not_found"
	CodeFileNotFound            Code = "file_not_found"
	CodeParentNotFound          Code = "parent_directory_not_found"
	CodeUploadNotFound          Code = "upload_not_found"
	CodeMethodNotAllowed        Code = "method_not_allowed"
	CodeFileAlreadyExists       Code = "file_already_exists"
	CodeDirectoryNotEmpty       Code = "directory_not_empty"
	CodeIdempotencyKeyReused    Code = "idempotency_key_reused"
	CodeIdempotencyInProgress   Code = "idempotency_request_in_progress"
	CodeUploadConflict          Code = "upload_conflict"
	CodeUploadIncomplete        Code = "upload_incomplete"
	CodeConflict                Code = "conflict"
	CodeStreamGap               Code = "stream_gap"
	CodeSandboxDestroyed        Code = "sandbox_destroyed"
	CodeUploadExpired           Code = "upload_expired"
	CodeFileTooLarge            Code = "file_too_large"
	CodeCodeSourceTooLarge      Code = "code_source_too_large"
	CodeRequestTooLarge         Code = "request_too_large"
	CodeRangeNotSatisfiable     Code = "range_not_satisfiable" // sent as invalid_request with status 416
	CodeQuotaExceeded           Code = "quota_exceeded"
	CodeRateLimited             Code = "rate_limited"
	CodeInternal                Code = "internal_error"
	CodePreviewUnavailable      Code = "preview_unavailable"
	CodeDownloadExportFailed    Code = "download_export_failed"
	CodeCapacityExhausted       Code = "capacity_exhausted"
	CodeSandboxNotReady         Code = "sandbox_not_ready"

	// CodeArtifactCollectFailed appears in collect errors only, never as an envelope.
	CodeArtifactCollectFailed Code = "artifact_collect_failed"
)

// Error is the one error type that may reach a client: a code, a sentence for
// people and details for programs. The cause is for the log and is never sent.
type Error struct {
	Code    Code
	Message string
	Details map[string]any
	cause   error
}

// NewError returns an error with a code and a formatted message.
func NewError(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// With adds one detail for programs.
func (e *Error) With(key string, value any) *Error {
	if e.Details == nil {
		e.Details = map[string]any{}
	}
	e.Details[key] = value
	return e
}

// Because attaches the cause, which is logged and never sent.
func (e *Error) Because(cause error) *Error {
	e.cause = cause
	return e
}

func (e *Error) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.cause)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

func (e *Error) Unwrap() error { return e.cause }

// CodeOf returns the code that err carries; every error without one is CodeInternal.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// Is reports whether err carries the code.
func (c Code) Is(err error) bool { return err != nil && CodeOf(err) == c }
