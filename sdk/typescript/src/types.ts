// The shapes of the wire, as the API sends them. A field with `?` is absent when
// it has no value; null is never sent except where a type says so. A newer
// server may add fields and enum values.

import type { ApiKeyScope } from "./scopes.js";

export type SandboxId = `sbx_${string}`;
export type CommandId = `cmd_${string}`;
export type CodeContextId = `cctx_${string}`;
export type ArtifactId = `art_${string}`;
export type PreviewId = `prv_${string}`;
export type WorkspaceRunId = `wsr_${string}`;
export type UploadId = `upl_${string}`;
export type ApiKeyId = `key_${string}`;
export type ProjectId = `prj_${string}`;
export type OrgId = `org_${string}`;
export type UserId = `usr_${string}`;
export type TemplateId = `tpl_${string}`;
export type TemplateVersionId = `tplv_${string}`;

/** UTC, `YYYY-MM-DDTHH:MM:SS.mmmZ`. */
export type Timestamp = string;
export type Metadata = Readonly<Record<string, string>>;

export interface Project {
  id: ProjectId;
  orgId: OrgId;
  name: string;
  createdAt: Timestamp;
}

export type SandboxStatus =
  | "creating"
  | "starting"
  | "ready"
  | "running"
  | "idle"
  | "expiring"
  | "destroyed"
  | "failed";

export type DestroyedReason = "idle_expired" | "platform_cleanup" | "ttl_expired" | "user_killed";

/** How much of the network a sandbox may reach. */
export interface NetworkPolicy {
  egress: "none" | "allowlist" | "internet";
  /** Hosts, `*.domain`, addresses or CIDR blocks, each with an optional `:port`. */
  allow?: string[];
}

export interface SandboxResources {
  vcpu: number;
  memoryBytes: number;
  diskBytes: number;
  /** Tasks, threads included. */
  maxProcesses: number;
}

export interface Sandbox {
  id: SandboxId;
  orgId: OrgId;
  projectId: ProjectId;
  status: SandboxStatus;
  templateId: TemplateId;
  templateSlug: string;
  templateVersion: string;
  templateVersionId: TemplateVersionId;
  ttlMs: number;
  expiresAt: Timestamp;
  metadata: Record<string, string>;
  createdAt: Timestamp;
  destroyedAt?: Timestamp;
  destroyedReason?: DestroyedReason;
  network?: NetworkPolicy;
  resources?: SandboxResources;
}

export type CommandStatus =
  | "queued"
  | "starting"
  | "running"
  | "exited"
  | "failed"
  | "canceled"
  | "timed_out"
  | "killed";

export type CancelMode = "graceful" | "force";

export type CollectStatus =
  | "not_requested"
  | "pending"
  | "succeeded"
  | "partial"
  | "failed"
  | "skipped";

/** One file to keep as an artifact; `name` defaults to the last path element. */
export interface CollectItem {
  readonly path: string;
  readonly name?: string;
}

export interface CollectError {
  code: "artifact_collect_failed" | "file_not_found" | "path_outside_workspace";
  message: string;
  path: string;
}

export interface Command {
  id: CommandId;
  sandboxId: SandboxId;
  command: string;
  cwd: string;
  /** Always empty: values are never stored. */
  env: Record<string, string>;
  status: CommandStatus;
  cancelMode?: CancelMode;
  canceledAt?: Timestamp;
  /** Set only by an exit of the command's own, and by a foreign signal (128 + n). */
  exitCode?: number;
  /** The first MiB; present once the command has ended. */
  stdout?: string;
  stderr?: string;
  stdoutTruncated?: boolean;
  stderrTruncated?: boolean;
  startedAt?: Timestamp;
  finishedAt?: Timestamp;
  durationMs?: number;
  collectStatus?: CollectStatus;
  collectErrors?: CollectError[];
  killedReason?: "sandbox_destroyed";
  terminationSignal?: "SIGTERM" | "SIGKILL";
  createdAt?: Timestamp;
  artifactIds?: ArtifactId[];
}

export type OutputStream = "stdout" | "stderr";

export interface CommandLogChunk {
  commandId: CommandId;
  createdAt: Timestamp;
  data: string;
  /** One ascending series over both streams, from 1, without holes. */
  seq: number;
  stream: OutputStream;
}

export interface CommandStartedEvent {
  type: "command";
  command: Command;
  createdAt: Timestamp;
}

