import { apiErrorFrom, CrowNestApiError, INVALID_ERROR_RESPONSE } from "./errors.js";
import { delay, newIdempotencyKey } from "./environment.js";
import { EventParser } from "./sse.js";

/** Options that every call takes. */
export interface RequestOptions {
  /**
   * Gives up waiting and rejects with the signal's reason. What the call has set
   * off on the server goes on: cancel a command with `commands.cancel`.
   */
  readonly signal?: AbortSignal;
}

/** Options of every call that changes something. */
export interface MutationOptions extends RequestOptions {
  /**
   * Two calls with one key and the same input are one call. By default every
   * call has its own random key, which its own retries share.
   */
  readonly idempotencyKey?: string;
}

export interface TransportConfig {
  readonly baseUrl: string;
  readonly credential: string;
  readonly fetch?: typeof fetch;
}

export type QueryValue = string | number | boolean | undefined;

export interface RequestSpec {
  readonly query?: Readonly<Record<string, QueryValue>>;
  /** Sent as JSON; undefined fields are left out. */
  readonly json?: object;
  /** Sent as it is, with the headers given. */
  readonly bytes?: Uint8Array;
  readonly headers?: Readonly<Record<string, string>>;
  readonly options?: MutationOptions | undefined;
}

/** A body of any size. A stream is read once, so a call with one is never retried. */
export type StreamableBody = Uint8Array | ArrayBuffer | Blob | ReadableStream<Uint8Array> | string;

type Method = "GET" | "POST" | "PUT" | "DELETE";

const MAX_RETRIES = 2;
// Longer than this nobody wants to hang in a call that only waits: the error
// goes to the caller, who knows better.
const MAX_RETRY_AFTER_MS = 60_000;
// The API sends a heartbeat every 15 s. Where nothing comes for four times as
// long the connection is dead, though nobody may have said so.
const STREAM_SILENCE_MS = 60_000;

/** Speaks HTTP with one API: credential, envelope, retries, events. */
export class Transport {
  readonly #base: string;
  readonly #origin: string;
  readonly #credential: string;
  readonly #fetch: typeof fetch;

