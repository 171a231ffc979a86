// What differs between Node.js, Deno, Bun, browsers and edge workers, and only that.

interface Host {
  process?: { env?: Record<string, string | undefined> };
  Deno?: { env: { get(name: string): string | undefined } };
}

/** Reads an environment variable where there is such a thing; empty means absent. */
export function environmentVariable(name: string): string | undefined {
  const host = globalThis as Host;
  try {
    return host.process?.env?.[name] || host.Deno?.env.get(name) || undefined;
  } catch {
    return undefined; // the runtime was started without the right to read it
  }
}

/** Web Crypto, which Node.js 18 has without making it global. */
async function webCrypto(): Promise<Crypto> {
  if (globalThis.crypto !== undefined) return globalThis.crypto;
  // A variable keeps bundlers for browsers from looking for the module.
  const module: string = "node:crypto";
  return ((await import(module)) as { webcrypto: Crypto }).webcrypto;
}

/** A random UUID, version 4. */
export async function newIdempotencyKey(): Promise<string> {
  return (await webCrypto()).randomUUID();
}

/** The SHA-256 of bytes, in lower-case hex. */
export async function sha256Hex(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await (await webCrypto()).subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Arguments of one call are bounded, and a stack that is deep already bounds them more.
const BASE64_STEP = 8192;

export function encodeBase64(bytes: Uint8Array): string {
  let binary = "";
  for (let at = 0; at < bytes.length; at += BASE64_STEP) {
    binary += String.fromCharCode(...bytes.subarray(at, at + BASE64_STEP));
  }
  return btoa(binary);
}

export function decodeBase64(text: string): Uint8Array<ArrayBuffer> {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at++) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

/** Waits; an abort ends the wait with the signal's reason. */
export function delay(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason);
      return;
    }
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal!.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}
