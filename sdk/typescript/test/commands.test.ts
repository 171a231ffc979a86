import assert from "node:assert/strict";
import { test } from "node:test";

import type { RunCommandOptions } from "../src/index.js";
import {
  brokenEvents,
  commandRecord,
  error,
  events,
  eventText,
  fake,
  hastenedWaits,
  json,
  log,
  now,
  openEvents,
  sandboxRecord,
  started,
  terminal,
} from "./fake.js";

const SBX = sandboxRecord.id;
const CMD = commandRecord().id;
const INLINE = `POST /v1/sandboxes/${SBX}/commands`;
const STREAM = `GET /v1/commands/${CMD}/stream`;
const finished = terminal.command;

/** Callbacks that write down what they get. */
function recorder() {
  const got = { stdout: "", stderr: "", errors: [] as unknown[] };
  const options: RunCommandOptions = {
    onStdout: (chunk) => void (got.stdout += chunk),
    onStderr: (chunk) => void (got.stderr += chunk),
    onStreamError: (failure) => void got.errors.push(failure),
  };
  return { got, options };
}

test("a run without callbacks is one request", async (t) => {
  const { client, requests, lines } = await fake(t, (_, response) => json(response, { command: finished }));
  const command = await client.commands.run(SBX, "echo hi", {
    cwd: "src",
    env: { A: "1" },
    timeoutMs: 5,
    collect: [{ path: "out" }],
    collectOn: "always",
    idempotencyKey: "k1",
  });
  assert.deepEqual(command, finished);
  assert.deepEqual(lines(), [`POST /v1/sandboxes/${SBX}/commands/run`]);
  assert.deepEqual(requests[0]?.json(), {
    command: "echo hi",
    cwd: "src",
    env: { A: "1" },
    timeoutMs: 5,
    collect: [{ path: "out" }],
    collectOn: "always",
  });
  assert.equal(requests[0]?.headers["idempotency-key"], "k1");
});

test("a run with callbacks streams, collects and ends in one request", async (t) => {
  const collected = { ...finished, collectStatus: "succeeded", artifactIds: ["art_1"] };
  const { client, requests, lines } = await fake(t, (_, response) =>
    events(response, [
      started,
      log(1, "one\n"),
      { type: "heartbeat", createdAt: now },
      log(2, "oops", "stderr"),
      { type: "of_a_newer_server" },
      log(3, "two\n"),
      { ...terminal, command: collected },
    ]),
  );
  const { got, options } = recorder();
  const command = await client.commands.run(SBX, "echo hi", { ...options, collect: [{ path: "/workspace/a" }] });
  assert.deepEqual(command, collected);
  assert.deepEqual(got, { stdout: "one\ntwo\n", stderr: "oops", errors: [] });
  assert.deepEqual(lines(), [INLINE]);
  assert.equal(requests[0]?.headers.accept, "text/event-stream");
  assert.deepEqual(requests[0]?.json(), { command: "echo hi", collect: [{ path: "/workspace/a" }] });
});

test("output arrives while the command runs", async (t) => {
  let finish: (() => void) | undefined;
  const { client } = await fake(t, (_, response) => {
    openEvents(response);
    response.write(eventText(started) + eventText(log(1, "first")));
    finish = () => response.end(eventText(terminal));
  });
  const run = await client.commands.run(SBX, "x", { onStdout: () => finish?.() });
  assert.equal(run.exitCode, 0); // without the callback the stream would never have ended
});

test("a stream that breaks off is read on from where it was", async (t) => {
  const waits = hastenedWaits(t);
  let streams = 0;
  const { client, lines } = await fake(t, (request, response) => {
    if (request.method === "POST") return brokenEvents(response, [started, log(1, "a"), log(2, "b")]);
    streams++;
    if (streams === 1) return void response.destroy();
    if (streams === 2) return void response.writeHead(502).end("<html>restarting</html>");
    if (streams === 3) return brokenEvents(response, [log(3, "c")]);
    return events(response, [log(4, "d"), terminal]);
  });
  const { got, options } = recorder();
  assert.deepEqual(await client.commands.run(SBX, "x", options), finished);
  assert.deepEqual(got, { stdout: "abcd", stderr: "", errors: [] });
  assert.deepEqual(lines(), [
    INLINE,
    `${STREAM}?afterSeq=2`,
    `${STREAM}?afterSeq=2`,
    `${STREAM}?afterSeq=2`,
    `${STREAM}?afterSeq=3`,
  ]);
  assert.deepEqual(waits, [250, 500, 250]);
});

