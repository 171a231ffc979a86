import { bodyOf } from "./artifacts.js";
import { CrowNestApiError } from "./errors.js";
import { decodeBase64, encodeBase64, sha256Hex } from "./environment.js";
import { segment, type MutationOptions, type RequestOptions, type Transport } from "./transport.js";
import type { DownloadUrl, FileEncoding, FileEntry, FileStat, UploadUrl } from "./types.js";

export interface ReadFileOptions extends RequestOptions {
  /** utf8 (default) or base64: what the returned string is. */
  readonly encoding?: FileEncoding;
}

export interface WriteBytesOptions extends MutationOptions {
  /** Makes the directories that are missing. Default false. */
  readonly createParents?: boolean;
  /** false: refuse where there is a file already. Default true. */
  readonly overwrite?: boolean;
}

export interface WriteFileOptions extends WriteBytesOptions {
  /** utf8 (default) or base64: what the content is. */
  readonly encoding?: FileEncoding;
}

export interface UploadFileOptions extends WriteBytesOptions {
  /** Checked by the server. Known by itself unless the body is a stream. */
  readonly sizeBytes?: number;
  /** Hex; checked by the server. Computed by itself where the bytes are in memory. */
  readonly sha256?: string;
}

// What one JSON request or answer carries, in decoded bytes. The server may be
// set to less: it says so with file_too_large.
const DIRECT_LIMIT = 256 * 1024;

export type FilesClient = ReturnType<typeof filesClient>;

