// Compiles src into an empty dist, or with `test` src and test into an empty
// build, so that a file whose source is gone is neither shipped nor run.
import { execFileSync } from "node:child_process";
import { rmSync } from "node:fs";

const [directory, project] = process.argv[2] === "test" ? ["build", "tsconfig.test.json"] : ["dist", "tsconfig.json"];
rmSync(directory, { recursive: true, force: true });
execFileSync("tsc", ["-p", project], { stdio: "inherit", shell: process.platform === "win32" });
