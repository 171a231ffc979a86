// The quick start with all that it leaves out: the program and its input go into
// the sandbox first, and the report is read when the sandbox is long gone.
import { readFile, writeFile } from "node:fs/promises";
import { createCrowNestClient, CrowNestApiError } from "@crownest/sdk";

const client = createCrowNestClient();
const sandbox = await client.sandboxes.create({ template: "python", metadata: { example: "story" } });
console.log(`created ${sandbox.id}`);
try {
  await sandbox.files.write("main.py", await readFile("main.py", "utf8"));
  // Large enough for a signed URL, which the client takes by itself.
  const rows = Array.from({ length: 40_000 }, (_, i) => `${"abc"[i % 3]},${(Math.sin(i) * 50 + (i % 3) * 40).toFixed(3)}\n`);
  const input = await sandbox.files.write("readings.csv", `sensor,value\n${rows.join("")}`);
  console.log(`uploaded ${input.sizeBytes} bytes`);

  const began = Date.now();
  const result = await sandbox.commands.run("python3 main.py", {
    collect: [{ path: "/workspace/report.html", name: "report.html" }],
    onStdout: (chunk) => {
      for (const line of chunk.trimEnd().split("\n")) console.log(`  ${String(Date.now() - began).padStart(5)} ms  ${line}`);
    },
    onStderr: (chunk) => process.stderr.write(chunk),
  });
  console.log(`exit code ${result.exitCode}, collect ${result.collectStatus}`);
} finally {
  const { status, destroyedReason } = await sandbox.kill();
  console.log(`${status}: ${destroyedReason}`);
}

const refused = await sandbox.commands.run("true").catch((error) => error);
if (refused instanceof CrowNestApiError) console.log(`another command now: ${refused.status} ${refused.code}`);

const [artifact] = await sandbox.artifacts.list();
if (artifact === undefined) throw new Error("the report was not collected");
const report = await client.artifacts.download(artifact.id);
await writeFile("report.html", report);
console.log(`report.html: ${report.length} bytes, from ${artifact.id}`);
