import type { ArtifactsClient } from "./artifacts.js";
import type { CodeClient } from "./code.js";
import type { CommandsClient } from "./commands.js";
import type { FilesClient } from "./files.js";
import type { PreviewsClient } from "./previews.js";
import { segment, type MutationOptions, type RequestOptions, type Transport } from "./transport.js";
import type { Metadata, NetworkPolicy, Sandbox } from "./types.js";
import { metadataQuery } from "./workspace-runs.js";

export interface CreateSandboxInput extends MutationOptions {
  readonly projectId?: string;
  /** `python`, `node`, `python-node` (default) or `base`. */
  readonly template?: string;
  readonly templateVersionId?: string;
  /** Default and maximum are the server's, 3,600,000 out of the box. */
  readonly ttlMs?: number;
  readonly metadata?: Metadata;
  readonly restoreFrom?: string;
  /** By default nothing of the network is reachable. */
  readonly network?: NetworkPolicy;
}

export interface ListSandboxesInput extends RequestOptions {
  /** Every pair given has to be there, exactly. */
  readonly metadata?: Metadata;
  readonly projectId?: string;
  /** `historical` adds those that are gone. */
  readonly include?: "historical";
}

export interface ExtendSandboxInput extends MutationOptions {
  /** Counts from now, downwards too. */
  readonly ttlMs: number;
}

/** The methods of a group with the id of the sandbox filled in. */
type InSandbox<Group> = {
  [Name in keyof Group]: Group[Name] extends (sandboxId: string, ...rest: infer Rest) => infer Result
    ? (...rest: Rest) => Result
    : never;
};

/**
 * A sandbox as it was when the API answered, with the calls that concern it.
 * The fields do not follow what happens later: ask again with `sandboxes.get`.
 */
export interface SandboxHandle extends Sandbox {
  readonly artifacts: InSandbox<Pick<ArtifactsClient, "create" | "list">>;
  readonly code: InSandbox<CodeClient>;
  readonly commands: InSandbox<Pick<CommandsClient, "run" | "start">> & Pick<CommandsClient, "cancel">;
  readonly files: InSandbox<FilesClient>;
  readonly previews: InSandbox<Pick<PreviewsClient, "create" | "list">>;
  /** Gives the sandbox another life span, from now. */
  extend(input: ExtendSandboxInput): Promise<SandboxHandle>;
  /** Ends the sandbox; when this resolves nothing of it runs any more. */
  kill(options?: MutationOptions): Promise<Sandbox>;
}

/** The groups that a handle draws on. */
export interface HandleGroups {
  readonly artifacts: ArtifactsClient;
  readonly code: CodeClient;
  readonly commands: CommandsClient;
  readonly files: FilesClient;
  readonly previews: PreviewsClient;
}

export type SandboxesClient = ReturnType<typeof sandboxesClient>;

export function sandboxesClient(transport: Transport, groups: HandleGroups) {
  const route = (sandboxId: string, rest = "") => `/v1/sandboxes/${segment(sandboxId)}${rest}`;
  const handle = async (answer: Promise<{ sandbox: Sandbox }>) => sandboxHandle((await answer).sandbox);

  function extend(sandboxId: string, input: ExtendSandboxInput): Promise<SandboxHandle> {
    return handle(transport.mutate("POST", route(sandboxId, "/extend"), { json: { ttlMs: input.ttlMs }, options: input }));
  }

  async function kill(sandboxId: string, options?: MutationOptions): Promise<Sandbox> {
    return (await transport.mutate<{ sandbox: Sandbox }>("DELETE", route(sandboxId), { options })).sandbox;
  }

  function sandboxHandle(sandbox: Sandbox): SandboxHandle {
    const { id } = sandbox;
    const methods = {
      artifacts: bind(id, groups.artifacts, ["create", "list"]),
      code: bind(id, groups.code, Object.keys(groups.code) as (keyof CodeClient)[]),
      commands: { ...bind(id, groups.commands, ["run", "start"]), cancel: groups.commands.cancel },
      files: bind(id, groups.files, Object.keys(groups.files) as (keyof FilesClient)[]),
      previews: bind(id, groups.previews, ["create", "list"]),
      extend: (input: ExtendSandboxInput) => extend(id, input),
      kill: (options?: MutationOptions) => kill(id, options),
    };
    const made = { ...sandbox };
    // Not enumerable: a handle prints, copies and serialises as the record it is.
    for (const [name, value] of Object.entries(methods)) Object.defineProperty(made, name, { value });
    return made as SandboxHandle;
  }

  return {
    /** Makes a sandbox; when this resolves it takes commands. */
    create(input: CreateSandboxInput = {}): Promise<SandboxHandle> {
      const { signal: _, idempotencyKey: __, ...json } = input;
      return handle(transport.mutate("POST", "/v1/sandboxes", { json, options: input }));
    },

    /** Also for a sandbox that is gone. */
    get(sandboxId: string, options?: RequestOptions): Promise<SandboxHandle> {
      return handle(transport.get(route(sandboxId), { options }));
    },

    list(input: ListSandboxesInput = {}): Promise<Sandbox[]> {
      return transport.list("/v1/sandboxes", {
        query: { include: input.include, projectId: input.projectId, ...metadataQuery(input.metadata) },
        options: input,
      });
    },

    extend,

    /** Valid in every state, repeatable. */
    kill,
  };
}

function bind<Group extends object, Name extends keyof Group>(
  sandboxId: string,
  group: Group,
  names: readonly Name[],
): InSandbox<Pick<Group, Name>> {
  type Method = (sandboxId: string, ...rest: unknown[]) => unknown;
  const bound = names.map((name) => [name, (...rest: unknown[]) => (group[name] as Method)(sandboxId, ...rest)]);
  return Object.fromEntries(bound) as InSandbox<Pick<Group, Name>>;
}