test("a run whose stream cannot be had any more is waited for", async (t) => {
  hastenedWaits(t);
  let polls = 0;
  const { client } = await fake(t, (request, response) => {
    if (request.method === "POST") return brokenEvents(response, [started, log(1, "a")]);
    if (request.url.includes("/stream")) return error(response, 409, "stream_gap");
    return json(response, { command: ++polls < 3 ? commandRecord() : finished });
  });
  const { got, options } = recorder();
  assert.deepEqual(await client.commands.run(SBX, "x", options), finished);
  assert.equal(got.stdout, "a");
  assert.deepEqual(got.errors.map((failure) => (failure as { code: string }).code), ["stream_gap"]);
  assert.equal(polls, 3);
});

test("an error event goes to onStreamError, the result still comes", async (t) => {
  const { client, lines } = await fake(t, (request, response) => {
    if (request.method === "GET") return json(response, { command: finished });
    return events(response, [started, log(1, "a"), { type: "error", code: "stream_gap", message: "too slow", createdAt: now }]);
  });
  const { got, options } = recorder();
  // The stream is over, so the rest of the output is not read again from the gap.
  assert.deepEqual(await client.commands.run(SBX, "x", options), finished);
  assert.equal(got.stdout, "a");
  assert.equal((got.errors[0] as { code: string }).code, "stream_gap");
  assert.deepEqual(lines(), [INLINE, `GET /v1/commands/${CMD}`]);
});

test("a callback that throws ends the callbacks, not the run", async (t) => {
  for (const broken of [
    () => {
      throw new Error("mine");
    },
    async () => Promise.reject(new Error("mine")),
  ]) {
    const { client } = await fake(t, (_, response) =>
      events(response, [started, log(1, "a"), log(2, "b"), log(3, "c", "stderr"), terminal]),
    );
    let calls = 0;
    const errors: unknown[] = [];
    const command = await client.commands.run(SBX, "x", {
      onStdout: () => (calls++, broken()),
      onStderr: () => void calls++,
      onStreamError: (failure) => {
        errors.push(failure);
        throw new Error("this one neither");
      },
    });
    assert.deepEqual(command, finished);
    assert.equal(calls, 1);
    assert.deepEqual(errors.map(String), ["Error: mine"]);
  }
});

test("a slow callback holds up the next piece, never reorders it", async (t) => {
  const { client } = await fake(t, (_, response) =>
    events(response, [started, log(1, "a"), log(2, "b"), log(3, "c", "stderr"), terminal]),
  );
  let text = "";
  const slow = async (chunk: string) => {
    await new Promise((resolve) => setTimeout(resolve, 5));
    text += chunk;
  };
  await client.commands.run(SBX, "x", { onStdout: slow, onStderr: slow });
  assert.equal(text, "abc");
});

test("what the API refuses is thrown", async (t) => {
  const { client, requests } = await fake(t, (_, response) => error(response, 410, "sandbox_destroyed"));
  await assert.rejects(client.commands.run(SBX, "x", recorder().options), { code: "sandbox_destroyed" });
  assert.equal(requests.length, 1);
});

