// One JSON line per observation on stdout, written through at once: Rust paces itself by them.
import { writeSync } from "node:fs";

export function observe(type, fields = {}) {
  const line = Buffer.from(`${JSON.stringify({ ...fields, type })}\n`);
  for (let written = 0; written < line.length; ) {
    try {
      written += writeSync(1, line, written);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error; // a full pipe: the reader is behind
    }
  }
}

export function observeError(error) {
  observe("error", { name: error?.name, status: error?.status, message: error?.message ?? String(error) });
}

// A killed test drops nobody, but its pipes close. Without this its clients would retry for ever.
if (process.env.EXIT_WITH_STDIN) {
  process.stdin.on("close", () => process.exit(3)).resume();
  process.stdin.unref();
}

// SDKs tell nobody about answers that end a subscription, so their fetch is watched from outside.
// Call it before a client is loaded.
export function observeResponses() {
  const { fetch } = globalThis;
  globalThis.fetch = async (input, init) => {
    const response = await fetch(input, init);
    const url = new URL(input instanceof Request ? input.url : input);
    const query = Object.fromEntries(url.searchParams);
    observe("response", { status: response.status, path: url.pathname, live: query.live === "true", query });
    return response;
  };
}

export function required(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
}
