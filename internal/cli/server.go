package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/config"
	"crownest.dev/crownest/internal/host"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/server"
	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/template"
)

// serverCommands act on this machine, not through the API.
func (a *app) serverCommands() []*cobra.Command {
	return []*cobra.Command{a.serveCommand(), a.adminCommand(), a.doctorCommand()}
}

// operatorFlags are the settings that the server's commands share; those given
// override the configuration file and the environment.
type operatorFlags struct {
	cmd  *cobra.Command
	path string
}

func newOperatorFlags(c *cobra.Command) *operatorFlags {
	o := &operatorFlags{cmd: c}
	c.Flags().StringVar(&o.path, "config", "", "configuration `FILE` (default: CROWNEST_CONFIG)")
	c.Flags().String("data", "", "data `DIR` (default: /var/lib/crownest for root)")
	return o
}

// flagKeys are the flags that set a value of the configuration, and its name there.
var flagKeys = map[string]string{
	"data": "data", "listen": "listen", "pool": "pool", "template-dir": "template_dir", "dev": "dev",
}

func (o *operatorFlags) load() (config.Config, error) {
	given := map[string]any{}
	for flag, key := range flagKeys {
		if f := o.cmd.Flags().Lookup(flag); f != nil && f.Changed {
			given[key] = f.Value.String()
		}
	}
	cfg, err := config.Load(firstNonEmpty(o.path, os.Getenv("CROWNEST_CONFIG")), os.Environ(), given)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return config.Config{}, runtimeErrorf("%w", err).hint("name a file that exists with --config or CROWNEST_CONFIG, or leave both out")
		}
		return config.Config{}, runtimeErrorf("%w", err).hint("mend the file, variable or flag that the message names; docs/operations.md lists the settings")
	}
	// A relative directory must not change its meaning with the working directory.
	if cfg.Data, err = filepath.Abs(cfg.Data); err != nil {
		return config.Config{}, fmt.Errorf("finding the data directory: %w", err)
	}
	return cfg, nil
}

