package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	crownest "crownest.dev/go"

	"crownest.dev/crownest/internal/sandbox"
)

func (a *app) loginCommand() *cobra.Command {
	var key, url string
	c := &cobra.Command{
		Use:   "login",
		Short: "Save the API key and the server's URL",
		Long: `Saves --api-key, or CROWNEST_API_KEY, and the server's URL in a file that only
you can read. Nothing is sent anywhere. Where no URL is given or saved, commands
go to the hosted server, ` + crownest.DefaultBaseURL + `.`,
		Example: `  crownest login --api-key cn_live_... --api-url http://127.0.0.1:8787
  CROWNEST_API_KEY=cn_live_... crownest login`,
		Args: args(0, 0),
		RunE: func(*cobra.Command, []string) error {
			cfg := loadConfig()
			key := firstNonEmpty(key, os.Getenv("CROWNEST_API_KEY"))
			if key == "" {
				const guidance = "no API key given: run `crownest login --api-key KEY`. " +
					"On the server machine, `crownest admin keys create --data DIR --name NAME` makes one."
				if a.json {
					return a.value(map[string]any{"saved": false, "guidance": guidance})
				}
				return a.write(guidance + "\n")
			}
			next := userConfig{APIKey: key, APIURL: firstNonEmpty(url, os.Getenv("CROWNEST_API_URL"), cfg.APIURL)}
			// What is saved must be usable: let the client judge key and URL.
			base := crownest.WithBaseURL(firstNonEmpty(next.APIURL, crownest.DefaultBaseURL))
			if _, err := newClient(crownest.WithoutCredential(), base); err != nil {
				return runtimeErrorf("the URL cannot be used: %w", err).
					hint("it looks like %s; it comes from --api-url, CROWNEST_API_URL or what was saved before", localURL)
			}
			if _, err := newClient(crownest.WithAPIKey(next.APIKey), base); err != nil {
				return runtimeErrorf("the API key cannot be used: %w", err).
					hint("it looks like cn_live_...; it comes from --api-key or CROWNEST_API_KEY")
			}
			path, err := next.save()
			if err != nil {
				return err
			}
			return a.value(struct {
				Status string `json:"status"`
				Path   string `json:"path"`
				APIURL string `json:"apiUrl"`
			}{"saved", path, firstNonEmpty(next.APIURL, crownest.DefaultBaseURL)})
		},
	}
	c.Flags().StringVar(&key, "api-key", "", "`KEY` to save (default: CROWNEST_API_KEY)")
	c.Flags().StringVar(&url, "api-url", "", "`URL` of the server (default: CROWNEST_API_URL, then what was saved before)")
	return c
}

func (a *app) projectsCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the projects that the key may see", Args: args(0, 0),
		Example: "  crownest projects list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			projects, err := client.Projects.List(cmd.Context())
			if err != nil {
				return err
			}
			return a.list(rawList(projects), "id", "name", "orgId")
		},
	}
	var idempotencyKey string
	create := &cobra.Command{
		Use: "create NAME", Short: "Make a project", Args: args(1, 1),
		Example: "  crownest projects create website",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			p, err := client.Projects.Create(cmd.Context(), crownest.CreateProjectParams{Name: words[0], IdempotencyKey: idempotencyKey})
			if err != nil {
				return err
			}
			return a.record(p)
		},
	}
	idempotencyFlag(create, &idempotencyKey)
	return group("projects", "Make and list projects", list, create)
}

func idempotencyFlag(c *cobra.Command, key *string) {
	c.Flags().StringVar(key, "idempotency-key", "", "repeating a call with the same `KEY` does nothing twice (default: random)")
}

