import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { error, fake, json } from "./fake.js";

const FILE = { path: "/workspace/a", sizeBytes: 1, type: "file" };
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

test("small files go directly", async (t) => {
  const { client, requests, lines } = await fake(t, (request, response) => {
    if (request.method === "PUT") return json(response, { file: FILE });
    const encoding = new URL(request.url, "http://x").searchParams.get("encoding");
    return json(response, { content: encoding === "base64" ? "AP/+" : "text", encoding, path: "/workspace/a", sizeBytes: 3 });
  });
  assert.deepEqual(await client.files.write("sbx_1", "a", "täxt", { createParents: true }), FILE);
  assert.deepEqual(await client.files.writeBytes("sbx_1", "a", Uint8Array.of(0, 255, 254), { overwrite: false }), FILE);
  assert.equal(await client.files.read("sbx_1", "dir/a b"), "text");
  assert.deepEqual(await client.files.readBytes("sbx_1", "a"), Uint8Array.of(0, 255, 254));
  assert.deepEqual(requests[0]?.json(), { path: "a", content: "täxt", encoding: "utf8", createParents: true });
  assert.deepEqual(requests[1]?.json(), { path: "a", content: "AP/+", encoding: "base64", overwrite: false });
  assert.deepEqual(lines(), [
    "PUT /v1/sandboxes/sbx_1/files",
    "PUT /v1/sandboxes/sbx_1/files",
    "GET /v1/sandboxes/sbx_1/files/read?path=dir%2Fa+b&encoding=utf8",
    "GET /v1/sandboxes/sbx_1/files/read?path=a&encoding=base64",
  ]);
});

test("large files go through a signed URL, with their size and digest", async (t) => {
  const api = await fake(t, (request, response) => {
    if (request.url.endsWith("/upload-url")) {
      return json(response, {
        uploadId: "upl_1",
        method: "PUT",
        url: `${api.url}/signed?s=1`,
        headers: { "content-type": "application/octet-stream" },
        expiresAt: "",
        maxSizeBytes: 1,
      }, 201);
    }
    return json(response, { file: FILE }, 201);
  });
  const bytes = new Uint8Array(300 * 1024).map((_, i) => i * 7);
  const inputs: [() => Promise<unknown>, Uint8Array, number | undefined, string | undefined][] = [
    [() => api.client.files.writeBytes("sbx_1", "b", bytes), bytes, bytes.length, sha256(bytes)],
    [() => api.client.files.write("sbx_1", "b", "ü".repeat(200 * 1024)), Buffer.from("ü".repeat(200 * 1024)), 400 * 1024, sha256(Buffer.from("ü".repeat(200 * 1024)))],
    [() => api.client.files.upload("sbx_1", "b", new Blob([bytes])), bytes, bytes.length, undefined],
    [() => api.client.files.upload("sbx_1", "b", new Blob([bytes]).stream() as ReadableStream<Uint8Array>, { sha256: sha256(bytes) }), bytes, undefined, sha256(bytes)],
  ];
  for (const [call, expected, sizeBytes, digest] of inputs) {
    api.requests.length = 0;
    assert.deepEqual(await call(), FILE);
    const [stage, put] = api.requests;
    assert.deepEqual(stage?.json(), JSON.parse(JSON.stringify({ path: "b", sizeBytes, sha256: digest })));
    assert.equal(put?.headers["content-type"], "application/octet-stream");
    assert.equal(put?.headers.authorization, "Bearer cn_live_test");
    assert.equal(sha256(put!.body), sha256(expected));
  }
});

test("the key goes to no other host, not even localhost for 127.0.0.1", async (t) => {
  const store = await fake(t, (request, response) => {
    if (request.method === "PUT") return json(response, { file: FILE }, 201);
    return void response.end("stored bytes");
  });
  const port = new URL(store.url).port;
  for (const host of ["localhost", "127.0.0.1"]) {
    // Another port is another origin, too.
    const url = `http://${host}:${port}/object`;
    const { client } = await fake(t, (request, response) =>
      json(response, request.url.endsWith("/download-url") ? { url, method: "GET", headers: { "x-a": "1" } } : { url, method: "PUT", headers: {} }),
    );
    assert.deepEqual(await client.files.upload("sbx_1", "a", Uint8Array.of(1)), FILE);
    const text = await new Response(await client.files.downloadStream("sbx_1", "a")).text();
    assert.equal(text, "stored bytes");
  }
  assert.equal(store.requests.length, 4);
  for (const request of store.requests) assert.equal(request.headers.authorization, undefined);
  assert.equal(store.requests[1]?.headers["x-a"], "1");
});