export function filesClient(transport: Transport) {
  const route = (sandboxId: string, rest = "") => `/v1/sandboxes/${segment(sandboxId)}/files${rest}`;

  async function write(
    sandboxId: string,
    path: string,
    content: string,
    encoding: FileEncoding,
    options: WriteBytesOptions,
  ): Promise<FileStat> {
    const { createParents, overwrite } = options;
    const answer = await transport.mutate<{ file: FileStat }>("PUT", route(sandboxId), {
      json: { path, content, encoding, createParents, overwrite },
      options,
    });
    return answer.file;
  }

  async function writeBytes(
    sandboxId: string,
    path: string,
    bytes: Uint8Array,
    options: WriteBytesOptions = {},
  ): Promise<FileStat> {
    if (bytes.byteLength > DIRECT_LIMIT) return upload(sandboxId, path, bytes, options);
    return stagedIfTooLarge(
      () => write(sandboxId, path, encodeBase64(bytes), "base64", options),
      () => upload(sandboxId, path, bytes, withoutKey(options)),
    );
  }

  async function upload(
    sandboxId: string,
    path: string,
    body: Uint8Array | ArrayBuffer | Blob | ReadableStream<Uint8Array>,
    options: UploadFileOptions = {},
  ): Promise<FileStat> {
    const bytes = inMemory(body);
    const staged = await transport.mutate<UploadUrl>("POST", route(sandboxId, "/upload-url"), {
      json: {
        path,
        sizeBytes: options.sizeBytes ?? bytes?.byteLength ?? (body instanceof Blob ? body.size : undefined),
        sha256: options.sha256 ?? (bytes === undefined ? undefined : await sha256Hex(bytes)),
        createParents: options.createParents,
        overwrite: options.overwrite,
      },
      options,
    });
    const response = await transport.signed(staged.method, staged.url, {
      headers: staged.headers,
      body: bytes ?? body,
      signal: options.signal,
    });
    return ((await response.json()) as { file: FileStat }).file;
  }

  function downloadUrl(sandboxId: string, path: string, options?: MutationOptions): Promise<DownloadUrl> {
    return transport.mutate("POST", route(sandboxId, "/download-url"), { json: { path }, options });
  }

  async function download(sandboxId: string, path: string, options?: RequestOptions): Promise<Response> {
    const { url, method, headers } = await downloadUrl(sandboxId, path, options);
    return transport.signed(method, url, { headers, signal: options?.signal });
  }

  async function readDirect(sandboxId: string, path: string, encoding: FileEncoding, options?: RequestOptions) {
    const answer = await transport.get<{ content: string }>(route(sandboxId, "/read"), {
      query: { path, encoding },
      options,
    });
    return answer.content;
  }

  function readBytes(sandboxId: string, path: string, options?: RequestOptions): Promise<Uint8Array> {
    return stagedIfTooLarge<Uint8Array>(
      async () => decodeBase64(await readDirect(sandboxId, path, "base64", options)),
      async () => new Uint8Array(await (await download(sandboxId, path, options)).arrayBuffer()),
    );
  }

  return {
    /** Reads a file as text. A large one takes the way over a signed URL by itself. */
    read(sandboxId: string, path: string, options: ReadFileOptions = {}): Promise<string> {
      const encoding = options.encoding ?? "utf8";
      return stagedIfTooLarge(
        () => readDirect(sandboxId, path, encoding, options),
        async () => {
          const bytes = new Uint8Array(await (await download(sandboxId, path, options)).arrayBuffer());
          return encoding === "base64" ? encodeBase64(bytes) : decodeText(bytes);
        },
      );
    },

    readBytes,

    /** Writes a text file, atomically. A large one takes the way over a signed URL by itself. */
    async write(sandboxId: string, path: string, content: string, options: WriteFileOptions = {}): Promise<FileStat> {
      const encoding = options.encoding ?? "utf8";
      // Four base64 characters are three bytes, one UTF-16 unit is three bytes at most.
      const mayBeLarge = encoding === "base64" ? content.length * 0.75 > DIRECT_LIMIT : content.length * 3 > DIRECT_LIMIT;
      const toBytes = () => (encoding === "base64" ? decodeBase64(content) : new TextEncoder().encode(content));
      if (mayBeLarge) {
        const bytes = toBytes();
        if (bytes.byteLength > DIRECT_LIMIT) return upload(sandboxId, path, bytes, options);
      }
      return stagedIfTooLarge(
        () => write(sandboxId, path, content, encoding, options),
        () => upload(sandboxId, path, toBytes(), withoutKey(options)),
      );
    },

    writeBytes,

    /**
     * Writes a file of any size from memory, a Blob or a stream, through a
     * signed URL. It appears under its name only when it is complete.
     */
    upload,

    /** The bytes as a stream, for files that do not belong in memory. */
    async downloadStream(sandboxId: string, path: string, options?: RequestOptions): Promise<ReadableStream<Uint8Array>> {
      return bodyOf(await download(sandboxId, path, options));
    },

    /** A signed URL, for whoever is to fetch the file without a key. */
    downloadUrl,

    /** One directory, not what is below its subdirectories. */
    async list(sandboxId: string, path = "/workspace", options?: RequestOptions): Promise<FileEntry[]> {
      return (await transport.get<{ data: FileEntry[] }>(route(sandboxId), { query: { path }, options })).data;
    },

    async stat(sandboxId: string, path: string, options?: RequestOptions): Promise<FileStat> {
      return (await transport.get<{ file: FileStat }>(route(sandboxId, "/stat"), { query: { path }, options })).file;
    },

    async mkdir(
      sandboxId: string,
      path: string,
      options: MutationOptions & { readonly parents?: boolean } = {},
    ): Promise<FileStat> {
      const answer = await transport.mutate<{ file: FileStat }>("POST", route(sandboxId, "/mkdir"), {
        json: { path, parents: options.parents },
        options,
      });
      return answer.file;
    },

    async move(
      sandboxId: string,
      from: string,
      to: string,
      options: MutationOptions & { readonly overwrite?: boolean } = {},
    ): Promise<FileStat> {
      const answer = await transport.mutate<{ file: FileStat }>("POST", route(sandboxId, "/move"), {
        json: { from, to, overwrite: options.overwrite },
        options,
      });
      return answer.file;
    },

    /** Removes a file, a link or an empty directory. */
    async delete(sandboxId: string, path: string, options?: MutationOptions): Promise<void> {
      await transport.mutate("DELETE", route(sandboxId), { query: { path }, options });
    },
  };
}

/** Takes the second way where the API says that the file is too large for the first. */
async function stagedIfTooLarge<T>(direct: () => Promise<T>, staged: () => Promise<T>): Promise<T> {
  try {
    return await direct();
  } catch (error) {
    if (error instanceof CrowNestApiError && error.code === "file_too_large") return staged();
    throw error;
  }
}

/** The second way is another call: the caller's key already belongs to the first. */
function withoutKey(options: WriteBytesOptions): WriteBytesOptions {
  const { idempotencyKey: _, ...rest } = options;
  return rest;
}

function inMemory(body: Uint8Array | ArrayBuffer | Blob | ReadableStream<Uint8Array>): Uint8Array<ArrayBuffer> | undefined {
  if (body instanceof ArrayBuffer) return new Uint8Array(body);
  return body instanceof Uint8Array ? (body as Uint8Array<ArrayBuffer>) : undefined;
}

function decodeText(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new CrowNestApiError({ status: 400, code: "invalid_file_encoding", message: "the file is not UTF-8 text" });
  }
}