func (a *app) keysCommand() *cobra.Command {
	var apiURL string
	urlFlag := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&apiURL, "api-url", "", "`URL` of the server (default: CROWNEST_API_URL, then "+localURL+")")
		return c
	}
	const who = `
These commands send no API key: no key may make another one. They say who you
are by CROWNEST_ORG_ID, CROWNEST_USER_ID and CROWNEST_ROLE (owner or admin),
which a server believes on a loopback connection if it was started with --dev;
"crownest serve --dev" logs the values at its start. Elsewhere, use
"crownest admin keys" on the server machine.

They find the server by --api-url, then CROWNEST_API_URL, then
` + localURL + `, and do not use the URL that "crownest login" saved.`

	var name string
	var projects, scopes []string
	create := urlFlag(&cobra.Command{
		Use: "create", Short: "Make an API key and print its secret", Args: args(0, 0),
		Long:    "Makes an API key and prints its secret, which is shown only this once.\n" + who,
		Example: "  crownest keys create --name ci --scope sandbox:create --scope command:run",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.ownerClient(apiURL)
			if err != nil {
				return err
			}
			if len(scopes) == 0 {
				scopes = sandbox.DefaultScopes
			}
			created, err := client.APIKeys.Create(cmd.Context(), crownest.CreateAPIKeyParams{Name: name, Scopes: scopes, ProjectIDs: projects})
			if err != nil {
				return ownerHint(err)
			}
			if a.json {
				return a.record(created)
			}
			return a.write(created.Secret + "\n")
		},
	})
	create.Flags().StringVar(&name, "name", "CLI key", "`NAME` of the key")
	create.Flags().StringArrayVar(&projects, "project", nil, "`ID` of a project that the key is restricted to (repeatable)")
	create.Flags().StringArrayVar(&scopes, "scope", nil, "`SCOPE` of the key (repeatable; default: the scopes of everyday work)")

	list := urlFlag(&cobra.Command{
		Use: "list", Short: "List API keys, without their secrets", Args: args(0, 0),
		Long:    "Lists API keys.\n" + who,
		Example: "  crownest keys list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.ownerClient(apiURL)
			if err != nil {
				return err
			}
			keys, err := client.APIKeys.List(cmd.Context())
			if err != nil {
				return ownerHint(err)
			}
			return a.list(rawList(keys), "id", "name", "prefix", "last4", "createdAt")
		},
	})
	revoke := urlFlag(&cobra.Command{
		Use: "revoke KEY_ID", Short: "End an API key at once", Args: args(1, 1),
		Long:    "Ends an API key at once, with the streams it has open.\n" + who,
		Example: "  crownest keys revoke key_...",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.ownerClient(apiURL)
			if err != nil {
				return err
			}
			key, err := client.APIKeys.Revoke(cmd.Context(), words[0])
			if err != nil {
				return ownerHint(err)
			}
			return a.recordWith(key, stringMember("status", "revoked"))
		},
	})
	keys := group("keys", "Make, list and revoke API keys", create, list, revoke)
	keys.Long = "Makes, lists and revokes API keys.\n" + who
	return keys
}

// ownerHint explains a refusal of the keys commands, where a login would not help.
func ownerHint(err error) error {
	var apiErr *crownest.APIError
	if errors.As(err, &apiErr) && (apiErr.Status == http.StatusUnauthorized || apiErr.Status == http.StatusForbidden) {
		return &remediedError{err, "set CROWNEST_ORG_ID, CROWNEST_USER_ID and CROWNEST_ROLE to what a server run with --dev logs at its start, " +
			"or use `crownest admin keys` on the server machine"}
	}
	return err
}

func (a *app) usageCommand() *cobra.Command {
	var events bool
	c := &cobra.Command{
		Use: "usage", Short: "Show what was used this month", Args: args(0, 0),
		Example: "  crownest usage\n  crownest usage --events --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			u, err := client.Usage.Get(cmd.Context(), crownest.UsageParams{Events: events})
			if err != nil {
				return err
			}
			return a.record(u)
		},
	}
	c.Flags().BoolVar(&events, "events", false, "with the latest 100 metered events")
	return c
}