export interface CommandLogEvent {
  type: "log";
  seq: number;
  stream: OutputStream;
  data: string;
  createdAt: Timestamp;
}

export interface HeartbeatEvent {
  type: "heartbeat";
  createdAt: Timestamp;
}

export interface CommandTerminalEvent {
  type: "terminal";
  command: Command;
  createdAt: Timestamp;
}

/** Ends a stream: what follows it is not to be had. */
export interface StreamErrorEvent {
  type: "error";
  code: string;
  message: string;
  createdAt: Timestamp;
}

export type CommandLogStreamEvent =
  | CommandLogEvent
  | HeartbeatEvent
  | CommandTerminalEvent
  | StreamErrorEvent;

export type CodeLanguage = "python" | "javascript" | "typescript";
export type CodeArtifactPolicy = "inline_only" | "promote";

export interface CodeContext {
  id: CodeContextId;
  sandboxId: SandboxId;
  language: CodeLanguage;
  cwd: string;
  isDefault?: boolean;
  createdAt: Timestamp;
  expiresAt?: Timestamp;
}

export interface CodeError {
  name?: string;
  message: string;
  traceback?: string[];
}

export type CodeOutput =
  | {
      kind: "inline";
      format: "chart" | "data" | "json" | "latex" | "markdown" | "text";
      value: unknown;
      truncated?: boolean;
    }
  | {
      kind: "artifact";
      format: "chart" | "data" | "html" | "jpeg" | "json" | "png" | "svg";
      artifactId: ArtifactId;
      contentType: string;
      sizeBytes: number;
    }
  | {
      kind: "rejected";
      format: string;
      reason:
        | "artifact_scope_required"
        | "output_too_large"
        | "requires_artifact_promotion"
        | "unsafe_active_content"
        | "unsupported_format";
    };

export interface RunCodeResult {
  sandboxId: SandboxId;
  contextId: CodeContextId;
  language: CodeLanguage;
  executionCount: number;
  stdout: string[];
  stderr: string[];
  stdoutTruncated?: boolean;
  stderrTruncated?: boolean;
  outputs: CodeOutput[];
  /** An exception of the code, or one of TimeoutError, ContextLost, SandboxDestroyed, InternalError. */
  error?: CodeError;
  durationMs?: number;
}

export type CodeRunEvent =
  | { type: "stdout"; data: string }
  | { type: "stderr"; data: string }
  | { type: "output"; data: CodeOutput }
  | { type: "error"; data: CodeError }
  | { type: "complete"; data: RunCodeResult };

export type FileEncoding = "utf8" | "base64";

export interface FileStat {
  /** Absolute. */
  path: string;
  sizeBytes: number;
  type: "file" | "directory";
  modifiedAt?: Timestamp;
}

export interface FileEntry extends FileStat {
  name: string;
}

export interface Artifact {
  id: ArtifactId;
  orgId: OrgId;
  projectId: ProjectId;
  sandboxId: SandboxId;
  name: string;
  objectKey: string;
  sizeBytes: number;
  contentType?: string;
  sourcePath?: string;
  createdAt: Timestamp;
  deletedAt?: Timestamp;
  retentionExpiresAt?: Timestamp;
  sha256?: string;
  commandId?: CommandId;
}

/** A signed URL, valid for minutes and without a credential. */
export interface DownloadUrl {
  authMode: "api_key";
  headers: Record<string, string>;
  method: "GET";
  url: string;
  expiresAt: Timestamp;
}

export interface UploadUrl {
  uploadId: UploadId;
  method: "PUT";
  url: string;
  headers: Record<string, string>;
  expiresAt: Timestamp;
  maxSizeBytes: number;
}

export type PreviewAuthMode = "authenticated" | "token";

export interface Preview {
  id: PreviewId;
  slug: string;
  orgId: OrgId;
  projectId: ProjectId;
  sandboxId: SandboxId;
  port: number;
  authMode: PreviewAuthMode;
  url: string;
  createdAt: Timestamp;
  expiresAt?: Timestamp;
  revokedAt?: Timestamp;
}

export interface CreatedPreview {
  preview: Preview;
  /** Shown once, and only for a new preview with authMode `token`. */
  previewToken?: string;
}

export interface ApiKey {
  id: ApiKeyId;
  orgId: OrgId;
  name: string;
  prefix: string;
  last4: string;
  projectIds?: ProjectId[];
  scopes: ApiKeyScope[];
  createdByUserId: UserId;
  createdAt: Timestamp;
  revokedAt?: Timestamp;
  lastUsedAt?: Timestamp;
}