func (a *app) serveCommand() *cobra.Command {
	var flags *operatorFlags
	c := &cobra.Command{
		Use: "serve", Short: "Run the server", Args: args(0, 0),
		Long: `Runs the server until SIGTERM or SIGINT. Sandboxes and their commands survive a
restart. The first start makes the organisation and its default project and
builds the templates that are missing; /readyz answers 200 as soon as sandboxes
can be created.

Settings come from defaults, the configuration file, CROWNEST_* variables and
flags, each overriding the one before.`,
		Example: `  crownest serve
  crownest serve --data ./data --listen 127.0.0.1:9000 --pool 16
  crownest serve --config /etc/crownest/config.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			if err := a.refuseUnfitHost(cmd.Context(), cfg); err != nil {
				return err
			}
			// A reader of the log that goes away must not take the server with it.
			// Caught, not ignored: children would inherit that.
			signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
			return server.Run(cmd.Context(), server.Options{
				Config: cfg,
				Log:    server.NewLogger(cfg, a.Err),
				Listening: func(url string) {
					fmt.Fprintf(a.Out, "listening on %s\n", url)
				},
			})
		},
	}
	flags = newOperatorFlags(c)
	c.Flags().String("listen", "", "`HOST:PORT`; port 0 takes a free one (default 127.0.0.1:8787)")
	c.Flags().Int("pool", 0, "at most `N` started sandboxes of one template wait (default 8)")
	c.Flags().String("template-dir", "", "`DIR` of the template images")
	c.Flags().Bool("dev", false, "let headers on loopback stand for a signed-in owner, for development only")
	return c
}

func (a *app) adminCommand() *cobra.Command {
	return group("admin", "Manage a server from its own machine",
		group("keys", "Make, list and revoke API keys", a.adminKeysCreate(), a.adminKeysList(), a.adminKeysRevoke()))
}

// presets are named lists of scopes for keys made on the server machine.
var presets = map[string][]string{
	"default": append(append([]string(nil), sandbox.DefaultScopes...), sandbox.ScopeUsageRead),
}

func (a *app) adminKeysCreate() *cobra.Command {
	var flags *operatorFlags
	var name, preset string
	var scopes, projects []string
	c := &cobra.Command{
		Use: "create --name NAME", Short: "Make an API key and print its secret", Args: args(0, 0),
		Long: `Makes an API key in the database of the server on this machine, which may be
running, and prints the secret alone. It is shown only this once. --data must be
the server's directory; before the first start of the server it is made.

The preset "default" holds:
` + scopeLines(presets["default"]) + `
All scopes:
` + scopeLines(sandbox.AllScopes),
		Example: `  crownest admin keys create --data /var/lib/crownest --name ci
  crownest admin keys create --name reader --scope sandbox:read --scope audit:read
  crownest admin keys create --name web --project website --preset default`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				return usageErrorf("%s needs --name", cmd.CommandPath()).hint("usage: %s", cmd.UseLine())
			}
			wanted := scopes
			if len(scopes) == 0 || cmd.Flags().Changed("preset") {
				list, ok := presets[preset]
				if !ok {
					return usageErrorf("--preset %q is not one of default", preset)
				}
				wanted = append(append([]string(nil), list...), scopes...)
			}
			for _, s := range scopes {
				if !sandbox.ValidScope(s) {
					return usageErrorf("--scope %q is not a scope", s).hint("scopes: %s", strings.Join(sandbox.AllScopes, ", "))
				}
			}
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			fresh, err := noDatabase(cfg)
			if err != nil {
				return err
			}
			err = a.withStore(cmd.Context(), cfg, func(db store.Store, org store.Org) error {
				return a.createKey(cmd.Context(), db, org, name, wanted, projects)
			})
			if err == nil && fresh {
				fmt.Fprintf(a.Err, "crownest: WARNING: there was no database in %s, so a new one was made. "+
					"The key is of use only to a server that is run with --data %s.\n", printable(cfg.Data), printable(quoteWord(cfg.Data)))
			}
			return err
		},
	}
	flags = newOperatorFlags(c)
	c.Flags().StringVar(&name, "name", "", "`NAME` of the key")
	c.Flags().StringArrayVar(&scopes, "scope", nil, "`SCOPE` of the key (repeatable; default: those of the preset)")
	c.Flags().StringArrayVar(&projects, "project", nil, "id or name of a `PROJECT` that the key is restricted to (repeatable)")
	c.Flags().StringVar(&preset, "preset", "default", "named `LIST` of scopes; with --scope, both are taken")
	return c
}

func scopeLines(scopes []string) string {
	var b strings.Builder
	line := ""
	for _, s := range scopes {
		if line != "" && len(line)+len(s) > 76 {
			b.WriteString(line + "\n")
			line = ""
		}
		line += "  " + s
	}
	return b.String() + line + "\n"
}

// noDatabase reports whether opening the store would make a new database, as
// before a server's first start or in a directory that is not the server's.
func noDatabase(cfg config.Config) (bool, error) {
	if cfg.Database != "" {
		return false, nil
	}
	_, err := os.Stat(filepath.Join(cfg.Data, "crownest.db"))
	if err == nil {
		return false, nil
	}
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	return false, runtimeErrorf("looking for the database: %w", err).
		hint("run this as the user that runs the server, with the same --data or --config")
}

// needDatabase refuses to look for keys in a database that is not there.
func needDatabase(cfg config.Config) error {
	missing, err := noDatabase(cfg)
	if err == nil && missing {
		return runtimeErrorf("there is no database in %s", cfg.Data).hint("name the directory of the server with --data or --config")
	}
	return err
}

// withStore opens the database of the server on this machine, which may be running.
func (a *app) withStore(ctx context.Context, cfg config.Config, do func(db store.Store, org store.Org) error) (err error) {
	// Output stands alone on stdout; the store's news are of no interest here.
	log := slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: slog.LevelError}))
	db, err := server.OpenStore(ctx, cfg, log)
	if err != nil {
		return runtimeErrorf("%w", err).hint("run this as the user that runs the server, with the same --data or --config")
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	org, _, err := auth.EnsureOrg(ctx, db)
	if err != nil {
		return err
	}
	return do(db, org)
}

func (a *app) createKey(ctx context.Context, db store.Store, org store.Org, name string, scopes, projects []string) error {
	ids := make([]string, 0, len(projects))
	for _, p := range projects {
		if !sandbox.ValidID(sandbox.PrefixProject, p) {
			found, err := db.ProjectByName(ctx, org.ID, p)
			if errors.Is(err, store.ErrNotFound) {
				return runtimeErrorf("there is no project %q", p).hint("make it first: crownest projects create %s", quoteWord(p))
			}
			if err != nil {
				return fmt.Errorf("looking for project %q: %w", p, err)
			}
			p = found.ID
		}
		ids = append(ids, p)
	}
	secret, key, err := auth.CreateKey(ctx, db, auth.KeyParams{
		OrgID: org.ID, Name: name, Scopes: scopes, ProjectIDs: ids, CreatedByUserID: org.OperatorUserID,
	})
	if err != nil {
		return err
	}
	if !a.json {
		return a.write(secret + "\n")
	}
	return a.value(struct {
		APIKey keyRecord `json:"apiKey"`
		Secret string    `json:"secret"`
	}{recordOfKey(key), secret})
}

func (a *app) adminKeysList() *cobra.Command {
	var flags *operatorFlags
	c := &cobra.Command{
		Use: "list", Short: "List all API keys, without their secrets", Args: args(0, 0),
		Example: "  crownest admin keys list --data /var/lib/crownest",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			if err := needDatabase(cfg); err != nil {
				return err
			}
			return a.withStore(cmd.Context(), cfg, func(db store.Store, org store.Org) error {
				return a.listKeys(cmd.Context(), db, org)
			})
		},
	}
	flags = newOperatorFlags(c)
	return c
}

func (a *app) listKeys(ctx context.Context, db store.Store, org store.Org) error {
	var rows []json.RawMessage
	page := store.Page{Limit: 500}
	for {
		keys, err := db.Keys(ctx, org.ID, page)
		if err != nil {
			return fmt.Errorf("listing the keys: %w", err)
		}
		for _, k := range keys {
			row, err := json.Marshal(recordOfKey(k))
			if err != nil {
				return fmt.Errorf("listing the keys: %w", err)
			}
			rows = append(rows, row)
			page.AfterTime, page.AfterID = k.CreatedAt, k.ID
		}
		if len(keys) < page.Limit {
			return a.list(rows, "id", "name", "prefix", "last4", "createdAt", "revokedAt")
		}
	}
}

func (a *app) adminKeysRevoke() *cobra.Command {
	var flags *operatorFlags
	c := &cobra.Command{
		Use: "revoke KEY_ID", Short: "End an API key", Args: args(1, 1),
		Long:    "Ends an API key. A running server notices within a second and cuts its streams.",
		Example: "  crownest admin keys revoke key_... --data /var/lib/crownest",
		RunE: func(cmd *cobra.Command, words []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			if err := needDatabase(cfg); err != nil {
				return err
			}
			return a.withStore(cmd.Context(), cfg, func(db store.Store, org store.Org) error {
				key, err := auth.RevokeKey(cmd.Context(), db, org, words[0])
				if err != nil {
					return err
				}
				return a.value(struct {
					keyRecord
					Status string `json:"status"`
				}{recordOfKey(key), "revoked"})
			})
		},
	}
	flags = newOperatorFlags(c)
	return c
}

// keyRecord is a key as the API shows it.
type keyRecord struct {
	ID              string   `json:"id"`
	OrgID           string   `json:"orgId"`
	Name            string   `json:"name"`
	Prefix          string   `json:"prefix"`
	Last4           string   `json:"last4"`
	ProjectIDs      []string `json:"projectIds,omitempty"`
	Scopes          []string `json:"scopes"`
	CreatedByUserID string   `json:"createdByUserId"`
	CreatedAt       string   `json:"createdAt"`
	RevokedAt       string   `json:"revokedAt,omitempty"`
	LastUsedAt      string   `json:"lastUsedAt,omitempty"`
}

func recordOfKey(k sandbox.Key) keyRecord {
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format("2006-01-02T15:04:05.000Z")
	}
	return keyRecord{
		ID: k.ID, OrgID: k.OrgID, Name: k.Name, Prefix: k.Prefix, Last4: k.Last4,
		ProjectIDs: k.ProjectIDs, Scopes: k.Scopes, CreatedByUserID: k.CreatedByUserID,
		CreatedAt: at(k.CreatedAt), RevokedAt: at(k.RevokedAt), LastUsedAt: at(k.LastUsedAt),
	}
}

func (a *app) templatesBuild() *cobra.Command {
	var flags *operatorFlags
	var fresh bool
	c := &cobra.Command{
		Use: "build [SLUG]...", Short: "Build template images on this machine",
		Long: `Builds the named templates, or all of them, into the template directory. What is
there already is left as it is: a second call does nothing. The servers on this
machine use a new version for new sandboxes at once.`,
		Example: `  crownest templates build
  crownest templates build python node --template-dir /srv/templates`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, slugs []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			return a.buildTemplates(cmd.Context(), cfg, slugs, fresh)
		},
	}
	flags = newOperatorFlags(c)
	c.Flags().String("template-dir", "", "`DIR` of the template images")
	c.Flags().BoolVar(&fresh, "fresh", false, "build a new version even if nothing changed, to take in newer packages")
	return c
}

func (a *app) buildTemplates(ctx context.Context, cfg config.Config, slugs []string, fresh bool) error {
	templates, err := server.OpenTemplates(cfg)
	if err != nil {
		return err
	}
	known := make([]string, 0, 4)
	for _, e := range templates.Catalogue() {
		known = append(known, e.Slug)
	}
	if len(slugs) == 0 {
		slugs = known
	}
	for _, slug := range slugs {
		if !slices.Contains(known, slug) {
			return usageErrorf("there is no template %q", slug).hint("templates: %s", strings.Join(known, ", "))
		}
	}
	rows := make([]json.RawMessage, 0, len(slugs))
	for _, slug := range slugs {
		status := "built"
		upToDate, err := templates.UpToDate(slug)
		if err != nil {
			return err
		}
		build := templates.Build
		if fresh {
			build = templates.Rebuild
		} else if upToDate {
			status = "current"
		}
		view := newBuildView(a.Err, a.errTTY, slug)
		v, err := build(ctx, slug, view.report)
		view.end()
		if err != nil {
			return err
		}
		row, err := json.Marshal(struct {
			Slug      string `json:"slug"`
			ID        string `json:"id"`
			Version   string `json:"version"`
			Status    string `json:"status"`
			SizeBytes int64  `json:"imageSizeBytes"`
		}{slug, v.ID, v.Version, status, v.ImageSizeBytes})
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	return a.list(rows, "slug", "id", "version", "status", "size=imageSizeBytes")
}

// buildView shows how a template's build goes: one line that changes on a
// terminal, one line per phase elsewhere.
type buildView struct {
	w       io.Writer
	tty     bool
	slug    string
	started time.Time
	phase   string
	drawn   time.Time
	shown   bool
}

func newBuildView(w io.Writer, tty bool, slug string) *buildView {
	return &buildView{w: w, tty: tty, slug: slug, started: time.Now()}
}

// report is called by one build, one call at a time.
func (b *buildView) report(p template.Progress) {
	elapsed := time.Since(b.started).Round(time.Second)
	newPhase := p.Phase != b.phase
	b.phase = p.Phase
	if !b.tty {
		if newPhase && p.Phase != template.PhaseDone {
			fmt.Fprintf(b.w, "building %s: %s (%s)\n", b.slug, printable(p.Phase), elapsed)
		}
		return
	}
	if !newPhase && time.Since(b.drawn) < progressEvery {
		return
	}
	b.drawn, b.shown = time.Now(), true
	line := fmt.Sprintf("building %s  %s  %s", b.slug, elapsed, printable(p.Phase))
	if p.Percent >= 0 {
		line += fmt.Sprintf("  %.0f%%", p.Percent)
	}
	if p.Line != "" {
		line += "  " + printable(p.Line)
	}
	fmt.Fprintf(b.w, "\r%s\x1b[K", clip(line, terminalWidth(b.w)))
}

func (b *buildView) end() {
	if b.shown {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}

// refuseUnfitHost ends serve with doctor's text where the host cannot isolate:
// without isolation there is no server.
func (a *app) refuseUnfitHost(ctx context.Context, cfg config.Config) error {
	checks := host.Run(ctx, host.Options{DataDir: cfg.Data, Listen: cfg.Listen})
	failed := host.Failed(checks)
	if len(failed) == 0 {
		return nil
	}
	if !a.json {
		_, _ = io.WriteString(a.Err, findings(checks))
	}
	names := make([]string, len(failed))
	for i, c := range failed {
		names[i] = c.Name
	}
	return runtimeErrorf("this host cannot run sandboxes safely: %s", strings.Join(names, ", ")).
		hint("%s", firstNonEmpty(failed[0].Remedy, "run `crownest doctor`"))
}

func (a *app) doctorCommand() *cobra.Command {
	var flags *operatorFlags
	c := &cobra.Command{
		Use: "doctor", Short: "Say what this host can and cannot do, and how to mend it", Args: args(0, 0),
		Long: `Looks at the kernel, privileges, cgroups, namespaces, tools, memory, disk and port
that a server needs. It changes nothing. Exit code 1 means that sandboxes cannot
run here; warnings do not count.`,
		Example: "  crownest doctor\n  crownest doctor --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			checks := host.Run(cmd.Context(), host.Options{DataDir: cfg.Data, Listen: cfg.Listen})
			if a.json {
				raw, err := json.Marshal(checks)
				if err != nil {
					return fmt.Errorf("printing the findings: %w", err)
				}
				if err := a.envelope(raw); err != nil {
					return err
				}
			} else if err := a.write(findings(checks)); err != nil {
				return err
			}
			if len(host.Failed(checks)) > 0 {
				return exitWith(exitError)
			}
			return nil
		},
	}
	flags = newOperatorFlags(c)
	c.Flags().String("listen", "", "`HOST:PORT` that the server will listen on (default 127.0.0.1:8787)")
	return c
}

func findings(checks []host.Check) string {
	width := 0
	for _, c := range checks {
		width = max(width, len(c.Name))
	}
	var b strings.Builder
	for _, c := range checks {
		mark := "ok  "
		switch {
		case !c.OK:
			mark = "FAIL"
		case c.Warn:
			mark = "warn"
		}
		fmt.Fprintf(&b, "%s  %-*s  %s\n", mark, width, c.Name, printable(c.Detail))
		if c.Remedy != "" {
			fmt.Fprintf(&b, "      %-*s  -> %s\n", width, "", printable(c.Remedy))
		}
	}
	return b.String()
}