func (a *app) templatesCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List what sandboxes can be made of", Args: args(0, 0),
		Example: "  crownest templates list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			templates, err := client.Templates.List(cmd.Context())
			if err != nil {
				return err
			}
			return a.list(rawList(templates), "slug", "name", "defaultVersionId", "description")
		},
	}
	get := &cobra.Command{
		Use: "get SLUG", Short: "Show a template and its versions", Args: args(1, 1),
		Long:    "Shows a template and its versions. With --json also the packages in each of them.",
		Example: "  crownest templates get python --json",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			t, err := client.Templates.Get(cmd.Context(), words[0])
			if err != nil {
				return err
			}
			return a.template(t)
		},
	}
	return group("templates", "List and build templates", list, get, a.templatesBuild())
}

// template prints a template; for people its versions are rows, without the
// packages, of which there are hundreds.
func (a *app) template(t *crownest.Template) error {
	if a.json {
		return a.record(t)
	}
	fields, err := membersOf(t.RawJSON())
	if err != nil {
		return fmt.Errorf("printing the answer: %w", err)
	}
	var versions []json.RawMessage
	var b strings.Builder
	for _, f := range leading(fields) {
		if f.key == "versions" {
			if err := json.Unmarshal(f.value, &versions); err != nil {
				return fmt.Errorf("printing the answer: %w", err)
			}
			continue
		}
		b.WriteString(a.line(f))
	}
	if err := a.write(b.String() + "\n"); err != nil {
		return err
	}
	return a.list(versions, "id", "version", "size=imageSizeBytes", "createdAt", "runtimes=contents.runtimes")
}

func (a *app) auditCommand() *cobra.Command {
	var p crownest.ListAuditEventsParams
	var since, until string
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "List audit events, newest first", Args: args(0, 0),
		Example: "  crownest audit list --action sandbox.kill --since 2026-11-01T00:00:00Z",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for flag, to := range map[string]struct {
				text string
				at   *time.Time
			}{"since": {since, &p.Since}, "until": {until, &p.Until}} {
				if to.text == "" {
					continue
				}
				t, err := time.Parse(time.RFC3339, to.text)
				if err != nil {
					return usageErrorf("--%s %q is not a time", flag, to.text).hint("example: --%s 2026-11-01T00:00:00Z", flag)
				}
				*to.at = t
			}
			if err := positive(cmd, "limit", int64(limit)); err != nil {
				return err
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			p.PageSize = min(limit, 500)
			var events []crownest.AuditEvent
			for e, err := range client.Audit.All(cmd.Context(), p) {
				if err != nil {
					return err
				}
				if events = append(events, e); len(events) == limit {
					break
				}
			}
			return a.list(rawList(events), "id", "createdAt", "action", "outcome", "actor=actor.id", "resource=resource.id")
		},
	}
	f := list.Flags()
	f.StringVar(&p.Action, "action", "", "only this `ACTION`, such as sandbox.create")
	f.StringVar(&p.ActorID, "actor", "", "only what the actor with this `ID` did")
	f.StringVar(&p.ResourceID, "resource", "", "only what was done to the resource with this `ID`")
	f.StringVar(&p.ProjectID, "project", "", "only the project with this `ID`")
	f.StringVar(&since, "since", "", "not before this `TIME` (RFC 3339)")
	f.StringVar(&until, "until", "", "before this `TIME` (RFC 3339)")
	f.IntVar(&limit, "limit", 100, "at most `N`")

	verify := &cobra.Command{
		Use: "verify", Short: "Check that no audit event was changed or removed", Args: args(0, 0),
		Long:    "Walks the chain of hashes on the server. Exit code 1 means that the chain is broken.",
		Example: "  crownest audit verify",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			v, err := client.Audit.Verify(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.record(v); err != nil {
				return err
			}
			if !v.OK {
				return exitWith(exitError)
			}
			return nil
		},
	}
	return group("audit", "Read and check the audit events", list, verify)
}
