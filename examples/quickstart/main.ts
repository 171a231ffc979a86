import { createCrowNestClient } from "@crownest/sdk";
const client = createCrowNestClient();
const sandbox = await client.sandboxes.create({ template: "python" });
const result = await sandbox.commands.run("python3 main.py", {
  collect: [{ path: "/workspace/report.html", name: "report.html" }],
  onStdout: (chunk) => process.stdout.write(chunk),
});
console.log(result.exitCode);
await sandbox.kill();
