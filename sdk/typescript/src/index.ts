export { createCrowNestClient, type CrowNestClient, type CrowNestClientOptions } from "./client.js";
export { CrowNestApiError, type CrowNestApiErrorInit } from "./errors.js";
export { ApiKeyScopes, type ApiKeyScope } from "./scopes.js";
export type { MutationOptions, RequestOptions, StreamableBody } from "./transport.js";
export type { FollowOptions } from "./follow.js";
export type { ApiKeysClient, CreateProjectInput, ProjectsClient, UsageOptions } from "./admin.js";
export type { ArtifactsClient, CreateArtifactInput } from "./artifacts.js";
export type { CodeClient, CreateCodeContextInput, RunCodeInput } from "./code.js";
export type {
  CancelCommandOptions,
  CommandLogsOptions,
  CommandsClient,
  RunCommandOptions,
  StartCommandOptions,
} from "./commands.js";
export type { FilesClient, ReadFileOptions, UploadFileOptions, WriteBytesOptions, WriteFileOptions } from "./files.js";
export type { CreatePreviewInput, PreviewsClient } from "./previews.js";
export type {
  CreateSandboxInput,
  ExtendSandboxInput,
  ListSandboxesInput,
  SandboxesClient,
  SandboxHandle,
} from "./sandboxes.js";
export type {
  ArchiveDigest,
  CreateWorkspaceRunInput,
  FinalizeArchiveInput,
  ListWorkspaceRunEventsInput,
  ListWorkspaceRunsInput,
  UploadArchiveInput,
  UploadToTransferInput,
  WorkspaceRunsClient,
} from "./workspace-runs.js";
export type * from "./types.js";
