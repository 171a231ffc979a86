import assert from "node:assert/strict";
import { test } from "node:test";

import { ApiKeyScopes, createCrowNestClient, CrowNestApiError } from "../src/index.js";
import { error, fake, hastenedWaits, json, sandboxRecord } from "./fake.js";

const VARIABLES = ["CROWNEST_BEARER_TOKEN", "CROWNEST_API_KEY", "CROWNEST_API_URL"] as const;

/** Runs with these variables and no others of ours, and records the one request that follows. */
async function firstRequest(env: Partial<Record<(typeof VARIABLES)[number], string>>, options: object) {
  const before = VARIABLES.map((name) => process.env[name]);
  for (const name of VARIABLES) delete process.env[name];
  Object.assign(process.env, env);
  try {
    let seen: { url: string; authorization: string | null } | undefined;
    const client = createCrowNestClient({
      ...options,
      fetch: async (url, init) => {
        seen = { url: String(url), authorization: new Headers(init?.headers).get("authorization") };
        return Response.json({ data: [], hasMore: false });
      },
    });
    await client.projects.list();
    return seen;
  } finally {
    VARIABLES.forEach((name, i) => {
      if (before[i] === undefined) delete process.env[name];
      else process.env[name] = before[i];
    });
  }
}

test("the credential is the first there is", async () => {
  const env = { CROWNEST_BEARER_TOKEN: "from-bearer", CROWNEST_API_KEY: "from-key" };
  const cases: [object, object, string][] = [
    [env, { credential: "given", apiKey: "key" }, "given"],
    [env, { apiKey: "key" }, "key"],
    [env, { credential: "", apiKey: "" }, "from-bearer"],
    [{ ...env, CROWNEST_BEARER_TOKEN: "" }, {}, "from-key"],
  ];
  for (const [variables, options, expected] of cases) {
    assert.equal((await firstRequest(variables, options))?.authorization, `Bearer ${expected}`);
  }
  await assert.rejects(firstRequest({}, {}), /CROWNEST_API_KEY/);
});

test("the base URL is given, in the environment, or the hosted one", async () => {
  const key = { apiKey: "k" };
  const cases: [object, object, string][] = [
    [{}, key, "https://api.crownest.dev/v1/projects"],
    [{ CROWNEST_API_URL: "http://one:1/" }, key, "http://one:1/v1/projects"],
    [{ CROWNEST_API_URL: "http://one:1" }, { ...key, baseUrl: "https://two/prefix//" }, "https://two/prefix/v1/projects"],
  ];
  for (const [variables, options, expected] of cases) {
    assert.equal((await firstRequest(variables, options))?.url, expected);
  }
  assert.throws(() => createCrowNestClient({ ...key, baseUrl: "file:///etc" }), /http or https/);
  assert.throws(() => createCrowNestClient({ apiKey: "two\nlines" }), TypeError);
});

test("an error envelope becomes an error with all its parts", async (t) => {
  const { client } = await fake(t, (_, response) =>
    error(response, 410, "sandbox_destroyed", { "x-request-id": "req_7" }, { why: "ttl" }),
  );
  await assert.rejects(client.sandboxes.get("sbx_1"), (thrown) => {
    assert.ok(thrown instanceof CrowNestApiError && thrown instanceof Error);
    assert.deepEqual(
      { ...thrown, message: thrown.message },
      {
        name: "CrowNestApiError",
        status: 410,
        code: "sandbox_destroyed",
        message: "it said sandbox_destroyed",
        details: { why: "ttl" },
        requestId: "req_7",
      },
    );
    return true;
  });
});

test("an error answer without an envelope has a code of its own", async (t) => {
  for (const body of ["<html>Bad Gateway</html>", "", "null", "[]", '{"error":"text"}', '{"error":{"code":1}}']) {
    const { client } = await fake(t, (_, response) => void response.writeHead(502).end(body));
    await assert.rejects(client.apiKeys.list(), { code: "invalid_error_response", status: 502 }, body);
  }
});

test("a redirect is not followed: the key stays where it belongs", async (t) => {
  const elsewhere = await fake(t, (_, response) => json(response, { data: [], hasMore: false }));
  const { client } = await fake(
    t,
    (_, response) => void response.writeHead(302, { location: `${elsewhere.url}/v1/projects` }).end(),
  );
  await assert.rejects(client.projects.list(), { code: "invalid_error_response", status: 302 });
  assert.deepEqual(elsewhere.requests, []);
});

