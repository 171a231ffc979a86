package crownest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// ErrNoCredential is returned by NewClient when neither an option nor the
// environment names a credential.
var ErrNoCredential = errors.New("crownest: no API key: use WithAPIKey or set CROWNEST_API_KEY")

// CodeInvalidErrorResponse is the code of an APIError whose response was not an
// answer of the API, such as the error page of a proxy.
const CodeInvalidErrorResponse = "invalid_error_response"

// APIError is an error that the API answered with. Callers branch on Code.
type APIError struct {
	// Status is the HTTP status; 0 for an error reported inside of a stream.
	Status  int
	Code    string
	Message string
	Details map[string]any
	// RequestID names the request in the server's log.
	RequestID string
	// RetryAfter is the wait that the server asked for; 0 = it asked for none.
	RetryAfter time.Duration
}

func (e *APIError) Error() string {
	if e.RequestID != "" {
		return fmt.Sprintf("crownest: %s: %s (status %d, %s)", e.Code, e.Message, e.Status, e.RequestID)
	}
	return fmt.Sprintf("crownest: %s: %s (status %d)", e.Code, e.Message, e.Status)
}

// Retryable reports whether the same call may succeed later.
func (e *APIError) Retryable() bool {
	return e.Status == http.StatusTooManyRequests || e.Status >= 500
}

// ErrorCode returns the API's error code that err carries, or "".
func ErrorCode(err error) string {
	var e *APIError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// parseError makes an APIError of a response that is not a success.
func parseError(status int, header http.Header, body []byte) *APIError {
	e := &APIError{Status: status, RequestID: header.Get("X-Request-Id")}
	var envelope struct {
		Error struct {
			Code    string         `json:"code"`
			Message string         `json:"message"`
			Details map[string]any `json:"details"`
		} `json:"error"`
	}
	if err := json.Unmarshal(body, &envelope); err == nil && envelope.Error.Code != "" {
		e.Code, e.Message, e.Details = envelope.Error.Code, envelope.Error.Message, envelope.Error.Details
		return e
	}
	e.Code = CodeInvalidErrorResponse
	e.Message = fmt.Sprintf("the server answered %d without an error envelope", status)
	if text := strings.TrimSpace(string(body)); text != "" && status != http.StatusOK {
		const keep = 200
		e.Message += ": " + strings.ToValidUTF8(text[:min(len(text), keep)], "")
	}
	return e
}
