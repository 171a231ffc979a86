package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	crownest "crownest.dev/go"

	"crownest.dev/crownest/internal/sandbox"
)

// Codes of errors that are made here and not by the API.
const (
	codeUsage          = "usage_error"
	codeUnknownCommand = "unknown_command"
	codeRuntime        = "runtime_error"
)

// cliError is an error of this program with a way out.
type cliError struct {
	code    string
	message string
	remedy  string
	exit    int
	cause   error
}

func (e *cliError) Error() string { return e.message }
func (e *cliError) Unwrap() error { return e.cause }

func (e *cliError) hint(format string, args ...any) *cliError {
	e.remedy = fmt.Sprintf(format, args...)
	return e
}

// remediedError is an error of the API with a better way out than its code has.
type remediedError struct {
	error
	remedy string
}

func (e *remediedError) Unwrap() error { return e.error }

func usageErrorf(format string, args ...any) *cliError {
	return &cliError{code: codeUsage, message: fmt.Sprintf(format, args...), exit: exitUsage}
}

// flagError says what a flag wants, where the parser would say which function
// could not parse it.
func flagError(err error) *cliError {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return usageErrorf("%s", err)
	}
	var wants string
	switch flag := invalid.GetFlag(); flag.Value.Type() {
	case "int", "int64":
		wants = "a whole number"
		if strings.HasSuffix(flag.Name, "-ms") {
			wants += " of milliseconds"
		}
	case "bool":
		wants = "true or false"
	default:
		return usageErrorf("%s", err)
	}
	return usageErrorf("--%s wants %s, not %q", invalid.GetFlag().Name, wants, invalid.GetValue())
}

func runtimeErrorf(format string, args ...any) *cliError {
	err := fmt.Errorf(format, args...)
	return &cliError{code: codeRuntime, message: err.Error(), exit: exitError, cause: errors.Unwrap(err)}
}

func unknownCommand(parent *cobra.Command, name string) *cliError {
	e := &cliError{
		code: codeUnknownCommand, exit: exitUsage,
		message: fmt.Sprintf("unknown command %q for %q", name, parent.CommandPath()),
	}
	if near := parent.SuggestionsFor(name); len(near) > 0 {
		return e.hint("did you mean `%s %s`?", parent.CommandPath(), near[0])
	}
	return e.hint("see `%s --help`", parent.CommandPath())
}

func countOf(low, high int) string {
	plural := func(n int) string {
		if n == 1 {
			return "1 argument"
		}
		return strconv.Itoa(n) + " arguments"
	}
	if low == high {
		return plural(low)
	}
	return fmt.Sprintf("%d to %s", low, plural(high))
}

// failure is what the error envelope says; every member is always there.
type failure struct {
	Code        string         `json:"code"`
	Details     map[string]any `json:"details"`
	Message     string         `json:"message"`
	Remediation string         `json:"remediation"`
	Retryable   bool           `json:"retryable"`
	Status      *int           `json:"status"` // null where no answer of the API stands behind it
}

// fail reports an error of the command at path and returns the exit code.
func (a *app) fail(ctx context.Context, path string, err error) int {
	f, exit, requestID := a.describe(ctx, path, err)
	if a.json {
		line, jsonErr := json.Marshal(map[string]failure{"error": f})
		if jsonErr == nil {
			fmt.Fprintf(a.Err, "%s\n", line)
			return exit
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "error[%s]: %s\n", f.Code, printable(f.Message))
	if f.Status != nil {
		fmt.Fprintf(&b, "status: %d\n", *f.Status)
	}
	keys := make([]string, 0, len(f.Details))
	for k := range f.Details {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, "  %s: %s\n", printable(k), printable(detail(f.Details[k])))
	}
	if requestID != "" && f.Details["requestId"] == nil && f.Status != nil && *f.Status >= http.StatusInternalServerError {
		fmt.Fprintf(&b, "  requestId: %s\n", printable(requestID))
	}
	if f.Remediation != "" {
		fmt.Fprintf(&b, "hint: %s\n", f.Remediation)
	}
	_, _ = a.Err.Write([]byte(b.String()))
	return exit
}