  constructor(config: TransportConfig) {
    this.#base = config.baseUrl.replace(/\/+$/, "");
    const url = new URL(this.#base);
    if (url.protocol !== "http:" && url.protocol !== "https:") {
      throw new TypeError(`baseUrl must be an http or https URL, not ${url.protocol}`);
    }
    this.#origin = url.origin;
    this.#credential = config.credential;
    new Headers({ authorization: `Bearer ${config.credential}` }); // throws here rather than in every call
    // Some runtimes refuse a fetch that is called as a method of something else.
    const chosen = config.fetch;
    this.#fetch = chosen === undefined ? (...call) => globalThis.fetch(...call) : (...call) => chosen(...call);
  }

  /** Reads something. */
  get<T>(path: string, spec: RequestSpec = {}): Promise<T> {
    return this.#json<T>("GET", path, spec);
  }

  /** Changes something, under an idempotency key. */
  async mutate<T>(method: "POST" | "PUT" | "DELETE", path: string, spec: RequestSpec = {}): Promise<T> {
    return this.#json<T>(method, path, await withIdempotencyKey(spec));
  }

  /** Reads all pages of a list. */
  async list<T>(path: string, spec: RequestSpec = {}): Promise<T[]> {
    const items: T[] = [];
    let cursor: string | undefined;
    do {
      const page: { data: T[]; hasMore: boolean; nextCursor?: string } = await this.get(path, {
        ...spec,
        query: { ...spec.query, cursor },
      });
      items.push(...page.data);
      cursor = page.hasMore ? page.nextCursor : undefined;
    } while (cursor !== undefined);
    return items;
  }

  /** Opens a body of any size. The caller reads it to its end or cancels it. */
  open(path: string, spec: RequestSpec = {}): Promise<Response> {
    return this.#retrying(spec, async () => {
      const response = await this.#request("GET", this.#url(path, spec.query), spec);
      await throwUnlessOk(response);
      return response;
    });
  }

  /**
   * Opens an event stream and yields its events, parsed. Ends when the server
   * ends it; leaving early aborts the request.
   */
  async *events<T>(method: "GET" | "POST", path: string, spec: RequestSpec = {}): AsyncGenerator<T, void, undefined> {
    const stream = await this.openEvents<T>(method, path, spec);
    yield* stream.events;
  }

  /** Like events, for callers that want to see the head of the answer first. */
  async openEvents<T>(
    method: "GET" | "POST",
    path: string,
    spec: RequestSpec = {},
  ): Promise<{ response: Response; events: AsyncGenerator<T, void, undefined> }> {
    const keyed = method === "POST" ? await withIdempotencyKey(spec) : spec;
    const abort = new AbortController();
    const signal = keyed.options?.signal;
    const onAbort = () => abort.abort(signal!.reason);
    if (signal?.aborted) onAbort();
    else signal?.addEventListener("abort", onAbort, { once: true });
    const release = () => signal?.removeEventListener("abort", onAbort);

    const call = {
      ...keyed,
      options: { ...keyed.options, signal: abort.signal },
      headers: { ...keyed.headers, accept: "text/event-stream" },
    };
    const once = async () => {
      const response = await this.#request(method, this.#url(path, call.query), call);
      await throwUnlessOk(response);
      return response;
    };
    try {
      // A GET stream belongs to a loop that reconnects, with its own patience.
      const response = await (method === "POST" ? this.#retrying(call, once) : once());
      return { response, events: readEvents<T>(response, abort, release) };
    } catch (error) {
      release();
      throw error;
    }
  }

  /**
   * Sends bytes to, or fetches them from, a URL that the API gave out. The
   * credential goes along only to the API's own scheme, host and port: whoever
   * answers elsewhere must not see it.
   */
  async signed(
    method: "GET" | "PUT",
    url: string,
    init: { headers?: Readonly<Record<string, string>>; body?: StreamableBody; signal?: AbortSignal | undefined },
  ): Promise<Response> {
    const headers = new Headers(init.headers);
    if (new URL(url).origin === this.#origin) headers.set("authorization", `Bearer ${this.#credential}`);
    const response = await this.#fetch(url, {
      method,
      headers,
      redirect: "manual",
      ...(init.signal ? { signal: init.signal } : {}),
      ...(init.body === undefined ? {} : { body: init.body as BodyInit }),
      // A stream as a body needs this word, which the type of fetch does not know.
      ...(init.body instanceof ReadableStream ? { duplex: "half" } : {}),
    } as RequestInit);
    await throwUnlessOk(response);
    return response;
  }

  #url(path: string, query: RequestSpec["query"]): string {
    const search = new URLSearchParams();
    for (const [name, value] of Object.entries(query ?? {})) {
      if (value !== undefined) search.append(name, String(value));
    }
    const text = search.toString();
    return `${this.#base}${path}${text === "" ? "" : `?${text}`}`;
  }

  #request(method: Method, url: string, spec: RequestSpec): Promise<Response> {
    const headers = new Headers(spec.headers);
    headers.set("authorization", `Bearer ${this.#credential}`);
    if (!headers.has("accept")) headers.set("accept", "application/json");
    let body: string | Uint8Array | undefined = spec.bytes;
    if (spec.json !== undefined) {
      body = JSON.stringify(spec.json);
      headers.set("content-type", "application/json");
    }
    const signal = spec.options?.signal;
    return this.#fetch(url, {
      method,
      headers,
      // The API never redirects: whoever does is not the API.
      redirect: "manual",
      ...(body === undefined ? {} : { body: body as BodyInit }),
      ...(signal ? { signal } : {}),
    });
  }

  #json<T>(method: Method, path: string, spec: RequestSpec): Promise<T> {
    return this.#retrying(spec, async () => {
      const response = await this.#request(method, this.#url(path, spec.query), spec);
      await throwUnlessOk(response);
      // Long answers begin with spaces that keep the connection open; JSON allows them.
      const text = await response.text();
      try {
        return JSON.parse(text) as T;
      } catch {
        throw new CrowNestApiError({
          status: response.status,
          code: INVALID_ERROR_RESPONSE,
          message: "the answer is not JSON",
          requestId: response.headers.get("x-request-id") ?? undefined,
        });
      }
    });
  }

  /**
   * Tries a call again, at most twice, when the connection failed or the API
   * named a time to come back. The call is the same to the letter, idempotency
   * key included, so the server does nothing twice.
   */
  async #retrying<T>(spec: RequestSpec, once: () => Promise<T>): Promise<T> {
    const signal = spec.options?.signal;
    for (let retries = 0; ; retries++) {
      try {
        return await once();
      } catch (error) {
        const wait = signal?.aborted || retries === MAX_RETRIES ? undefined : retryDelay(error, retries);
        if (wait === undefined) throw error;
        await delay(wait, signal);
      }
    }
  }
}