for (const status of [404, 405]) {
  test(`an API without the inline route (${status}) gets start, stream and poll`, async (t) => {
    const { client, requests, lines } = await fake(t, (request, response) => {
      const line = `${request.method} ${request.url}`;
      if (line === INLINE) return error(response, status, status === 404 ? "not_found" : "method_not_allowed");
      if (line === `${INLINE}/start`) return json(response, { command: commandRecord() }, 202);
      if (line === STREAM) return events(response, [log(1, "live"), terminal]);
      return json(response, { command: finished });
    });
    const { got, options } = recorder();
    assert.deepEqual(await client.commands.run(SBX, "x", options), finished);
    assert.deepEqual(got, { stdout: "live", stderr: "", errors: [] });
    assert.deepEqual(lines(), [INLINE, `${INLINE}/start`, STREAM]);
    assert.deepEqual(requests[1]?.json(), { command: "x", timeoutMs: 60000, _crownestRequireCommandRead: true });
    // Once known, not asked for again.
    await client.commands.run(SBX, "x", { ...options, timeoutMs: 7 });
    assert.deepEqual(lines().slice(3), [`${INLINE}/start`, STREAM]);
    assert.equal(requests[3]?.json().timeoutMs, 7);
  });
}

test("an API without the inline route collects through run, then replays the log", async (t) => {
  const { client, requests, lines } = await fake(t, (request, response) => {
    if (request.url.endsWith("/commands")) return error(response, 404, "not_found");
    if (request.url.endsWith("/run")) return json(response, { command: finished });
    const more = !request.url.includes("afterSeq=2");
    return json(response, {
      data: more ? [log(1, "a"), log(2, "b", "stderr")] : [log(3, "c")],
      hasMore: more,
      nextSeq: more ? 2 : 3,
    });
  });
  const { got, options } = recorder();
  assert.deepEqual(await client.commands.run(SBX, "x", { ...options, collect: [{ path: "a" }] }), finished);
  assert.deepEqual(got, { stdout: "ac", stderr: "b", errors: [] });
  assert.deepEqual(requests[1]?.json(), { command: "x", collect: [{ path: "a" }], _crownestRequireCommandRead: true });
  assert.deepEqual(lines().slice(1), [
    `${INLINE}/run`,
    `GET /v1/commands/${CMD}/logs?limit=500`,
    `GET /v1/commands/${CMD}/logs?afterSeq=2&limit=500`,
  ]);
});

test("an unknown sandbox is not_found, whichever route says so", async (t) => {
  const { client } = await fake(t, (_, response) => error(response, 404, "not_found"));
  await assert.rejects(client.commands.run(SBX, "x", recorder().options), { code: "not_found" });
});

test("a run that breaks before it has a name is the same call once more", async (t) => {
  hastenedWaits(t);
  const { client, requests, lines } = await fake(t, (_, response, count) => {
    if (count === 1) return brokenEvents(response, []);
    if (count === 2) {
      return error(response, 409, "idempotency_request_in_progress", { "retry-after": "1" }, { resourceId: CMD });
    }
    return events(response, [log(1, "all of it"), terminal]);
  });
  const { got, options } = recorder();
  assert.deepEqual(await client.commands.run(SBX, "x", options), finished);
  assert.equal(got.stdout, "all of it");
  assert.deepEqual(lines(), [INLINE, INLINE, STREAM]);
  assert.equal(requests[0]?.headers["idempotency-key"], requests[1]?.headers["idempotency-key"]);
});

test("a replayed run takes its output from the log", async (t) => {
  const { client, lines } = await fake(t, (request, response) => {
    if (request.method === "POST") return events(response, [started, terminal], { "idempotent-replayed": "true" });
    return events(response, [log(1, "once more"), terminal]);
  });
  const { got, options } = recorder();
  assert.deepEqual(await client.commands.run(SBX, "x", { ...options, idempotencyKey: "k" }), finished);
  assert.equal(got.stdout, "once more");
  assert.deepEqual(lines(), [INLINE, STREAM]);
});

test("a run can be given up", async (t) => {
  const abort = new AbortController();
  let closed = false;
  const { client } = await fake(t, (_, response) => {
    response.on("close", () => (closed = true));
    openEvents(response);
    response.write(eventText(started) + eventText(log(1, "a")));
  });
  const reason = new Error("enough");
  const run = client.commands.run(SBX, "x", { onStdout: () => abort.abort(reason), signal: abort.signal });
  await assert.rejects(run, (thrown) => thrown === reason || (thrown as Error).name === "AbortError");
  while (!closed) await new Promise((resolve) => setTimeout(resolve, 1));
});