test("a connection that fails is tried again twice, with the same key", async (t) => {
  const waits = hastenedWaits(t);
  const { client, requests } = await fake(t, (_, response, count) => {
    if (count === 1) response.destroy();
    else if (count === 2) response.writeHead(201, { "content-length": "500" }).write('{"sand', () => response.destroy());
    else json(response, { sandbox: sandboxRecord }, 201);
  });
  const sandbox = await client.sandboxes.create({ template: "python", metadata: { run: "1" } });
  assert.equal(sandbox.id, sandboxRecord.id);
  assert.deepEqual(waits, [250, 500]);
  const keys = requests.map((request) => request.headers["idempotency-key"]);
  assert.match(String(keys[0]), /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.deepEqual(keys, [keys[0], keys[0], keys[0]]);
  assert.deepEqual(requests[2]?.json(), { template: "python", metadata: { run: "1" } });
});

test("the third failure is the caller's", async (t) => {
  hastenedWaits(t);
  const { client, requests } = await fake(t, (_, response) => void response.destroy());
  await assert.rejects(client.projects.list(), TypeError);
  assert.equal(requests.length, 3);
});

test("only 429 and 503 with Retry-After are tried again", async (t) => {
  const cases: [number, string | undefined, number][] = [
    [429, "2", 3],
    [503, "1", 3],
    [503, new Date(Date.now() + 900).toUTCString(), 3],
    [429, undefined, 1],
    [503, undefined, 1],
    [503, "soon", 1],
    [503, "86400", 1],
    [409, "1", 1],
    [500, "1", 1],
  ];
  hastenedWaits(t);
  for (const [status, retryAfter, attempts] of cases) {
    const { client, requests } = await fake(t, (_, response) =>
      error(response, status, "some_code", retryAfter === undefined ? {} : { "retry-after": retryAfter }),
    );
    await assert.rejects(client.usage(), { code: "some_code", status });
    assert.equal(requests.length, attempts, `${status} with Retry-After ${retryAfter}`);
  }
});

test("Retry-After is the wait", async (t) => {
  const waits = hastenedWaits(t);
  const { client } = await fake(t, (_, response, count) => {
    if (count === 1) error(response, 503, "capacity_exhausted", { "retry-after": "3" });
    else json(response, { data: [], hasMore: false });
  });
  assert.deepEqual(await client.projects.list(), []);
  assert.deepEqual(waits, [3000]);
});

test("an abort ends a call and its wait for another try", async (t) => {
  const { client, requests } = await fake(t, (_, response) =>
    error(response, 503, "capacity_exhausted", { "retry-after": "30" }),
  );
  const reason = new Error("enough");
  const abort = new AbortController();
  const call = client.projects.list({ signal: abort.signal });
  while (requests.length === 0) await new Promise((resolve) => setImmediate(resolve));
  abort.abort(reason);
  await assert.rejects(call, reason);
  assert.equal(requests.length, 1);
  await assert.rejects(client.sandboxes.create({ signal: AbortSignal.abort(reason) }), reason);
  assert.equal(requests.length, 1);
});

test("lists follow the cursor to the end", async (t) => {
  const { client, lines } = await fake(t, (request, response) => {
    const cursor = new URL(request.url, "http://x").searchParams.get("cursor");
    if (cursor === null) json(response, { data: [1, 2], hasMore: true, nextCursor: "a b/c" });
    else json(response, { data: [3], hasMore: false });
  });
  assert.deepEqual(await client.sandboxes.list({ metadata: { "team/x": "a&b" }, include: "historical" }), [1, 2, 3]);
  assert.deepEqual(lines(), [
    "GET /v1/sandboxes?include=historical&metadata.team%2Fx=a%26b",
    "GET /v1/sandboxes?include=historical&metadata.team%2Fx=a%26b&cursor=a+b%2Fc",
  ]);
});

test("a long answer that begins with spaces is an answer", async (t) => {
  const { client } = await fake(t, (_, response) => {
    response.writeHead(200, { "content-type": "application/json" });
    response.write(" ");
    response.write("  ");
    response.end(JSON.stringify({ command: { id: "cmd_1", status: "exited", exitCode: 3 } }));
  });
  assert.equal((await client.commands.run("sbx_1", "sleep 25; exit 3")).exitCode, 3);
});

test("ids cannot change the route", async (t) => {
  const { client, lines } = await fake(t, (_, response) => json(response, { apiKey: {} }));
  for (const id of ["", ".", ".."]) await assert.rejects(client.apiKeys.get(id), TypeError);
  await client.apiKeys.get("../projects?x=1#y");
  assert.deepEqual(lines(), ["GET /v1/api-keys/..%2Fprojects%3Fx%3D1%23y"]);
});

test("a path prefix stays in front of every route", async (t) => {
  const { client, lines } = await fake(t, (_, response) => json(response, { sandbox: sandboxRecord }), "/crownest");
  await client.sandboxes.kill("sbx_1", { idempotencyKey: "mine" });
  assert.deepEqual(lines(), ["DELETE /crownest/v1/sandboxes/sbx_1"]);
});

test("ApiKeyScopes holds every scope once", () => {
  assert.equal(ApiKeyScopes.length, 28);
  assert.equal(new Set(ApiKeyScopes).size, 28);
  for (const scope of ApiKeyScopes) assert.match(scope, /^[a-z_]+:[a-z]+$/);
});
