import { segment, type MutationOptions, type RequestOptions, type Transport } from "./transport.js";
import type { CodeArtifactPolicy, CodeContext, CodeLanguage, CodeRunEvent, RunCodeResult } from "./types.js";

export interface CreateCodeContextInput extends MutationOptions {
  /** Default python. */
  readonly language?: CodeLanguage;
  readonly cwd?: string;
  /** For the start of the interpreter; default 30,000. */
  readonly timeoutMs?: number;
}

export interface RunCodeInput extends MutationOptions {
  readonly code: string;
  /** Default python. */
  readonly language?: CodeLanguage;
  /** By default the sandbox's default context of the language, which keeps its state. */
  readonly contextId?: string;
  readonly cwd?: string;
  /** Default 60,000, at most 600,000. */
  readonly timeoutMs?: number;
  /** promote: keep images and large outputs as artifacts. Default inline_only. */
  readonly artifactPolicy?: CodeArtifactPolicy;
}

const EVENTS: ReadonlySet<string> = new Set(["stdout", "stderr", "output", "error", "complete"]);

export type CodeClient = ReturnType<typeof codeClient>;

export function codeClient(transport: Transport) {
  const route = (sandboxId: string, rest: string) => `/v1/sandboxes/${segment(sandboxId)}/code${rest}`;
  const context = async (answer: Promise<{ context: CodeContext }>) => (await answer).context;
  return {
    createContext(sandboxId: string, input: CreateCodeContextInput = {}): Promise<CodeContext> {
      const { language = "python", cwd, timeoutMs } = input;
      return context(
        transport.mutate("POST", route(sandboxId, "/contexts"), { json: { language, cwd, timeoutMs }, options: input }),
      );
    },

    getContext(sandboxId: string, contextId: string, options?: RequestOptions): Promise<CodeContext> {
      return context(transport.get(route(sandboxId, `/contexts/${segment(contextId)}`), { options }));
    },

    listContexts(sandboxId: string, options?: RequestOptions): Promise<CodeContext[]> {
      return transport.list(route(sandboxId, "/contexts"), { options });
    },

    deleteContext(sandboxId: string, contextId: string, options?: MutationOptions): Promise<CodeContext> {
      return context(transport.mutate("DELETE", route(sandboxId, `/contexts/${segment(contextId)}`), { options }));
    },

    /** Runs code and waits for its result. An exception of the code is `error` in the result. */
    async run(sandboxId: string, input: RunCodeInput): Promise<RunCodeResult> {
      const spec = { json: runBody(input), options: input };
      return (await transport.mutate<{ run: RunCodeResult }>("POST", route(sandboxId, "/runs"), spec)).run;
    },

    /**
     * Runs code and yields what comes of it; the last event is `complete`. A
     * stream that breaks off is not taken up again: there is no log to read on.
     */
    async *runStream(sandboxId: string, input: RunCodeInput): AsyncGenerator<CodeRunEvent, void, undefined> {
      const spec = { json: runBody(input), options: input };
      for await (const event of transport.events<CodeRunEvent>("POST", route(sandboxId, "/runs/stream"), spec)) {
        if (!EVENTS.has(event.type)) continue;
        yield event;
        if (event.type === "complete") return;
      }
      throw new Error("the stream ended before its final event");
    },
  };
}

function runBody(input: RunCodeInput) {
  const { code, language = "python", contextId, cwd, timeoutMs, artifactPolicy } = input;
  return { code, language, contextId, cwd, timeoutMs, artifactPolicy };
}