test("start answers at once and serves the callbacks in the background", async (t) => {
  let release: (() => void) | undefined;
  const { client, requests } = await fake(t, (request, response) => {
    if (request.method === "POST") return json(response, { command: commandRecord({ status: "queued" }) }, 202);
    openEvents(response);
    release = () => response.end(eventText(log(1, "later")) + eventText(terminal));
  });
  let deliver: (chunk: string) => void;
  const delivered = new Promise<string>((resolve) => (deliver = resolve));
  const command = await client.commands.start(SBX, "x", { onStdout: (chunk) => deliver(chunk) });
  assert.equal(command.status, "queued");
  assert.deepEqual(requests[0]?.json(), { command: "x", _crownestRequireCommandRead: true });
  while (release === undefined) await new Promise((resolve) => setTimeout(resolve, 1));
  release();
  assert.equal(await delivered, "later");
});

test("streamLogs yields what it knows and ends after the terminal event", async (t) => {
  const { client, lines } = await fake(t, (_, response) =>
    events(response, [log(6, "a"), { type: "future" }, terminal, log(7, "never")]),
  );
  const types: string[] = [];
  for await (const event of client.commands.streamLogs(CMD, { afterSeq: 5 })) types.push(event.type);
  assert.deepEqual(types, ["log", "terminal"]);
  assert.deepEqual(lines(), [`${STREAM}?afterSeq=5`]);
});

test("streamLogs gives up after six attempts without progress", async (t) => {
  const waits = hastenedWaits(t);
  const { client, requests } = await fake(t, (_, response, count) => {
    if (count === 2) return events(response, [log(1, "a")]); // progress, then closed without a final event
    return void response.destroy();
  });
  const iterate = async () => {
    for await (const _ of client.commands.streamLogs(CMD));
  };
  await assert.rejects(iterate());
  assert.deepEqual(waits, [250, 250, 500, 1000, 2000, 4000]);
  assert.equal(requests.length, 7);
});

test("streamLogs does not reconnect when told so, nor when the API refuses", async (t) => {
  const { client, requests } = await fake(t, (request, response) => {
    if (request.url.includes("gap")) return error(response, 409, "stream_gap", {}, { oldestSeq: 9 });
    return brokenEvents(response, [log(1, "a")]);
  });
  const once = async () => {
    for await (const _ of client.commands.streamLogs(CMD, { reconnect: false }));
  };
  await assert.rejects(once());
  const refused = async () => {
    for await (const _ of client.commands.streamLogs("cmd_gap", { afterSeq: 1 }));
  };
  await assert.rejects(refused(), { code: "stream_gap", details: { oldestSeq: 9 } });
  assert.equal(requests.length, 2);
});

test("leaving a stream early closes the connection", async (t) => {
  let closed: () => void;
  const gone = new Promise<void>((resolve) => (closed = resolve));
  const { client } = await fake(t, (_, response) => {
    response.on("close", () => closed());
    openEvents(response);
    response.write(eventText(log(1, "a")));
  });
  for await (const _ of client.commands.streamLogs(CMD)) break;
  await gone;
});

test("logs reads pages up to the limit", async (t) => {
  const { client, lines } = await fake(t, (request, response) => {
    const query = new URL(request.url, "http://x").searchParams;
    const from = Number(query.get("afterSeq") ?? 0) + 1;
    const data = Array.from({ length: Math.min(Number(query.get("limit")), 400) }, (_, i) => log(from + i, "x"));
    json(response, { data, hasMore: true, nextSeq: from + data.length - 1 });
  });
  assert.equal((await client.commands.logs(CMD, { limit: 950 })).length, 950);
  assert.deepEqual(
    lines().map((line) => line.split("?")[1]),
    ["limit=500", "afterSeq=400&limit=500", "afterSeq=800&limit=150"],
  );
});

test("cancel sends the mode", async (t) => {
  const { client, requests } = await fake(t, (_, response) => json(response, { command: finished }));
  await client.commands.cancel(CMD);
  await client.commands.cancel(CMD, { mode: "force" });
  assert.deepEqual(requests.map((request) => request.json()), [{}, { mode: "force" }]);
});
