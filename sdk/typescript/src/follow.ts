import { CrowNestApiError, INVALID_ERROR_RESPONSE } from "./errors.js";
import { delay } from "./environment.js";

/** How long to wait before each further attempt; a stream that moved on starts afresh. */
const RECONNECT_DELAYS_MS = [250, 500, 1000, 2000, 4000] as const;

/** Options of streams that can be taken up again where they broke off. */
export interface FollowOptions {
  /** Only what comes after this sequence number; by default all that is retained. */
  readonly afterSeq?: number;
  /** false: one connection, however it ends. Default true. */
  readonly reconnect?: boolean;
  readonly signal?: AbortSignal;
}

interface Followable {
  readonly type: string;
  readonly seq?: number;
}

/**
 * Reads a numbered event stream to its final event, over as many connections as
 * it takes. Gives up after six attempts in a row that brought nothing new. What
 * the API answers is thrown at once: trying again would not change its mind.
 */
export async function* follow<E extends Followable>(
  open: (afterSeq: number | undefined) => AsyncIterable<E>,
  isKnown: (type: string) => boolean,
  options: FollowOptions = {},
): AsyncGenerator<E, void, undefined> {
  let afterSeq = options.afterSeq;
  for (let attempt = 0; ; attempt++) {
    let failure: unknown = new Error("the stream ended before its final event");
    try {
      for await (const event of open(afterSeq)) {
        if (typeof event.seq === "number" && event.seq > (afterSeq ?? 0)) {
          afterSeq = event.seq;
          attempt = 0;
        }
        if (!isKnown(event.type)) continue;
        yield event;
        if (event.type === "terminal" || event.type === "error") return;
      }
    } catch (error) {
      if (options.signal?.aborted || isAnswer(error)) throw error;
      failure = error;
    }
    const wait = RECONNECT_DELAYS_MS[attempt];
    if (options.reconnect === false || wait === undefined) throw failure;
    await delay(wait, options.signal);
  }
}

/**
 * True when the API itself refused. A gateway that says 502 without an envelope,
 * as it does while the server behind it restarts, is no such answer.
 */
function isAnswer(error: unknown): boolean {
  return error instanceof CrowNestApiError && !(error.code === INVALID_ERROR_RESPONSE && error.status >= 500);
}
