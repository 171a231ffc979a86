package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"crownest.dev/crownest/internal/sandbox"
)

// statusOf maps the codes of contract section 2 to their HTTP status. A code
// that is missing here is a fault of ours and answers 500.
var statusOf = map[sandbox.Code]int{
	sandbox.CodeInvalidRequest:          http.StatusBadRequest,
	sandbox.CodeTTLExceeded:             http.StatusBadRequest,
	sandbox.CodeReservedEnvKey:          http.StatusBadRequest,
	sandbox.CodeInvalidMetadataKey:      http.StatusBadRequest,
	sandbox.CodeInvalidMetadataValue:    http.StatusBadRequest,
	sandbox.CodeMetadataTooManyKeys:     http.StatusBadRequest,
	sandbox.CodeMetadataTooLarge:        http.StatusBadRequest,
	sandbox.CodeUnsupportedCodeLanguage: http.StatusBadRequest,
	sandbox.CodeUnsupportedPreviewAuth:  http.StatusBadRequest,
	sandbox.CodeUnsupportedRuntime:      http.StatusBadRequest,
	sandbox.CodeInvalidFileEncoding:     http.StatusBadRequest,
	sandbox.CodePathOutsideWorkspace:    http.StatusBadRequest,
	sandbox.CodePathIsDirectory:         http.StatusBadRequest,
	sandbox.CodePathNotDirectory:        http.StatusBadRequest,
	sandbox.CodeUploadChecksumMismatch:  http.StatusBadRequest,
	sandbox.CodeUploadSizeMismatch:      http.StatusBadRequest,
	sandbox.CodeUnauthorized:            http.StatusUnauthorized,
	sandbox.CodeInvalidAPIKey:           http.StatusUnauthorized,
	sandbox.CodeCreditExhausted:         http.StatusPaymentRequired,
	sandbox.CodeSpendCapReached:         http.StatusPaymentRequired,
	sandbox.CodeForbidden:               http.StatusForbidden,
	sandbox.CodeOrgSuspended:            http.StatusForbidden,
	sandbox.CodeFeatureNotEnabled:       http.StatusForbidden,
	sandbox.CodeNotFound:                http.StatusNotFound,
	sandbox.CodeFileNotFound:            http.StatusNotFound,
	sandbox.CodeParentNotFound:          http.StatusNotFound,
	sandbox.CodeUploadNotFound:          http.StatusNotFound,
	sandbox.CodeMethodNotAllowed:        http.StatusMethodNotAllowed,
	sandbox.CodeFileAlreadyExists:       http.StatusConflict,
	sandbox.CodeDirectoryNotEmpty:       http.StatusConflict,
	sandbox.CodeIdempotencyKeyReused:    http.StatusConflict,
	sandbox.CodeIdempotencyInProgress:   http.StatusConflict,
	sandbox.CodeUploadConflict:          http.StatusConflict,
	sandbox.CodeUploadIncomplete:        http.StatusConflict,
	sandbox.CodeConflict:                http.StatusConflict,
	sandbox.CodeStreamGap:               http.StatusConflict,
	sandbox.CodeSandboxDestroyed:        http.StatusGone,
	sandbox.CodeUploadExpired:           http.StatusGone,
	sandbox.CodeFileTooLarge:            http.StatusRequestEntityTooLarge,
	sandbox.CodeCodeSourceTooLarge:      http.StatusRequestEntityTooLarge,
	sandbox.CodeRequestTooLarge:         http.StatusRequestEntityTooLarge,
	sandbox.CodeRangeNotSatisfiable:     http.StatusRequestedRangeNotSatisfiable,
	sandbox.CodeQuotaExceeded:           http.StatusTooManyRequests,
	sandbox.CodeRateLimited:             http.StatusTooManyRequests,
	sandbox.CodeInternal:                http.StatusInternalServerError,
	sandbox.CodePreviewUnavailable:      http.StatusBadGateway,
	sandbox.CodeDownloadExportFailed:    http.StatusBadGateway,
	sandbox.CodeCapacityExhausted:       http.StatusServiceUnavailable,
	sandbox.CodeSandboxNotReady:         http.StatusServiceUnavailable,
}

// wireError is the envelope of every error.
type wireError struct {
	Error wireErrorBody `json:"error"`
}

type wireErrorBody struct {
	Code    string         `json:"code" doc:"Machine-readable code; branch on this."`
	Message string         `json:"message" doc:"A sentence for people."`
	Details map[string]any `json:"details,omitempty" doc:"More for programs; depends on the code."`
}

// envelope turns an error into status and body. An error without a code of the
// contract tells the client nothing but the request id.
func envelope(err error, requestID string) (int, wireError) {
	var e *sandbox.Error
	if !errors.As(err, &e) || statusOf[e.Code] == 0 || e.Code == sandbox.CodeInternal {
		details := map[string]any{"requestId": requestID}
		message := "Something went wrong on the server."
		if e != nil && e.Code == sandbox.CodeInternal {
			message = e.Message
			for k, v := range e.Details {
				details[k] = v
			}
		}
		return http.StatusInternalServerError, wireError{wireErrorBody{string(sandbox.CodeInternal), message, details}}
	}
	code := e.Code
	if code == sandbox.CodeRangeNotSatisfiable {
		code = sandbox.CodeInvalidRequest
	}
	return statusOf[e.Code], wireError{wireErrorBody{string(code), e.Message, e.Details}}
}

// writeError is the one place where an error becomes an answer.
func (s *Server) writeError(rq *request, err error) {
	if s.base.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		// The server stops: a cut connection tells the client to come back, and
		// the work behind the request goes on or is found again.
		panic(http.ErrAbortHandler)
	}
	status, body := envelope(err, rq.id)
	s.noteError(rq, status, err)
	if rq.w.wrote {
		panic(http.ErrAbortHandler)
	}
	setErrorHeaders(rq.w.Header(), status, sandbox.CodeOf(err))
	s.writeJSON(rq, status, encodeJSON(body))
}

// setErrorHeaders adds what goes with a status besides the envelope.
func setErrorHeaders(h http.Header, status int, code sandbox.Code) {
	retry := status == http.StatusServiceUnavailable || code == sandbox.CodeIdempotencyInProgress || code == sandbox.CodeRateLimited
	if retry && h.Get("Retry-After") == "" {
		h.Set("Retry-After", "1")
	}
}

// noteError logs what an operator must know and has refusals recorded.
func (s *Server) noteError(rq *request, status int, err error) {
	switch {
	case status >= 500 && status != http.StatusServiceUnavailable:
		s.log.Error("request failed", "requestId", rq.id, "method", rq.r.Method, "route", rq.route(), "status", status, "error", err)
	case status == http.StatusForbidden && rq.call.OrgID != "":
		s.control.Denied(s.base, rq.call, rq.route(), err)
	}
}

// invalid returns the error for a bad field, parameter or header.
func invalid(field, format string, args ...any) *sandbox.Error {
	return sandbox.NewError(sandbox.CodeInvalidRequest, format, args...).With("field", field)
}

// noSuch returns the error for something that is not there, or not for the caller.
func noSuch(what string) *sandbox.Error {
	return sandbox.NewError(sandbox.CodeNotFound, "No such %s.", what)
}

func itoa(n int) string { return strconv.Itoa(n) }
