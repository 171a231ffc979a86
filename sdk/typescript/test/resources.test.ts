import assert from "node:assert/strict";
import { test } from "node:test";

import type { ArchiveTransfer, CodeRunEvent } from "../src/index.js";
import { brokenEvents, commandRecord, events, fake, json, now, sandboxRecord } from "./fake.js";

const SBX = sandboxRecord.id;

test("a handle is the record plus the calls of the sandbox", async (t) => {
  const { client, requests, lines } = await fake(t, (request, response) => {
    if (request.url.includes("/commands")) return json(response, { command: commandRecord() });
    if (request.url.includes("/artifacts")) return json(response, { data: [], hasMore: false, artifact: { id: "art_1" } });
    if (request.url.includes("/files")) return json(response, { data: [] });
    if (request.url.includes("/code")) return json(response, { run: { executionCount: 1 } });
    return json(response, { sandbox: sandboxRecord });
  });
  const { run } = client.commands; // methods need no object
  await run(SBX, "x");
  const sandbox = await client.sandboxes.get(SBX);
  assert.deepEqual({ ...sandbox }, sandboxRecord);
  assert.deepEqual(JSON.parse(JSON.stringify(sandbox)), sandboxRecord);
  await sandbox.commands.run("x");
  await sandbox.commands.start("x");
  await sandbox.commands.cancel("cmd_1");
  await sandbox.artifacts.create({ path: "a", name: "b" });
  await sandbox.artifacts.list();
  await sandbox.files.list();
  await sandbox.code.run({ code: "1" });
  assert.equal((await sandbox.extend({ ttlMs: 5 })).files.list instanceof Function, true);
  const killed = await sandbox.kill();
  assert.deepEqual(Object.getOwnPropertyNames(killed), Object.keys(sandboxRecord));
  assert.deepEqual(lines(), [
    `POST /v1/sandboxes/${SBX}/commands/run`,
    `GET /v1/sandboxes/${SBX}`,
    `POST /v1/sandboxes/${SBX}/commands/run`,
    `POST /v1/sandboxes/${SBX}/commands/start`,
    "POST /v1/commands/cmd_1/cancel",
    `POST /v1/sandboxes/${SBX}/artifacts`,
    `GET /v1/sandboxes/${SBX}/artifacts`,
    `GET /v1/sandboxes/${SBX}/files?path=%2Fworkspace`,
    `POST /v1/sandboxes/${SBX}/code/runs`,
    `POST /v1/sandboxes/${SBX}/extend`,
    `DELETE /v1/sandboxes/${SBX}`,
  ]);
  assert.deepEqual(requests[8]?.json(), { code: "1", language: "python" });
  assert.deepEqual(requests[9]?.json(), { ttlMs: 5 });
});

test("artifacts", async (t) => {
  const { client, lines } = await fake(t, (request, response) => {
    if (request.url.endsWith("/download")) return void response.end(Buffer.of(1, 2, 3));
    return json(response, { artifact: { id: "art_1" }, url: "u" });
  });
  assert.deepEqual(await client.artifacts.download("art_1"), Uint8Array.of(1, 2, 3));
  const stream = await client.artifacts.downloadStream("art_1");
  assert.deepEqual(new Uint8Array(await new Response(stream).arrayBuffer()), Uint8Array.of(1, 2, 3));
  assert.equal((await client.artifacts.downloadUrl("art_1")).url, "u");
  assert.equal((await client.artifacts.get("art_1")).id, "art_1");
  assert.equal((await client.artifacts.delete("art_1")).id, "art_1");
  assert.deepEqual(lines(), [
    "GET /v1/artifacts/art_1/download",
    "GET /v1/artifacts/art_1/download",
    "POST /v1/artifacts/art_1/download-url",
    "GET /v1/artifacts/art_1",
    "DELETE /v1/artifacts/art_1",
  ]);
});

test("a code stream ends with complete and is never taken up again", async (t) => {
  const complete = { type: "complete", data: { executionCount: 2, outputs: [] } };
  const { client, requests } = await fake(t, (_, response, count) => {
    const list = [{ type: "stdout", data: "hi\n" }, { type: "future" }, { type: "error", data: { message: "no" } }];
    if (count === 1) return events(response, [...list, complete]);
    return brokenEvents(response, list);
  });
  const collect = async () => {
    const got: CodeRunEvent[] = [];
    for await (const event of client.code.runStream(SBX, { code: "1/0", contextId: "cctx_1" })) got.push(event);
    return got.map((event) => event.type);
  };
  assert.deepEqual(await collect(), ["stdout", "error", "complete"]);
  await assert.rejects(collect());
  assert.equal(requests.length, 2);
  assert.deepEqual(requests[0]?.json(), { code: "1/0", language: "python", contextId: "cctx_1" });
});