export interface UsageQuota {
  current?: number;
  limit: number;
  remaining?: number;
  resetAt?: Timestamp | null;
}

export interface UsageEvent {
  amount: number;
  createdAt: Timestamp;
  metric: string;
  orgId: OrgId;
  projectId?: ProjectId;
  resourceId?: string;
  pricingVersion?: string;
}

export interface UsageSummary {
  period: { start: Timestamp; end: Timestamp; resetAt: Timestamp };
  pricingVersion: string;
  computeUnitSecondsPerCredit: number;
  currencyPerCredit: number;
  computeUnitSeconds: { used: number };
  credits: { used: number; remaining?: number };
  quotas: Record<string, UsageQuota>;
  events?: UsageEvent[];
}

export type WorkspaceRunStatus =
  | "awaiting_archive"
  | "archive_uploaded"
  | "starting"
  | "extracting"
  | "running"
  | "collecting"
  | "succeeded"
  | "failed"
  | "canceled";

export type CleanupStatus = "failed" | "not_requested" | "pending" | "succeeded";

export interface WorkspaceRunArchive {
  sha256: string;
  sizeBytes: number;
  uploadedAt?: Timestamp;
}

export interface WorkspaceRun {
  id: WorkspaceRunId;
  orgId: OrgId;
  projectId: ProjectId;
  status: WorkspaceRunStatus;
  command: string;
  keepSandbox: boolean;
  metadata: Record<string, string>;
  templateId: TemplateId;
  templateSlug: string;
  templateVersion: string;
  templateVersionId: TemplateVersionId;
  createdAt: Timestamp;
  archive?: WorkspaceRunArchive;
  artifactErrors?: CollectError[];
  artifactIds?: ArtifactId[];
  cleanupStatus?: CleanupStatus;
  commandId?: CommandId;
  durationMs?: number;
  envKeys?: string[];
  evidenceAvailable?: boolean;
  exitCode?: number;
  failureClass?: string;
  failureReason?: string;
  finishedAt?: Timestamp;
  orchestrationSucceeded?: boolean;
  sandboxId?: SandboxId;
  sourceMetadata?: Record<string, string>;
  startedAt?: Timestamp;
  timeoutMs?: number;
  uploadedAt?: Timestamp;
}

export interface EvidenceBundle {
  workspaceRunId: WorkspaceRunId;
  orgId: OrgId;
  projectId: ProjectId;
  status: WorkspaceRunStatus;
  command: string;
  createdAt: Timestamp;
  envKeys: string[];
  metadata: Record<string, string>;
  artifactIds: ArtifactId[];
  artifactErrors: CollectError[];
  cleanupStatus: CleanupStatus;
  orchestrationSucceeded: boolean;
  archive?: WorkspaceRunArchive;
  commandId?: CommandId;
  durationMs?: number;
  exitCode?: number;
  failureClass?: string;
  failureReason?: string;
  finishedAt?: Timestamp;
  sandboxId?: SandboxId;
  sourceMetadata?: Record<string, string>;
  startedAt?: Timestamp;
  timeoutMs?: number;
}

export interface ArchiveTransfer {
  id: UploadId;
  workspaceRunId: WorkspaceRunId;
  method: "PUT";
  uploadUrl: string;
  headers: Record<string, string>;
  maxSizeBytes: number;
  checksumAlgorithm: "sha256";
  status: "pending" | "uploaded" | "finalized" | "expired";
  expiresAt: Timestamp;
}

type RunEvent<T extends string, Fields> = { type: T; seq: number; createdAt: Timestamp } & Fields;

export type WorkspaceRunEvent =
  | RunEvent<"status", { status: WorkspaceRunStatus }>
  | RunEvent<"archive_progress", { receivedBytes: number; sizeBytes?: number }>
  | RunEvent<"stdout", { data: string }>
  | RunEvent<"stderr", { data: string }>
  | RunEvent<"artifact_collected", { artifactId: ArtifactId; path: string }>
  | RunEvent<"artifact_error", { error: CollectError }>
  | RunEvent<"heartbeat", unknown>
  | RunEvent<"terminal", { workspaceRun: WorkspaceRun }>
  | RunEvent<"error", { code: string; message: string }>;

export interface WorkspaceRunEventPage {
  data: WorkspaceRunEvent[];
  hasMore: boolean;
  nextSeq?: number;
}
