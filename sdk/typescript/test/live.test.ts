// Against a real server with real sandboxes: set CROWNEST_API_URL and
// CROWNEST_API_KEY. Without them there is nothing to test.
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { after, before, test } from "node:test";

import { createCrowNestClient, CrowNestApiError, type SandboxHandle } from "../src/index.js";

const options = { skip: process.env["CROWNEST_API_URL"] ? false : "no CROWNEST_API_URL", timeout: 120_000 };
const client = options.skip ? undefined! : createCrowNestClient();
const template = process.env["CROWNEST_TEST_TEMPLATE"] ?? "python";
let sandbox: SandboxHandle;

before(async () => {
  if (!options.skip) sandbox = await client.sandboxes.create({ template, metadata: { test: "sdk" } });
});
after(async () => {
  await sandbox?.kill();
});

test("output arrives while the command runs, in order and whole", options, async () => {
  const arrivals: number[] = [];
  let stdout = "";
  let stderr = "";
  const result = await sandbox.commands.run("for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.3; done; exit 7", {
    onStdout: (chunk) => {
      arrivals.push(performance.now());
      stdout += chunk;
    },
    onStderr: (chunk) => void (stderr += chunk),
  });
  assert.equal(result.status, "exited");
  assert.equal(result.exitCode, 7);
  assert.equal(stdout, "out 1\nout 2\nout 3\n");
  assert.equal(stderr, "err 1\nerr 2\nerr 3\n");
  assert.equal(result.stdout, stdout);
  assert.ok(arrivals.at(-1)! - arrivals[0]! > 400, "all output came at once");
});

test("megabytes of text with characters of every width come through unharmed", options, async () => {
  const code = "import sys\nfor i in range(60000): sys.stdout.write('%d aé€🪺\\u2028\\x85\\n' % i)";
  await sandbox.files.write("wide.py", code);
  let text = "";
  const result = await sandbox.commands.run("python3 -X utf8 wide.py", { onStdout: (chunk) => void (text += chunk) });
  assert.equal(result.exitCode, 0);
  const expected = Array.from({ length: 60000 }, (_, i) => `${i} aé€🪺\u2028\x85\n`).join("");
  assert.ok(text === expected, `${text.length} characters instead of ${expected.length}`);
  assert.equal(result.stdoutTruncated, true);
  const chunks = await client.commands.logs(result.id);
  assert.ok(chunks.map((chunk) => chunk.data).join("") === expected, "the log differs");
  assert.deepEqual(chunks.map((chunk) => chunk.seq), chunks.map((_, i) => i + 1));
});

test("collect with callbacks", options, async () => {
  let live = "";
  const result = await sandbox.commands.run("echo working; mkdir -p out; printf report > out/r.txt", {
    collect: [{ path: "out/r.txt", name: "report.txt" }, { path: "missing" }],
    onStdout: (chunk) => void (live += chunk),
  });
  assert.equal(live, "working\n");
  assert.equal(result.collectStatus, "partial");
  assert.deepEqual(result.collectErrors?.map((error) => error.code), ["file_not_found"]);
  const artifact = await client.artifacts.get(result.artifactIds![0]!);
  assert.equal(artifact.name, "report.txt");
  assert.equal(new TextDecoder().decode(await client.artifacts.download(artifact.id)), "report");
  const { url } = await client.artifacts.downloadUrl(artifact.id);
  assert.equal(await (await fetch(url)).text(), "report");
});

test("start, stream and cancel", options, async () => {
  const command = await sandbox.commands.start("trap '' TERM; echo up; while :; do sleep 0.1; done");
  const types: string[] = [];
  for await (const event of client.commands.streamLogs(command.id)) {
    types.push(event.type);
    if (event.type === "log") void client.commands.cancel(command.id, { mode: "force" });
    if (event.type === "terminal") {
      assert.equal(event.command.status, "canceled");
      assert.equal(event.command.terminationSignal, "SIGKILL");
    }
  }
  assert.deepEqual(types.filter((type) => type !== "heartbeat"), ["log", "terminal"]);
});

test("start with callbacks delivers in the background", options, async () => {
  const done = new Promise<string>((resolve) => {
    void sandbox.commands.start("sleep 0.2; echo later", { onStdout: resolve });
  });
  assert.equal(await done, "later\n");
});

test("a timeout is a result", options, async () => {
  const result = await sandbox.commands.run("echo before; sleep 60", { timeoutMs: 500, onStdout: () => undefined });
  assert.equal(result.status, "timed_out");
  assert.equal(result.exitCode, undefined);
  assert.equal(result.stdout, "before\n");
});

test("one key is one run", options, async () => {
  const idempotencyKey = crypto.randomUUID();
  const outputs: string[] = [];
  const ids: string[] = [];
  for (let i = 0; i < 3; i++) {
    let output = "";
    const run = await sandbox.commands.run("date +%s.%N", { idempotencyKey, onStdout: (chunk) => void (output += chunk) });
    outputs.push(output);
    ids.push(run.id);
  }
  assert.equal(new Set(ids).size, 1);
  assert.equal(new Set(outputs).size, 1);
  assert.match(outputs[0]!, /^\d+\.\d+\n$/);
  await assert.rejects(sandbox.commands.run("true", { idempotencyKey, onStdout: () => undefined }), {
    code: "idempotency_key_reused",
  });
});