/** How long to wait before another try, or undefined when there is to be none. */
function retryDelay(error: unknown, retries: number): number | undefined {
  if (error instanceof RetryLater) return error.waitMs <= MAX_RETRY_AFTER_MS ? error.waitMs : undefined;
  return isConnectionFailure(error) ? 250 * 2 ** retries : undefined;
}

/** An error answer that says when to come back. */
class RetryLater extends CrowNestApiError {
  readonly #waitMs: number;
  constructor(error: CrowNestApiError, waitMs: number) {
    super(error);
    this.#waitMs = waitMs;
  }
  get waitMs(): number {
    return this.#waitMs;
  }
}

/** True for what went wrong on the way, false for what the API answered. */
export function isConnectionFailure(error: unknown): boolean {
  if (error instanceof CrowNestApiError) return false;
  return !(error instanceof DOMException && error.name === "AbortError");
}

async function throwUnlessOk(response: Response): Promise<void> {
  if (response.ok) return;
  const error = apiErrorFrom(response, await response.text());
  const waitMs = retryAfterMs(response.headers.get("retry-after"));
  const retryable = response.status === 429 || response.status === 503;
  throw retryable && waitMs !== undefined ? new RetryLater(error, waitMs) : error;
}

function retryAfterMs(header: string | null): number | undefined {
  if (header === null) return undefined;
  if (/^\d+$/.test(header.trim())) return Number(header) * 1000;
  const at = Date.parse(header);
  return Number.isNaN(at) ? undefined : Math.max(0, at - Date.now());
}

async function withIdempotencyKey(spec: RequestSpec): Promise<RequestSpec> {
  const key = spec.options?.idempotencyKey ?? (await newIdempotencyKey());
  return { ...spec, headers: { ...spec.headers, "idempotency-key": key } };
}

async function* readEvents<T>(
  response: Response,
  abort: AbortController,
  release: () => void,
): AsyncGenerator<T, void, undefined> {
  const parser = new EventParser();
  let reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
  try {
    reader = response.body?.getReader();
    if (reader === undefined) return;
    for (;;) {
      const { done, value } = await readOrTimeOut(reader);
      if (done) return;
      for (const event of parser.push(value)) yield JSON.parse(event.data) as T;
    }
  } finally {
    release();
    // Whoever leaves early wants no more bytes; after the end this does nothing.
    abort.abort();
    await reader?.cancel().catch(() => undefined);
  }
}

async function readOrTimeOut(reader: ReadableStreamDefaultReader<Uint8Array>) {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const silence = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`nothing came on the stream for ${STREAM_SILENCE_MS / 1000} s`)),
      STREAM_SILENCE_MS,
    );
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * One element of a path. Without this check the id `..` would silently turn one
 * route into another.
 */
export function segment(value: string): string {
  if (value === "" || value === "." || value === "..") throw new TypeError(`not an id: ${JSON.stringify(value)}`);
  return encodeURIComponent(value);
}