func detail(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

// describe turns any error into the envelope's members.
func (a *app) describe(ctx context.Context, path string, err error) (f failure, exit int, requestID string) {
	f = failure{Code: codeRuntime, Details: map[string]any{}, Message: err.Error()}
	exit = exitError

	var apiErr *crownest.APIError
	var cliErr *cliError
	var domainErr *sandbox.Error
	switch {
	case errors.As(err, &apiErr):
		f.Code, f.Message = apiErr.Code, apiErr.Message
		if apiErr.Details != nil {
			f.Details = apiErr.Details
		}
		if apiErr.Status != 0 {
			f.Status = &apiErr.Status
		}
		f.Retryable = apiErr.Retryable()
		f.Remediation = remedyFor(path, apiErr)
		requestID = apiErr.RequestID
	case errors.As(err, &cliErr):
		f.Code, f.Message, f.Remediation, exit = cliErr.code, cliErr.message, cliErr.remedy, cliErr.exit
	case ctx.Err() != nil:
		f.Message, f.Remediation = "interrupted", "run the command again"
		exit = exitInterrupted
	case errors.As(err, &domainErr):
		f.Code, f.Message = string(domainErr.Code), domainErr.Message
		if domainErr.Details != nil {
			f.Details = domainErr.Details
		}
		if sandbox.CodeNotFound.Is(err) {
			f.Remediation = whereToLook(path, domainErr.Message)
		}
	case errors.Is(err, crownest.ErrNoCredential):
		f.Message = "no API key"
		f.Remediation = "run `crownest login --api-key KEY`, or set CROWNEST_API_KEY"
	case crownest.IsConnectionError(err):
		f.Retryable = true
		f.Remediation = a.unreachable
	}
	var remedied *remediedError
	if errors.As(err, &remedied) {
		f.Remediation = remedied.remedy
	}
	f.Message = strings.TrimPrefix(f.Message, "crownest: ")
	if f.Remediation == "" {
		f.Remediation = helpOf(path)
	}
	return f, exit, requestID
}

// remedies says, by code, what the user can do.
var remedies = map[string]string{
	"unauthorized":                    "run `crownest login --api-key KEY`, or set CROWNEST_API_KEY",
	"invalid_api_key":                 "the key is unknown to this server or revoked: check CROWNEST_API_KEY and CROWNEST_API_URL, or log in again; was the key made with the server's --data?",
	"forbidden":                       "use a key that has the scope named in the details",
	"org_suspended":                   "ask the operator of the server",
	"feature_not_enabled":             "ask the operator of the server to enable it",
	"file_not_found":                  "look for it with `crownest files list SANDBOX`",
	"parent_directory_not_found":      "add --create-parents (or --parents for mkdir)",
	"file_already_exists":             "add --overwrite, or choose another name",
	"directory_not_empty":             "remove what is in it first",
	"path_outside_workspace":          "use a path below /workspace",
	"path_is_directory":               "name a file",
	"path_not_directory":              "name a directory",
	"invalid_file_encoding":           "the file is not text: use `crownest files read SANDBOX PATH --output FILE`",
	"file_too_large":                  "use `crownest files upload`, or `crownest files read --output FILE`",
	"request_too_large":               "send less at once, or use `crownest files upload`",
	"sandbox_destroyed":               "create a new sandbox with `crownest sandboxes create`",
	"sandbox_ttl_exceeded":            "ask for a shorter --ttl-ms; the details name the maximum",
	"sandbox_not_ready":               "wait a moment and try again",
	"capacity_exhausted":              "try again later, or kill sandboxes that are not needed",
	"quota_exceeded":                  "free what the details name, or ask for a higher limit",
	"rate_limited":                    "wait a moment and try again",
	"idempotency_key_reused":          "use a new --idempotency-key for a different request",
	"idempotency_request_in_progress": "wait until the first request has ended and try again",
	"stream_gap":                      "output before the oldest retained chunk is gone: leave out --after-seq",
	"upload_checksum_mismatch":        "the file changed during the upload: try again",
	"upload_size_mismatch":            "the file changed during the upload: try again",
	"upload_expired":                  "start the upload again",
	"credit_exhausted":                "add credit, or wait for the next period (`crownest usage`)",
	"billing_spend_cap_reached":       "raise the cap, or wait for the next period (`crownest usage`)",
	"unsupported_code_language":       "use one of the languages that the details name",
	"internal_error":                  "try again; if it persists, give the request id to the operator of the server",
	crownest.CodeInvalidErrorResponse: "check that CROWNEST_API_URL names a CrowNest server",
}

func helpOf(path string) string { return "see `" + path + " --help`" }

// whereToLook says which command lists what was not found. The API does not say
// what that was but in its message; where that has no known word, the command does.
func whereToLook(path, message string) string {
	kinds := []struct{ word, group, text string }{
		{"template version", "", "see `crownest templates get SLUG` for the versions of a template"},
		{"template", "crownest templates", "see `crownest templates list`"},
		{"project", "crownest projects", "see `crownest projects list`"},
		{"command", "crownest logs", "see `crownest commands list SANDBOX`"},
		{"artifact", "crownest artifacts", "see `crownest artifacts list SANDBOX`"},
		{"sandbox", "crownest sandboxes", "see `crownest sandboxes list --historical`"},
	}
	for _, kind := range kinds {
		if strings.HasPrefix(message, "No such "+kind.word) {
			return kind.text
		}
	}
	for _, kind := range kinds {
		if kind.group != "" && strings.HasPrefix(path, kind.group) {
			return kind.text
		}
	}
	switch {
	case strings.HasPrefix(path, "crownest admin keys revoke"):
		return "see `crownest admin keys list`, with the same --data"
	case strings.HasPrefix(path, "crownest keys"):
		return "see `crownest keys list`"
	}
	return "check the id, and that the key belongs to the project it is in"
}

func remedyFor(path string, e *crownest.APIError) string {
	if e.Code == string(sandbox.CodeNotFound) {
		return whereToLook(path, e.Message)
	}
	if text, ok := remedies[e.Code]; ok {
		return text
	}
	switch {
	case strings.HasPrefix(e.Code, "invalid_metadata"), strings.HasPrefix(e.Code, "metadata_"), e.Code == "invalid_request", e.Code == "reserved_env_key":
		return "change the argument that the message names"
	case e.Retryable():
		return "try again later"
	}
	return helpOf(path)
}