test("localhost is another origin than 127.0.0.1", async (t) => {
  const api = await fake(t, (request, response) => {
    if (request.url.endsWith("/download-url")) {
      return json(response, { url: api.url.replace("127.0.0.1", "localhost"), method: "GET", headers: {} });
    }
    return void response.end("x");
  });
  await api.client.files.downloadStream("sbx_1", "a");
  assert.equal(api.requests[1]?.headers.authorization, undefined);
});

test("a file that is too large for the direct way takes the other one", async (t) => {
  const api = await fake(t, (request, response) => {
    const { pathname } = new URL(request.url, "http://x");
    if (pathname === "/v1/sandboxes/sbx_1/files/read" || pathname === "/v1/sandboxes/sbx_1/files") {
      return error(response, 413, "file_too_large", {}, { maxBytes: 1, stagedRoute: "…" });
    }
    if (pathname.endsWith("/download-url")) return json(response, { url: `${api.url}/get`, method: "GET", headers: {} });
    if (pathname.endsWith("/upload-url")) return json(response, { url: `${api.url}/put`, method: "PUT", headers: {} });
    if (pathname === "/put") return json(response, { file: FILE }, 201);
    return void response.end(Buffer.from("größer"));
  });
  assert.equal(await api.client.files.read("sbx_1", "a"), "größer");
  assert.equal(await api.client.files.read("sbx_1", "a", { encoding: "base64" }), Buffer.from("größer").toString("base64"));
  assert.deepEqual(Buffer.from(await api.client.files.readBytes("sbx_1", "a")).toString(), "größer");
  assert.deepEqual(await api.client.files.write("sbx_1", "a", "größer", { idempotencyKey: "k" }), FILE);
  const keys = api.requests.filter((request) => request.method !== "GET" && request.url.startsWith("/v1")).map((request) => request.headers["idempotency-key"]);
  assert.equal(new Set(keys).size, keys.length, "two different calls shared an idempotency key");
});

test("bytes that are no text are refused, not mangled", async (t) => {
  const api = await fake(t, (request, response) => {
    if (request.url.includes("/read")) return error(response, 413, "file_too_large");
    if (request.url.endsWith("/download-url")) return json(response, { url: `${api.url}/get`, method: "GET", headers: {} });
    return void response.end(Buffer.of(0xff));
  });
  await assert.rejects(api.client.files.read("sbx_1", "a"), { code: "invalid_file_encoding" });
});

test("the other file calls", async (t) => {
  const { client, requests, lines } = await fake(t, (request, response) => {
    if (request.method === "DELETE") return json(response, { deleted: true });
    return json(response, request.url.includes("stat") || request.method === "POST" ? { file: FILE } : { data: [FILE] });
  });
  assert.deepEqual(await client.files.list("sbx_1"), [FILE]);
  assert.deepEqual(await client.files.list("sbx_1", "src"), [FILE]);
  assert.deepEqual(await client.files.stat("sbx_1", "a"), FILE);
  assert.deepEqual(await client.files.mkdir("sbx_1", "d", { parents: true }), FILE);
  assert.deepEqual(await client.files.move("sbx_1", "a", "b", { overwrite: true }), FILE);
  assert.equal(await client.files.delete("sbx_1", "a&b"), undefined);
  assert.deepEqual(lines(), [
    "GET /v1/sandboxes/sbx_1/files?path=%2Fworkspace",
    "GET /v1/sandboxes/sbx_1/files?path=src",
    "GET /v1/sandboxes/sbx_1/files/stat?path=a",
    "POST /v1/sandboxes/sbx_1/files/mkdir",
    "POST /v1/sandboxes/sbx_1/files/move",
    "DELETE /v1/sandboxes/sbx_1/files?path=a%26b",
  ]);
  assert.deepEqual(requests[3]?.json(), { path: "d", parents: true });
  assert.deepEqual(requests[4]?.json(), { from: "a", to: "b", overwrite: true });
});
