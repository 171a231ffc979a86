import { CrowNestApiError } from "./errors.js";
import { delay, newIdempotencyKey } from "./environment.js";
import { follow, type FollowOptions } from "./follow.js";
import { isConnectionFailure, segment, type MutationOptions, type RequestOptions, type Transport } from "./transport.js";
import type {
  CancelMode,
  CollectItem,
  Command,
  CommandLogChunk,
  CommandLogStreamEvent,
  CommandStartedEvent,
  CommandStatus,
  OutputStream,
} from "./types.js";

export interface StartCommandOptions extends MutationOptions {
  /** An existing directory inside /workspace, which is the default. */
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** run: default 60,000, at most 600,000. start: by default until the sandbox ends. */
  readonly timeoutMs?: number;
  /**
   * Gets standard output piece by piece while the command runs. The next piece
   * waits until what this returns has settled. What it throws ends the
   * callbacks, never the command.
   */
  readonly onStdout?: (chunk: string) => unknown;
  /** The same for standard error. */
  readonly onStderr?: (chunk: string) => unknown;
  /** Gets what went wrong with the live output; the command is not affected. */
  readonly onStreamError?: (error: unknown) => void;
}

export interface RunCommandOptions extends StartCommandOptions {
  /** Files to keep as artifacts when the command has ended, at most 50. */
  readonly collect?: readonly CollectItem[];
  /** success (default): only after exit code 0. */
  readonly collectOn?: "success" | "always";
}

export interface CancelCommandOptions extends MutationOptions {
  /** graceful (default): SIGTERM, and SIGKILL after 10 s. force: SIGKILL at once. */
  readonly mode?: CancelMode;
}

export interface CommandLogsOptions extends RequestOptions {
  /** Only what comes after this sequence number; by default all that is retained. */
  readonly afterSeq?: number;
  /** At most so many chunks; by default all there are now. */
  readonly limit?: number;
}

export type CommandsClient = ReturnType<typeof commandsClient>;

export function commandsClient(transport: Transport) {
  const live = new LiveRuns(transport);
  return {
    /**
     * Runs a command and waits until it has ended, whatever the end: look at
     * `status` and `exitCode`. With onStdout or onStderr its output arrives live.
     */
    async run(sandboxId: string, command: string, options: RunCommandOptions = {}): Promise<Command> {
      if (options.onStdout !== undefined || options.onStderr !== undefined) {
        return live.run(sandboxId, command, options);
      }
      return post(transport, sandboxId, "/run", commandBody(command, options), options);
    },

    /**
     * Starts a command and returns at once. Callbacks are served in the
     * background until it has ended.
     */
    async start(sandboxId: string, command: string, options: StartCommandOptions = {}): Promise<Command> {
      const watched = options.onStdout !== undefined || options.onStderr !== undefined;
      const body = {
        ...commandBody(command, options),
        ...(watched ? { _crownestRequireCommandRead: true } : {}),
      };
      const started = await post(transport, sandboxId, "/start", body, options);
      if (watched) void live.deliver(started.id, new OutputCallbacks(options), options.signal);
      return started;
    },

    async get(commandId: string, options?: RequestOptions): Promise<Command> {
      return getCommand(transport, commandId, options);
    },

    /** Ends a command and everything it started; answers when nothing of it is left. */
    async cancel(commandId: string, options: CancelCommandOptions = {}): Promise<Command> {
      const answer = await transport.mutate<{ command: Command }>("POST", `/v1/commands/${segment(commandId)}/cancel`, {
        json: { mode: options.mode },
        options,
      });
      return answer.command;
    },

    /** The output that is retained now. */
    async logs(commandId: string, options: CommandLogsOptions = {}): Promise<CommandLogChunk[]> {
      return readLogs(transport, commandId, options);
    },

    /**
     * Replays the retained output, goes on with the live output and ends after
     * the `terminal` event, which holds the finished command. An `error` event
     * ends it too.
     */
    streamLogs(commandId: string, options: FollowOptions = {}): AsyncGenerator<CommandLogStreamEvent, void, undefined> {
      return streamLogs(transport, commandId, options);
    },
  };
}

function commandBody(command: string, options: RunCommandOptions) {
  return {
    command,
    cwd: options.cwd,
    env: options.env,
    timeoutMs: options.timeoutMs,
    collect: options.collect,
    collectOn: options.collectOn,
  };
}

