// What belongs to the organisation rather than to one sandbox.

import { segment, type MutationOptions, type RequestOptions, type Transport } from "./transport.js";
import type { ApiKey, Project, UsageSummary } from "./types.js";

export interface CreateProjectInput extends MutationOptions {
  readonly name: string;
}

export interface UsageOptions extends RequestOptions {
  /** `events` adds the latest 100 metered amounts. */
  readonly include?: "events";
}

export type ProjectsClient = ReturnType<typeof projectsClient>;

export function projectsClient(transport: Transport) {
  return {
    async create(input: CreateProjectInput): Promise<Project> {
      const spec = { json: { name: input.name }, options: input };
      return (await transport.mutate<{ project: Project }>("POST", "/v1/projects", spec)).project;
    },

    list(options?: RequestOptions): Promise<Project[]> {
      return transport.list("/v1/projects", { options });
    },
  };
}

export type ApiKeysClient = ReturnType<typeof apiKeysClient>;

/** No API key can make another one: keys come from the operator. */
export function apiKeysClient(transport: Transport) {
  const route = (apiKeyId: string) => `/v1/api-keys/${segment(apiKeyId)}`;
  return {
    async get(apiKeyId: string, options?: RequestOptions): Promise<ApiKey> {
      return (await transport.get<{ apiKey: ApiKey }>(route(apiKeyId), { options })).apiKey;
    },

    list(options?: RequestOptions): Promise<ApiKey[]> {
      return transport.list("/v1/api-keys", { options });
    },

    /** Takes effect at once. */
    async revoke(apiKeyId: string, options?: MutationOptions): Promise<ApiKey> {
      return (await transport.mutate<{ apiKey: ApiKey }>("DELETE", route(apiKeyId), { options })).apiKey;
    },
  };
}

export function usage(transport: Transport, options: UsageOptions = {}): Promise<UsageSummary> {
  return transport.get("/v1/usage", { query: { include: options.include }, options });
}
