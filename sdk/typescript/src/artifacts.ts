import { segment, type MutationOptions, type RequestOptions, type Transport } from "./transport.js";
import type { Artifact, DownloadUrl } from "./types.js";

export interface CreateArtifactInput extends MutationOptions {
  readonly path: string;
  /** Defaults to the last element of the path. */
  readonly name?: string;
}

export type ArtifactsClient = ReturnType<typeof artifactsClient>;

export function artifactsClient(transport: Transport) {
  const route = (artifactId: string) => `/v1/artifacts/${segment(artifactId)}`;
  const download = (artifactId: string, options?: RequestOptions) =>
    transport.open(`${route(artifactId)}/download`, { headers: { accept: "*/*" }, options });
  return {
    /** Keeps a file of a live sandbox beyond its end. */
    async create(sandboxId: string, input: CreateArtifactInput): Promise<Artifact> {
      const { path, name } = input;
      const answer = await transport.mutate<{ artifact: Artifact }>(
        "POST",
        `/v1/sandboxes/${segment(sandboxId)}/artifacts`,
        { json: { path, name }, options: input },
      );
      return answer.artifact;
    },

    /** The artifacts of a sandbox, also after it is gone. */
    list(sandboxId: string, options?: RequestOptions): Promise<Artifact[]> {
      return transport.list(`/v1/sandboxes/${segment(sandboxId)}/artifacts`, { options });
    },

    async get(artifactId: string, options?: RequestOptions): Promise<Artifact> {
      return (await transport.get<{ artifact: Artifact }>(route(artifactId), { options })).artifact;
    },

    /** All bytes, in memory. */
    async download(artifactId: string, options?: RequestOptions): Promise<Uint8Array> {
      return new Uint8Array(await (await download(artifactId, options)).arrayBuffer());
    },

    /** The bytes as a stream, for artifacts that do not belong in memory. */
    async downloadStream(artifactId: string, options?: RequestOptions): Promise<ReadableStream<Uint8Array>> {
      return bodyOf(await download(artifactId, options));
    },

    downloadUrl(artifactId: string, options?: MutationOptions): Promise<DownloadUrl> {
      return transport.mutate("POST", `${route(artifactId)}/download-url`, { options });
    },

    async delete(artifactId: string, options?: MutationOptions): Promise<Artifact> {
      return (await transport.mutate<{ artifact: Artifact }>("DELETE", route(artifactId), { options })).artifact;
    },
  };
}

/** The body of a successful answer; one without a body is an empty stream. */
export function bodyOf(response: Response): ReadableStream<Uint8Array> {
  return response.body ?? (new Blob([]).stream() as ReadableStream<Uint8Array>);
}
