// Packs the package, installs it into a clean directory as a user would, checks
// what is in it, type-checks the quick start against it without the DOM types,
// and runs the quick start verbatim: against CROWNEST_API_URL if that is set,
// else against a server in this process that plays one run.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const packageRoot = resolve(fileURLToPath(import.meta.url), "../..");
const example = resolve(packageRoot, "../../examples/quickstart/main.ts");

function run(command, args, options = {}) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (data) => (stdout += data));
  child.stderr.on("data", (data) => (stderr += data));
  return once(child, "close").then(([code]) => {
    if (code !== 0) throw new Error(`${command} ${args.join(" ")} ended with ${code}\n${stdout}${stderr}`);
    return stdout;
  });
}

/** Answers the three requests of the quick start and notes them. */
async function playServer() {
  const seen = [];
  const sandbox = { id: "sbx_0000000000000000000000000a", status: "ready", templateSlug: "python" };
  const command = { id: "cmd_0000000000000000000000000a", status: "exited", exitCode: 0, stdout: "hello\n", stderr: "" };
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const data of request) body += data;
    seen.push([request.method, request.url, body === "" ? undefined : JSON.parse(body)]);
    if (request.url.endsWith("/commands")) {
      response.writeHead(200, { "content-type": "text/event-stream" });
      const events = [
        { type: "command", command: { ...command, status: "running" } },
        { type: "log", seq: 1, stream: "stdout", data: "hello\n" },
        { type: "terminal", command },
      ];
      response.end(events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join(""));
    } else {
      response.writeHead(request.method === "POST" ? 201 : 200, { "content-type": "application/json" });
      response.end(JSON.stringify({ sandbox }));
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { server, seen, url: `http://127.0.0.1:${server.address().port}` };
}

const scratch = await mkdtemp(join(tmpdir(), "crownest-sdk-"));
try {
  await run("npm", ["pack", "--pack-destination", scratch, "--loglevel=error"], { cwd: packageRoot });
  const tarball = (await readdir(scratch)).find((name) => name.endsWith(".tgz"));
  const project = join(scratch, "project");
  await cp(example, join(project, "main.ts"), { recursive: true });
  await writeFile(join(project, "package.json"), '{"type":"module","private":true}\n');
  // Offline: whatever is not in the tarball would be missing here.
  await run("npm", ["install", "--offline", "--no-audit", "--no-fund", "--loglevel=error", join(scratch, tarball)], { cwd: project });

  const installed = join(project, "node_modules/@crownest/sdk");
  const entries = (await readdir(installed)).sort();
  assert.deepEqual(entries, ["LICENSE", "README.md", "dist", "package.json"], "what the package holds");
  const manifest = JSON.parse(await readFile(join(installed, "package.json"), "utf8"));
  assert.equal(manifest.dependencies, undefined, "no run-time dependencies");
  assert.deepEqual(await readdir(join(project, "node_modules")).then((names) => names.filter((name) => !name.startsWith("."))), ["@crownest"]);

  const tsc = join(packageRoot, "node_modules/.bin/tsc");
  const typeRoots = join(packageRoot, "node_modules/@types");
  await run(tsc, ["--noEmit", "--strict", "--target", "es2022", "--lib", "es2022", "--module", "nodenext", "--types", "node", "--typeRoots", typeRoots, "main.ts"], { cwd: project });

  // The same text is valid JavaScript, which every supported Node.js runs.
  await cp(join(project, "main.ts"), join(project, "main.mjs"));
  if (process.env.CROWNEST_API_URL) {
    process.stdout.write(await run(process.execPath, ["main.mjs"], { cwd: project }));
  } else {
    const { server, seen, url } = await playServer();
    const env = { ...process.env, CROWNEST_API_URL: url, CROWNEST_API_KEY: "cn_live_play" };
    const output = await run(process.execPath, ["main.mjs"], { cwd: project, env });
    server.close();
    assert.equal(output, "hello\n0\n");
    assert.deepEqual(seen, [
      ["POST", "/v1/sandboxes", { template: "python" }],
      [
        "POST",
        "/v1/sandboxes/sbx_0000000000000000000000000a/commands",
        { command: "python3 main.py", collect: [{ path: "/workspace/report.html", name: "report.html" }] },
      ],
      ["DELETE", "/v1/sandboxes/sbx_0000000000000000000000000a", undefined],
    ]);
  }
  console.log(`${tarball}: packed, installed, type-checked and run`);
} finally {
  await rm(scratch, { recursive: true, force: true });
}