async function post(
  transport: Transport,
  sandboxId: string,
  route: "/run" | "/start",
  json: object,
  options: MutationOptions,
): Promise<Command> {
  const path = `/v1/sandboxes/${segment(sandboxId)}/commands${route}`;
  return (await transport.mutate<{ command: Command }>("POST", path, { json, options })).command;
}

async function getCommand(transport: Transport, commandId: string, options?: RequestOptions): Promise<Command> {
  return (await transport.get<{ command: Command }>(`/v1/commands/${segment(commandId)}`, { options })).command;
}

const PAGE = 500;

async function readLogs(
  transport: Transport,
  commandId: string,
  options: CommandLogsOptions,
): Promise<CommandLogChunk[]> {
  const chunks: CommandLogChunk[] = [];
  const wanted = options.limit ?? Infinity;
  let afterSeq = options.afterSeq;
  for (;;) {
    const page = await transport.get<{ data: CommandLogChunk[]; hasMore: boolean; nextSeq?: number }>(
      `/v1/commands/${segment(commandId)}/logs`,
      { query: { afterSeq, limit: Math.min(wanted - chunks.length, PAGE) }, options },
    );
    chunks.push(...page.data);
    if (!page.hasMore || page.data.length === 0 || chunks.length >= wanted) return chunks;
    afterSeq = page.nextSeq ?? page.data[page.data.length - 1]!.seq;
  }
}

const LOG_EVENTS: ReadonlySet<string> = new Set(["log", "heartbeat", "terminal", "error"]);

function streamLogs(transport: Transport, commandId: string, options: FollowOptions) {
  const path = `/v1/commands/${segment(commandId)}/stream`;
  return follow<CommandLogStreamEvent>(
    (afterSeq) => transport.events("GET", path, { query: { afterSeq }, options }),
    (type) => LOG_EVENTS.has(type),
    options,
  );
}

const ENDED: ReadonlySet<CommandStatus> = new Set<CommandStatus>(["exited", "failed", "canceled", "timed_out", "killed"]);
const POLL_MS = 500;

/** Hands output to the caller's functions until one of them throws. */
class OutputCallbacks {
  readonly #options: StartCommandOptions;
  #ended = false;

  /** True once nobody wants, or can have, more output. */
  get ended(): boolean {
    return this.#ended;
  }

  constructor(options: StartCommandOptions) {
    this.#options = options;
  }

