// Compiles src into an empty dist, so that a file whose source is gone cannot
// end up in the package.
import { execFileSync } from "node:child_process";
import { rmSync } from "node:fs";

rmSync("dist", { recursive: true, force: true });
execFileSync("tsc", ["-p", "tsconfig.json"], { stdio: "inherit", shell: process.platform === "win32" });
