import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { TestContext } from "node:test";

import { createCrowNestClient, type CrowNestClient } from "../src/index.js";

export interface SeenRequest {
  readonly method: string;
  /** Path and query, as they were on the wire. */
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
  json(): any;
}

export type Handler = (request: SeenRequest, response: ServerResponse, count: number) => void | Promise<void>;

export interface Fake {
  readonly url: string;
  readonly requests: SeenRequest[];
  readonly client: CrowNestClient;
  /** `METHOD url` of everything that arrived. */
  lines(): string[];
}

/** A loopback HTTP server for one test, with a client for it. */
export async function fake(t: TestContext, handler: Handler, basePath = ""): Promise<Fake> {
  const requests: SeenRequest[] = [];
  const server = createServer(async (incoming, response) => {
    const pieces: Buffer[] = [];
    for await (const piece of incoming) pieces.push(piece as Buffer);
    const body = Buffer.concat(pieces);
    const seen: SeenRequest = {
      method: incoming.method!,
      url: incoming.url!,
      headers: incoming.headers,
      body,
      json: () => JSON.parse(body.toString()),
    };
    requests.push(seen);
    await handler(seen, response, requests.length);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}${basePath}`;
  return {
    url,
    requests,
    client: createCrowNestClient({ apiKey: "cn_live_test", baseUrl: url }),
    lines: () => requests.map((request) => `${request.method} ${request.url}`),
  };
}

export function json(response: ServerResponse, body: unknown, status = 200, headers: Record<string, string> = {}): void {
  response.writeHead(status, { "content-type": "application/json; charset=utf-8", ...headers });
  response.end(JSON.stringify(body));
}

export function error(response: ServerResponse, status: number, code: string, headers: Record<string, string> = {}, details?: object): void {
  json(response, { error: { code, message: `it said ${code}`, ...(details ? { details } : {}) } }, status, headers);
}

/** An event as the wire carries it. */
export type Sent = { readonly type: string; readonly seq?: number; readonly [field: string]: unknown };

export function eventText(event: Sent): string {
  return `${event.seq === undefined ? "" : `id: ${event.seq}\n`}data: ${JSON.stringify(event)}\n\n`;
}

/** Answers with an event stream that ends after these events. */
export function events(response: ServerResponse, list: Sent[], headers: Record<string, string> = {}): void {
  openEvents(response, headers);
  response.end(list.map(eventText).join(""));
}

export function openEvents(response: ServerResponse, headers: Record<string, string> = {}): void {
  response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8", ...headers });
  response.flushHeaders();
}

/** Sends these events, then cuts the connection in the middle of the next one. */
export function brokenEvents(response: ServerResponse, list: Sent[]): void {
  openEvents(response);
  response.write(`${list.map(eventText).join("")}id: 99\ndata: {"type":"lo`, () => response.destroy());
}

export const sandboxRecord = {
  id: "sbx_01jd000000000000000000000a",
  orgId: "org_1",
  projectId: "prj_1",
  status: "ready",
  templateId: "tpl_1",
  templateSlug: "python",
  templateVersion: "1",
  templateVersionId: "tplv_1",
  ttlMs: 3600000,
  expiresAt: "2030-01-01T00:00:00.000Z",
  metadata: {},
  createdAt: "2030-01-01T00:00:00.000Z",
};

export const now = "2030-01-01T00:00:00.000Z";

export function commandRecord(fields: object = {}) {
  return {
    id: "cmd_01jd000000000000000000000a",
    sandboxId: sandboxRecord.id,
    command: "echo hi",
    cwd: "/workspace",
    env: {},
    status: "running",
    ...fields,
  };
}

export const started = { type: "command", command: commandRecord(), createdAt: now };
export const terminal = {
  type: "terminal",
  command: commandRecord({ status: "exited", exitCode: 0, stdout: "one\ntwo\n", stderr: "" }),
  createdAt: now,
};
export function log(seq: number, data: string, stream: "stdout" | "stderr" = "stdout") {
  return { type: "log", seq, stream, data, createdAt: now };
}

/**
 * Makes the client's own waits a hundred times shorter for one test and returns
 * the list of them. The timers of others stay as they are.
 */
export function hastenedWaits(t: TestContext): number[] {
  const waits: number[] = [];
  const real = globalThis.setTimeout;
  const hastened = (callback: (...args: unknown[]) => void, ms?: number, ...args: unknown[]) => {
    const ours = new Error().stack?.includes("environment.js") === true;
    if (ours) waits.push(ms!);
    return real(callback, ours ? ms! / 100 : ms, ...args);
  };
  globalThis.setTimeout = hastened as typeof setTimeout;
  t.after(() => {
    globalThis.setTimeout = real;
  });
  return waits;
}