  async output(stream: OutputStream, data: string): Promise<void> {
    if (this.#ended) return;
    try {
      await (stream === "stdout" ? this.#options.onStdout : this.#options.onStderr)?.(data);
    } catch (error) {
      this.fail(error);
    }
  }

  /** Reports why there will be no more output, once. */
  fail(error: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    try {
      this.#options.onStreamError?.(error);
    } catch {
      // Nobody is left to tell, and the run must not fail for it.
    }
  }
}

type InlineEvent = CommandStartedEvent | CommandLogStreamEvent;

/** Where the live output of a command broke off, if it did. */
interface Followed {
  commandId?: string;
  lastSeq?: number;
  finished?: Command;
  failure?: unknown;
}

/** Runs whose output is wanted while they run. */
class LiveRuns {
  readonly #transport: Transport;
  /** Set once the API turned out to be older than the route that runs and streams in one. */
  #inlineMissing = false;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  async run(sandboxId: string, command: string, options: RunCommandOptions): Promise<Command> {
    const callbacks = new OutputCallbacks(options);
    const finished = this.#inlineMissing ? undefined : await this.#inline(sandboxId, command, options, callbacks);
    return finished ?? this.#twoStep(sandboxId, command, options, callbacks);
  }

  /**
   * Streams the output of a command that exists to the callbacks and returns its
   * final record, or undefined if the stream did not get that far. Never throws:
   * what goes wrong belongs to onStreamError.
   */
  async deliver(
    commandId: string,
    callbacks: OutputCallbacks,
    signal: AbortSignal | undefined,
    afterSeq?: number,
  ): Promise<Command | undefined> {
    try {
      const options = { ...(signal ? { signal } : {}), ...(afterSeq === undefined ? {} : { afterSeq }) };
      for await (const event of streamLogs(this.#transport, commandId, options)) {
        if (event.type === "log") await callbacks.output(event.stream, event.data);
        else if (event.type === "terminal") return event.command;
        else if (event.type === "error") callbacks.fail(streamError(event));
      }
    } catch (error) {
      callbacks.fail(error);
    }
    return undefined;
  }

  /** One request that starts, streams and collects; undefined where the API has none. */
  async #inline(
    sandboxId: string,
    command: string,
    options: RunCommandOptions,
    callbacks: OutputCallbacks,
  ): Promise<Command | undefined> {
    const path = `/v1/sandboxes/${segment(sandboxId)}/commands`;
    const ownKey = options.idempotencyKey === undefined;
    const idempotencyKey = options.idempotencyKey ?? (await newIdempotencyKey());
    for (let attempt = 0; ; attempt++) {
      const followed: Followed = {};
      try {
        const { response, events } = await this.#transport.openEvents<InlineEvent>("POST", path, {
          json: commandBody(command, options),
          options: { ...(options.signal ? { signal: options.signal } : {}), idempotencyKey },
        });
        // A replay holds no output: that comes from the log.
        const replayed = response.headers.get("idempotent-replayed") === "true";
        await readInline(events, callbacks, followed);
        if (replayed && followed.finished !== undefined) {
          await this.deliver(followed.finished.id, callbacks, options.signal);
        }
      } catch (error) {
        if (options.signal?.aborted) throw error;
        if (error instanceof CrowNestApiError) {
          const running = ownKey && error.code === "idempotency_request_in_progress" ? error.details?.["resourceId"] : undefined;
          if (typeof running === "string") {
            followed.commandId = running; // what an earlier attempt of ours started
          } else if (attempt === 0 && (error.status === 404 || error.status === 405)) {
            return undefined;
          } else {
            throw error;
          }
        } else {
          followed.failure = error;
        }
      }
      if (followed.finished !== undefined) return followed.finished;
      if (followed.commandId !== undefined) return this.#finish(followed.commandId, options, callbacks, followed.lastSeq);
      // Broken off before the command had a name: the same call once more.
      if (attempt === 2 || !isConnectionFailure(followed.failure)) throw followed.failure;
      await delay(250 * 2 ** attempt, options.signal);
    }
  }

  /** The routes that every version of the API has. */
  async #twoStep(
    sandboxId: string,
    command: string,
    options: RunCommandOptions,
    callbacks: OutputCallbacks,
  ): Promise<Command> {
    // A key that may not read the output must not get half a run out of this.
    const body = { ...commandBody(command, options), _crownestRequireCommandRead: true };
    if (options.collect !== undefined || options.collectOn !== undefined) {
      const finished = await post(this.#transport, sandboxId, "/run", body, options);
      this.#inlineMissing = true;
      try {
        for (const chunk of await readLogs(this.#transport, finished.id, options.signal ? { signal: options.signal } : {})) {
          await callbacks.output(chunk.stream, chunk.data);
        }
      } catch (error) {
        callbacks.fail(error);
      }
      return finished;
    }
    const started = await post(this.#transport, sandboxId, "/start", { ...body, timeoutMs: options.timeoutMs ?? 60_000 }, options);
    this.#inlineMissing = true;
    return this.#finish(started.id, options, callbacks);
  }

  /** Delivers the rest of the output, then waits for the final record. */
  async #finish(
    commandId: string,
    options: RunCommandOptions,
    callbacks: OutputCallbacks,
    afterSeq?: number,
  ): Promise<Command> {
    const finished = callbacks.ended ? undefined : await this.deliver(commandId, callbacks, options.signal, afterSeq);
    if (finished !== undefined) return finished;
    for (;;) {
      options.signal?.throwIfAborted();
      const command = await getCommand(this.#transport, commandId, options);
      if (ENDED.has(command.status)) return command;
      await delay(POLL_MS, options.signal);
    }
  }
}

/** Reads the one stream that the run itself answered with, noting how far it got. */
async function readInline(
  events: AsyncIterable<InlineEvent>,
  callbacks: OutputCallbacks,
  followed: Followed,
): Promise<void> {
  try {
    for await (const event of events) {
      if (event.type === "command") {
        followed.commandId = event.command.id;
      } else if (event.type === "log") {
        followed.lastSeq = event.seq;
        await callbacks.output(event.stream, event.data);
      } else if (event.type === "terminal") {
        followed.finished = event.command;
        return;
      } else if (event.type === "error") {
        throw streamError(event);
      }
    }
    followed.failure = new Error("the stream ended before its final event");
  } catch (error) {
    if (error instanceof CrowNestApiError) {
      if (followed.commandId === undefined) throw error;
      callbacks.fail(error);
    } else {
      followed.failure = error;
    }
  }
}

function streamError(event: { code: string; message: string }): CrowNestApiError {
  return new CrowNestApiError({ status: 0, code: event.code, message: event.message });
}