test("previews, projects, keys and usage", async (t) => {
  const { client, requests, lines } = await fake(t, (_, response) =>
    json(response, { data: [], hasMore: false, preview: { id: "prv_1" }, previewToken: "pvt_1", project: {}, apiKey: {} }),
  );
  assert.equal((await client.previews.create(SBX, { port: 8000, authMode: "token" })).previewToken, "pvt_1");
  await client.previews.list(SBX);
  await client.previews.get("prv_1");
  await client.previews.revoke("prv_1");
  await client.projects.create({ name: "p" });
  await client.apiKeys.get("key_1");
  await client.apiKeys.revoke("key_1");
  await client.usage({ include: "events" });
  assert.deepEqual(requests[0]?.json(), { port: 8000, authMode: "token" });
  assert.deepEqual(requests[4]?.json(), { name: "p" });
  assert.deepEqual(lines().slice(1), [
    `GET /v1/sandboxes/${SBX}/previews`,
    "GET /v1/previews/prv_1",
    "DELETE /v1/previews/prv_1",
    "POST /v1/projects",
    "GET /v1/api-keys/key_1",
    "DELETE /v1/api-keys/key_1",
    "GET /v1/usage?include=events",
  ]);
});

test("workspace runs", async (t) => {
  const run = { id: "wsr_1", status: "succeeded" };
  const api = await fake(t, (request, response) => {
    if (request.url.includes("stream=true")) {
      const seqs = request.url.includes("afterSeq=2") ? [] : [{ type: "status", seq: 1, status: "running", createdAt: now }, { type: "stdout", seq: 2, data: "x", createdAt: now }];
      if (seqs.length > 0) return brokenEvents(response, seqs);
      return events(response, [{ type: "terminal", seq: 3, workspaceRun: run, createdAt: now }]);
    }
    if (request.url === "/put") return void response.writeHead(204).end();
    return json(response, { workspaceRun: run, archive: {}, transfer: {}, evidence: {}, data: [run], hasMore: false });
  });
  const { workspaceRuns } = api.client;
  const digest = { sha256: "ab", sizeBytes: 3 };
  await workspaceRuns.create({ command: "make", template: "node", metadata: { a: "b" }, idempotencyKey: "k" });
  await workspaceRuns.uploadArchive("wsr_1", { bytes: Uint8Array.of(1, 2, 3), ...digest });
  await workspaceRuns.createArchiveTransfer("wsr_1", digest);
  const transfer = { method: "PUT", uploadUrl: `${api.url}/put`, headers: { "content-type": "application/gzip" } } as unknown as ArchiveTransfer;
  await workspaceRuns.uploadArchiveToTransfer(transfer, { body: Uint8Array.of(9) });
  await workspaceRuns.finalizeArchive("wsr_1", { uploadId: "upl_1", ...digest });
  await workspaceRuns.start("wsr_1");
  await workspaceRuns.list({ status: "succeeded", metadata: { a: "b" } });
  await workspaceRuns.listEvents("wsr_1", { afterSeq: 1, limit: 2 });
  await workspaceRuns.evidence("wsr_1");
  await workspaceRuns.cancel("wsr_1");
  const types: string[] = [];
  for await (const event of workspaceRuns.streamEvents("wsr_1")) types.push(event.type);
  assert.deepEqual(types, ["status", "stdout", "terminal"]);

  assert.deepEqual(api.requests[0]?.json(), { command: "make", template: "node", metadata: { a: "b" } });
  const upload = api.requests[1]!;
  assert.deepEqual([...upload.body], [1, 2, 3]);
  assert.equal(upload.headers["content-type"], "application/gzip");
  assert.equal(upload.headers["x-crownest-archive-sha256"], "ab");
  assert.equal(upload.headers["x-crownest-archive-size"], "3");
  assert.equal(api.requests[3]?.headers["content-type"], "application/gzip");
  assert.deepEqual(api.lines().slice(2), [
    "POST /v1/workspace-runs/wsr_1/archive-transfer",
    "PUT /put",
    "POST /v1/workspace-runs/wsr_1/archive/finalize",
    "POST /v1/workspace-runs/wsr_1/start",
    "GET /v1/workspace-runs?status=succeeded&metadata.a=b",
    "GET /v1/workspace-runs/wsr_1/events?afterSeq=1&limit=2",
    "GET /v1/workspace-runs/wsr_1/evidence",
    "POST /v1/workspace-runs/wsr_1/cancel",
    "GET /v1/workspace-runs/wsr_1/events?stream=true",
    "GET /v1/workspace-runs/wsr_1/events?afterSeq=2&stream=true",
  ]);
});
