package cli

import (
	"github.com/spf13/cobra"

	crownest "crownest.dev/go"
)

func (a *app) sandboxesCommand() *cobra.Command {
	return group("sandboxes", "Create and end sandboxes",
		a.sandboxesCreate(), a.sandboxesList(), a.sandboxesGet(), a.sandboxesExtend(), a.sandboxesKill())
}

func (a *app) sandboxesCreate() *cobra.Command {
	var p crownest.CreateSandboxParams
	var metadata, allow []string
	var egress string
	c := &cobra.Command{
		Use: "create", Short: "Create a sandbox and wait until it is usable", Args: args(0, 0),
		Example: `  crownest sandboxes create
  crownest sandboxes create --template python --ttl-ms 600000 --metadata team=red
  crownest sandboxes create --network allowlist --allow api.example.com:443`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(cmd, "ttl-ms", p.TTLMs); err != nil {
				return err
			}
			var err error
			if p.Metadata, err = pairs("metadata", metadata); err != nil {
				return err
			}
			if egress != "" {
				if err := oneOf("network", egress, "none", "allowlist", "internet"); err != nil {
					return err
				}
				p.Network = &crownest.Network{Egress: egress, Allow: allow}
			} else if len(allow) > 0 {
				return usageErrorf("--allow needs --network allowlist")
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			sb, err := client.Sandboxes.Create(cmd.Context(), p)
			if err != nil {
				return err
			}
			return a.record(sb)
		},
	}
	f := c.Flags()
	f.StringVar(&p.ProjectID, "project", "", "`ID` of the project (default: the organisation's default project)")
	f.StringVar(&p.Template, "template", "", "template `SLUG`: base, python, node or python-node (default)")
	f.StringVar(&p.TemplateVersionID, "template-version", "", "`ID` of one version of the template")
	f.Int64Var(&p.TTLMs, "ttl-ms", 0, "time to live in `MS`, milliseconds (default 3600000)")
	f.StringArrayVar(&metadata, "metadata", nil, "`KEY=VALUE` to find the sandbox by (repeatable)")
	f.StringVar(&egress, "network", "", "`POLICY` for what the sandbox may reach: none, allowlist or internet")
	f.StringArrayVar(&allow, "allow", nil, "`HOST`, *.domain, address or CIDR, with optional :port (repeatable)")
	idempotencyFlag(c, &p.IdempotencyKey)
	return c
}

func (a *app) sandboxesList() *cobra.Command {
	var p crownest.ListSandboxesParams
	var metadata []string
	c := &cobra.Command{
		Use: "list", Short: "List sandboxes, newest first", Args: args(0, 0),
		Example: `  crownest sandboxes list
  crownest sandboxes list --metadata team=red --historical --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if p.Metadata, err = pairs("metadata", metadata); err != nil {
				return err
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			list, err := client.Sandboxes.List(cmd.Context(), p)
			if err != nil {
				return err
			}
			return a.list(rawList(list), "id", "status", "template=templateSlug", "expiresAt")
		},
	}
	f := c.Flags()
	f.StringVar(&p.ProjectID, "project", "", "only the project with this `ID`")
	f.StringArrayVar(&metadata, "metadata", nil, "only sandboxes with `KEY=VALUE` (repeatable)")
	f.BoolVar(&p.Historical, "historical", false, "also destroyed and failed sandboxes")
	return c
}

func (a *app) sandboxesGet() *cobra.Command {
	return &cobra.Command{
		Use: "get SANDBOX", Short: "Show a sandbox, also one that has ended", Args: args(1, 1),
		Example: "  crownest sandboxes get sbx_...",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			sb, err := client.Sandboxes.Get(cmd.Context(), words[0])
			if err != nil {
				return err
			}
			return a.record(sb)
		},
	}
}

func (a *app) sandboxesExtend() *cobra.Command {
	var p crownest.ExtendSandboxParams
	c := &cobra.Command{
		Use: "extend SANDBOX --ttl-ms MS", Short: "Move the end of a sandbox, counted from now", Args: args(1, 1),
		Example: "  crownest sandboxes extend sbx_... --ttl-ms 600000",
		RunE: func(cmd *cobra.Command, words []string) error {
			if !cmd.Flags().Changed("ttl-ms") {
				return usageErrorf("%s needs --ttl-ms", cmd.CommandPath()).hint("usage: %s", cmd.UseLine())
			}
			if err := positive(cmd, "ttl-ms", p.TTLMs); err != nil {
				return err
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			sb, err := client.Sandboxes.Extend(cmd.Context(), words[0], p)
			if err != nil {
				return err
			}
			return a.record(sb)
		},
	}
	c.Flags().Int64Var(&p.TTLMs, "ttl-ms", 0, "new time to live in `MS`, milliseconds")
	idempotencyFlag(c, &p.IdempotencyKey)
	return c
}

func (a *app) sandboxesKill() *cobra.Command {
	return &cobra.Command{
		Use: "kill SANDBOX", Short: "End a sandbox and every process in it", Args: args(1, 1),
		Long:    "Ends a sandbox. When it answers no process is left; logs and artifacts stay.",
		Example: "  crownest sandboxes kill sbx_...",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			info, err := client.Sandboxes.Kill(cmd.Context(), words[0])
			if err != nil {
				return err
			}
			return a.record(info)
		},
	}
}
