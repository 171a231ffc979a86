package cli

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	crownest "crownest.dev/go"

	"crownest.dev/crownest/internal/version"
)

// localURL is where `crownest serve` listens unless told otherwise.
const localURL = "http://127.0.0.1:8787"

// client returns a client with the user's credential and server.
func (a *app) client() (*crownest.Client, error) {
	cfg := loadConfig()
	key := firstNonEmpty(os.Getenv("CROWNEST_BEARER_TOKEN"), os.Getenv("CROWNEST_API_KEY"), cfg.Credential, cfg.APIKey)
	url := firstNonEmpty(os.Getenv("CROWNEST_API_URL"), cfg.APIURL)
	a.unreachable = "check that the server runs and that CROWNEST_API_URL or `crownest login --api-url` names it"
	if url == "" {
		a.unreachable = "no server was named, so the hosted one was asked: for your own, export CROWNEST_API_URL=" + localURL
	}
	return newClient(crownest.WithAPIKey(key), crownest.WithBaseURL(firstNonEmpty(url, crownest.DefaultBaseURL)))
}

// ownerClient returns a client for the keys commands: it sends no credential but
// says who the person is, which a server run with --dev believes on loopback.
func (a *app) ownerClient(apiURL string) (*crownest.Client, error) {
	a.unreachable = "check that the server runs and that --api-url or CROWNEST_API_URL names it; " +
		"the keys commands do not use the URL that `crownest login` saved"
	opts := []crownest.Option{
		crownest.WithoutCredential(),
		crownest.WithBaseURL(firstNonEmpty(apiURL, os.Getenv("CROWNEST_API_URL"), localURL)),
	}
	for header, variable := range map[string]string{
		"X-Crownest-Org-Id": "CROWNEST_ORG_ID", "X-Crownest-User-Id": "CROWNEST_USER_ID", "X-Crownest-Role": "CROWNEST_ROLE",
	} {
		if v := os.Getenv(variable); v != "" {
			opts = append(opts, crownest.WithHeader(header, v))
		}
	}
	return newClient(opts...)
}

func newClient(opts ...crownest.Option) (*crownest.Client, error) {
	c, err := crownest.NewClient(append(opts, crownest.WithUserAgent("crownest-cli/"+version.Version))...)
	if err != nil {
		if errors.Is(err, crownest.ErrNoCredential) {
			return nil, err
		}
		return nil, runtimeErrorf("%w", err).hint("check CROWNEST_API_KEY, CROWNEST_API_URL and what `crownest login` saved")
	}
	return c, nil
}

// pairs splits K=V flags.
func pairs(flag string, values []string) (map[string]string, error) {
	if len(values) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(values))
	for _, kv := range values {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, usageErrorf("--%s %q is not of the form KEY=VALUE", flag, kv).hint("example: --%s team=red", flag)
		}
		m[k] = v
	}
	return m, nil
}

// oneOf checks a flag that has a fixed set of values.
func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return usageErrorf("--%s %q is not one of %s", flag, value, strings.Join(allowed, ", "))
}

// positive checks a number that was given.
func positive(cmd *cobra.Command, flag string, value int64) error {
	if cmd.Flags().Changed(flag) && value < 1 {
		return usageErrorf("--%s must be at least 1, got %d", flag, value)
	}
	return nil
}
