import { follow, type FollowOptions } from "./follow.js";
import { segment, type MutationOptions, type RequestOptions, type StreamableBody, type Transport } from "./transport.js";
import type {
  ArchiveTransfer,
  CollectItem,
  EvidenceBundle,
  Metadata,
  WorkspaceRun,
  WorkspaceRunArchive,
  WorkspaceRunEvent,
  WorkspaceRunEventPage,
  WorkspaceRunStatus,
} from "./types.js";

export interface CreateWorkspaceRunInput extends MutationOptions {
  readonly command: string;
  readonly artifacts?: readonly CollectItem[];
  readonly keepSandbox?: boolean;
  readonly metadata?: Metadata;
  readonly projectId?: string;
  /** Run in this sandbox instead of one made for the run. */
  readonly sandboxId?: string;
  readonly sourceMetadata?: Metadata;
  readonly template?: string;
  readonly templateVersionId?: string;
  /** For the command; default 600,000, at most 3,000,000. */
  readonly timeoutMs?: number;
}

/** Size and SHA-256 (hex) of a gzip-compressed tar archive. */
export interface ArchiveDigest {
  readonly sha256: string;
  readonly sizeBytes: number;
}

export interface UploadArchiveInput extends MutationOptions, ArchiveDigest {
  readonly bytes: Uint8Array;
}

export interface FinalizeArchiveInput extends MutationOptions, ArchiveDigest {
  readonly uploadId: string;
}

export interface UploadToTransferInput extends RequestOptions {
  readonly body: StreamableBody;
  readonly headers?: Readonly<Record<string, string>>;
}

export interface ListWorkspaceRunsInput extends RequestOptions {
  readonly metadata?: Metadata;
  readonly projectId?: string;
  readonly status?: WorkspaceRunStatus;
}

export interface ListWorkspaceRunEventsInput extends RequestOptions {
  readonly afterSeq?: number;
  readonly limit?: number;
}

const EVENTS: ReadonlySet<string> = new Set([
  "status",
  "archive_progress",
  "stdout",
  "stderr",
  "artifact_collected",
  "artifact_error",
  "heartbeat",
  "terminal",
  "error",
]);

interface ArchiveAnswer {
  archive: WorkspaceRunArchive;
  workspaceRun: WorkspaceRun;
}

export type WorkspaceRunsClient = ReturnType<typeof workspaceRunsClient>;

export function workspaceRunsClient(transport: Transport) {
  const route = (runId: string, rest = "") => `/v1/workspace-runs/${segment(runId)}${rest}`;
  const run = async (answer: Promise<{ workspaceRun: WorkspaceRun }>) => (await answer).workspaceRun;
  return {
    /** Makes the record; the archive comes next, then start. */
    create(input: CreateWorkspaceRunInput): Promise<WorkspaceRun> {
      const { signal: _, idempotencyKey: __, ...json } = input;
      return run(transport.mutate("POST", "/v1/workspace-runs", { json, options: input }));
    },

    /** Uploads an archive of at most 8 MiB in one request. */
    uploadArchive(workspaceRunId: string, input: UploadArchiveInput): Promise<ArchiveAnswer> {
      return transport.mutate("PUT", route(workspaceRunId, "/archive"), {
        bytes: input.bytes,
        headers: {
          "content-type": "application/gzip",
          "x-crownest-archive-sha256": input.sha256,
          "x-crownest-archive-size": String(input.sizeBytes),
        },
        options: input,
      });
    },

    /** Gets a URL for a larger archive. */
    async createArchiveTransfer(
      workspaceRunId: string,
      input: ArchiveDigest & MutationOptions,
    ): Promise<ArchiveTransfer> {
      const answer = await transport.mutate<{ transfer: ArchiveTransfer }>(
        "POST",
        route(workspaceRunId, "/archive-transfer"),
        { json: { sha256: input.sha256, sizeBytes: input.sizeBytes }, options: input },
      );
      return answer.transfer;
    },

    /** Sends the bytes; sending again before finalizeArchive replaces them. */
    async uploadArchiveToTransfer(transfer: ArchiveTransfer, input: UploadToTransferInput): Promise<void> {
      const response = await transport.signed(transfer.method, transfer.uploadUrl, {
        headers: { ...transfer.headers, ...input.headers },
        body: input.body,
        signal: input.signal,
      });
      await response.body?.cancel();
    },

    finalizeArchive(workspaceRunId: string, input: FinalizeArchiveInput): Promise<ArchiveAnswer> {
      const { sha256, sizeBytes, uploadId } = input;
      return transport.mutate("POST", route(workspaceRunId, "/archive/finalize"), {
        json: { sha256, sizeBytes, uploadId },
        options: input,
      });
    },

    /** Extracts the archive and runs the command. Repeatable. */
    start(workspaceRunId: string, options?: MutationOptions): Promise<WorkspaceRun> {
      return run(transport.mutate("POST", route(workspaceRunId, "/start"), { options }));
    },

    get(workspaceRunId: string, options?: RequestOptions): Promise<WorkspaceRun> {
      return run(transport.get(route(workspaceRunId), { options }));
    },

    list(input: ListWorkspaceRunsInput = {}): Promise<WorkspaceRun[]> {
      return transport.list("/v1/workspace-runs", {
        query: { projectId: input.projectId, status: input.status, ...metadataQuery(input.metadata) },
        options: input,
      });
    },

    /** One page of the recorded events; feed nextSeq to afterSeq for the next one. */
    listEvents(workspaceRunId: string, input: ListWorkspaceRunEventsInput = {}): Promise<WorkspaceRunEventPage> {
      const { afterSeq, limit } = input;
      return transport.get(route(workspaceRunId, "/events"), { query: { afterSeq, limit }, options: input });
    },

    /** Replays the recorded events, goes on with the live ones and ends after `terminal` or `error`. */
    streamEvents(
      workspaceRunId: string,
      options: FollowOptions = {},
    ): AsyncGenerator<WorkspaceRunEvent, void, undefined> {
      return follow<WorkspaceRunEvent>(
        (afterSeq) =>
          transport.events("GET", route(workspaceRunId, "/events"), { query: { afterSeq, stream: true }, options }),
        (type) => EVENTS.has(type),
        options,
      );
    },

    cancel(workspaceRunId: string, options?: MutationOptions): Promise<WorkspaceRun> {
      return run(transport.mutate("POST", route(workspaceRunId, "/cancel"), { options }));
    },

    /** What is known of a finished run; outlives its sandbox. */
    async evidence(workspaceRunId: string, options?: RequestOptions): Promise<EvidenceBundle> {
      const answer = await transport.get<{ evidence: EvidenceBundle }>(route(workspaceRunId, "/evidence"), { options });
      return answer.evidence;
    },
  };
}

/** The filter of lists: every pair given has to be there, exactly. */
export function metadataQuery(metadata: Metadata = {}): Record<string, string> {
  return Object.fromEntries(Object.entries(metadata).map(([key, value]) => [`metadata.${key}`, value]));
}