test("files of every size, both ways", options, async () => {
  for (const size of [0, 1, 256 * 1024, 256 * 1024 + 1, 5 * 1024 * 1024]) {
    const bytes = new Uint8Array(randomBytes(size));
    const stat = await sandbox.files.writeBytes(`sizes/${size}`, bytes, { createParents: true });
    assert.equal(stat.sizeBytes, size);
    assert.ok(Buffer.from(await sandbox.files.readBytes(`sizes/${size}`)).equals(bytes), `${size} bytes came back different`);
  }
  assert.deepEqual(
    (await sandbox.files.list("sizes")).map((entry) => entry.sizeBytes).sort((a, b) => a - b),
    [0, 1, 262144, 262145, 5242880],
  );
  const text = "größer\n".repeat(60_000);
  await sandbox.files.write("text", text);
  assert.ok((await sandbox.files.read("text")) === text);
});

test("a stream of unknown length is checked by its digest", options, async () => {
  const piece = new Uint8Array(randomBytes(1 << 20));
  const hash = createHash("sha256");
  for (let i = 0; i < 32; i++) hash.update(piece);
  const sha256 = hash.digest("hex");
  const pieces = () =>
    new ReadableStream<Uint8Array>({
      start(controller) {
        for (let i = 0; i < 32; i++) controller.enqueue(piece);
        controller.close();
      },
    });
  assert.equal((await sandbox.files.upload("big", pieces(), { sha256 })).sizeBytes, 32 << 20);
  const back = createHash("sha256");
  const reader = (await sandbox.files.downloadStream("big")).getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) back.update(read.value);
  assert.equal(back.digest("hex"), sha256);
  await assert.rejects(sandbox.files.upload("wrong", pieces(), { sha256: "0".repeat(64) }), {
    code: "upload_checksum_mismatch",
  });
  await assert.rejects(sandbox.files.stat("wrong"), { code: "file_not_found" });
});

test("file errors have their codes", options, async () => {
  await sandbox.files.mkdir("d/e", { parents: true });
  const cases: [() => Promise<unknown>, string][] = [
    [() => sandbox.files.read("nothing"), "file_not_found"],
    [() => sandbox.files.read("../etc/passwd"), "path_outside_workspace"],
    [() => sandbox.files.read("d"), "path_is_directory"],
    [() => sandbox.files.list("wide.py/x"), "path_not_directory"],
    [() => sandbox.files.mkdir("d"), "file_already_exists"],
    [() => sandbox.files.delete("d"), "directory_not_empty"],
    [() => sandbox.files.write("no/parent", "x"), "parent_directory_not_found"],
    [() => sandbox.files.write("text", "x", { overwrite: false }), "file_already_exists"],
  ];
  for (const [call, code] of cases) {
    const error = await call().then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    assert.ok(error instanceof CrowNestApiError, `${code}: ${error}`);
    assert.equal(error.code, code);
    assert.match(error.requestId ?? "", /^req_/);
  }
  assert.equal((await sandbox.files.move("d/e", "f")).type, "directory");
  await sandbox.files.delete("f");
});

test("sandboxes are found by metadata, extended and ended", options, async () => {
  const tag = crypto.randomUUID();
  const made = await client.sandboxes.create({ template, metadata: { tag, "a.b/c": "x y&z" }, ttlMs: 60_000 });
  assert.deepEqual((await client.sandboxes.list({ metadata: { tag, "a.b/c": "x y&z" } })).map((found) => found.id), [made.id]);
  assert.deepEqual(await client.sandboxes.list({ metadata: { tag, "a.b/c": "x" } }), []);
  const extended = await made.extend({ ttlMs: 120_000 });
  assert.equal(extended.ttlMs, 120_000);
  const running = made.commands.run("sleep 60", { onStdout: () => undefined });
  while ((await client.sandboxes.get(made.id)).status !== "running") await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal((await made.kill()).destroyedReason, "user_killed");
  const killed = await running;
  assert.equal(killed.status, "killed");
  assert.equal(killed.killedReason, "sandbox_destroyed");
  await assert.rejects(made.files.list(), { code: "sandbox_destroyed", status: 410 });
  assert.deepEqual((await client.sandboxes.list({ metadata: { tag } })).length, 0);
  assert.deepEqual((await client.sandboxes.list({ metadata: { tag }, include: "historical" })).length, 1);
});

test("errors of the API arrive whole", options, async () => {
  const stranger = createCrowNestClient({ apiKey: `cn_live_${"x".repeat(40)}` });
  await assert.rejects(stranger.projects.list(), { status: 401, code: "invalid_api_key" });
  await assert.rejects(client.sandboxes.get("sbx_00000000000000000000000000"), { status: 404, code: "not_found" });
  await assert.rejects(client.sandboxes.create({ ttlMs: 1e12 }), (error: CrowNestApiError) => {
    assert.equal(error.code, "sandbox_ttl_exceeded");
    assert.equal(typeof error.details?.["maxTtlMs"], "number");
    return true;
  });
  assert.equal((await client.projects.list())[0]?.name, "default");
  assert.ok((await client.usage()).computeUnitSeconds.used >= 0);
});

test("an abort ends the wait, not the command", options, async () => {
  const abort = new AbortController();
  const run = sandbox.commands.run("echo started; sleep 0.5; touch went-on", {
    signal: abort.signal,
    onStdout: () => abort.abort(),
  });
  await assert.rejects(run, { name: "AbortError" });
  for (;;) {
    const found = await sandbox.files.stat("went-on").catch((error: CrowNestApiError) => error.code);
    if (typeof found === "object") return;
    assert.equal(found, "file_not_found");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
});
