import { segment, type MutationOptions, type RequestOptions, type Transport } from "./transport.js";
import type { CreatedPreview, Preview, PreviewAuthMode } from "./types.js";

export interface CreatePreviewInput extends MutationOptions {
  readonly port: number;
  readonly authMode?: PreviewAuthMode;
  readonly sourceCommandId?: string;
}

export type PreviewsClient = ReturnType<typeof previewsClient>;

export function previewsClient(transport: Transport) {
  const ofSandbox = (sandboxId: string) => `/v1/sandboxes/${segment(sandboxId)}/previews`;
  const route = (previewId: string) => `/v1/previews/${segment(previewId)}`;
  return {
    /** Gives a port of the sandbox a URL; the same port again gives the same preview. */
    create(sandboxId: string, input: CreatePreviewInput): Promise<CreatedPreview> {
      const { port, authMode, sourceCommandId } = input;
      return transport.mutate("POST", ofSandbox(sandboxId), {
        json: { port, authMode, sourceCommandId },
        options: input,
      });
    },

    list(sandboxId: string, options?: RequestOptions): Promise<Preview[]> {
      return transport.list(ofSandbox(sandboxId), { options });
    },

    async get(previewId: string, options?: RequestOptions): Promise<Preview> {
      return (await transport.get<{ preview: Preview }>(route(previewId), { options })).preview;
    },

    async revoke(previewId: string, options?: MutationOptions): Promise<Preview> {
      return (await transport.mutate<{ preview: Preview }>("DELETE", route(previewId), { options })).preview;
    },
  };
}
