import { apiKeysClient, projectsClient, usage, type ApiKeysClient, type ProjectsClient, type UsageOptions } from "./admin.js";
import { artifactsClient, type ArtifactsClient } from "./artifacts.js";
import { codeClient, type CodeClient } from "./code.js";
import { commandsClient, type CommandsClient } from "./commands.js";
import { environmentVariable } from "./environment.js";
import { filesClient, type FilesClient } from "./files.js";
import { previewsClient, type PreviewsClient } from "./previews.js";
import { sandboxesClient, type SandboxesClient } from "./sandboxes.js";
import { Transport } from "./transport.js";
import type { UsageSummary } from "./types.js";
import { workspaceRunsClient, type WorkspaceRunsClient } from "./workspace-runs.js";

const HOSTED = "https://api.crownest.dev";

export interface CrowNestClientOptions {
  /** A bearer token of any kind; goes before apiKey. */
  readonly credential?: string;
  /** Default: the environment's CROWNEST_BEARER_TOKEN, then CROWNEST_API_KEY. */
  readonly apiKey?: string;
  /** Default: the environment's CROWNEST_API_URL, then the hosted service. May have a path. */
  readonly baseUrl?: string;
  /** Used instead of the runtime's own fetch. */
  readonly fetch?: typeof fetch;
}

/** The whole API. All methods work on their own, without the object they came from. */
export interface CrowNestClient {
  readonly sandboxes: SandboxesClient;
  readonly commands: CommandsClient;
  readonly code: CodeClient;
  readonly files: FilesClient;
  readonly artifacts: ArtifactsClient;
  readonly previews: PreviewsClient;
  readonly workspaceRuns: WorkspaceRunsClient;
  readonly projects: ProjectsClient;
  readonly apiKeys: ApiKeysClient;
  /** Consumption, credits and quotas of the current month. */
  usage(options?: UsageOptions): Promise<UsageSummary>;
}

/** Makes a client. It holds no connection and needs no closing. */
export function createCrowNestClient(options: CrowNestClientOptions = {}): CrowNestClient {
  const credential =
    options.credential ||
    options.apiKey ||
    environmentVariable("CROWNEST_BEARER_TOKEN") ||
    environmentVariable("CROWNEST_API_KEY");
  if (!credential) {
    throw new Error("no CrowNest credential: pass apiKey or set CROWNEST_API_KEY");
  }
  const transport = new Transport({
    credential,
    baseUrl: options.baseUrl || environmentVariable("CROWNEST_API_URL") || HOSTED,
    ...(options.fetch === undefined ? {} : { fetch: options.fetch }),
  });
  const groups = {
    artifacts: artifactsClient(transport),
    code: codeClient(transport),
    commands: commandsClient(transport),
    files: filesClient(transport),
    previews: previewsClient(transport),
  };
  return {
    ...groups,
    sandboxes: sandboxesClient(transport, groups),
    workspaceRuns: workspaceRunsClient(transport),
    projects: projectsClient(transport),
    apiKeys: apiKeysClient(transport),
    usage: (usageOptions) => usage(transport, usageOptions),
  };
}
