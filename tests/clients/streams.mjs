// Writes and reads streams of RUN_ID at BASE_URL with ACCESS_TOKEN, by the SDK that the first argument
// names, as its code does inside of a task. Takes orders as JSON lines and prints `done` for each, and
// `chunk` and `end` for what it reads; `error` when one fails.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { observe, observeError, required } from "./observe.mjs";

// Before anything is waited for, or orders would be lost.
process.stdin.ref();
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const alias = process.argv[2];
if (!alias) throw new Error("which SDK? (an alias of package.json)");
const [baseURL, accessToken, runId] = ["BASE_URL", "ACCESS_TOKEN", "RUN_ID"].map(required);

const { configure, streams } = await import(alias);
configure({ baseURL, accessToken });

// What a worker sets up before it runs a task.
const core = createRequire(createRequire(import.meta.url).resolve(alias));
const { StandardRealtimeStreamsManager } = core("@trigger.dev/core/v3/workers");
const { apiClientManager, realtimeStreams, taskContext } = core("@trigger.dev/core/v3");
process.env.TRIGGER_REALTIME_STREAMS_V2 = "1";
realtimeStreams.setGlobalManager(
  new StandardRealtimeStreamsManager(apiClientManager.clientOrThrow(), baseURL, false),
);
const run = { id: runId, tags: [], isTest: false, createdAt: new Date(), startedAt: new Date() };
taskContext.setGlobalTaskContext({
  ctx: { run, attempt: { number: 1 }, task: { id: "hello" }, environment: {}, project: {}, queue: {} },
  worker: { id: "w", version: "1", contentHash: "h" },
});

let open; // the writer that is open, and what ends it

async function* values(order) {
  for (const value of order.values ?? Array.from({ length: order.count }, (_, n) => ({ n }))) yield value;
}

const orders = {
  async pipe(order) {
    const source = ReadableStream.from(values(order));
    await streams.pipe(order.key, source).waitUntilComplete();
  },
  async append(order) {
    await streams.append(order.key, order.value);
  },
  async open(order) {
    let end;
    const ended = new Promise((resolve) => (end = resolve));
    let started;
    const starting = new Promise((resolve) => (started = resolve));
    const writer = streams.writer(order.key, {
      execute: async ({ write }) => {
        started(write);
        await ended;
      },
    });
    open = { write: await starting, end, writer };
  },
  async write(order) {
    for (const value of order.values) open.write(value);
  },
  async close() {
    open.end();
    await open.writer.waitUntilComplete();
  },
  async read(order) {
    const { key, ...options } = order;
    delete options.order;
    for await (const chunk of await streams.read(runId, key, options)) observe("chunk", { chunk });
    observe("end");
  },
};

for await (const line of lines) {
  const order = JSON.parse(line);
  const done = orders[order.order](order);
  const told = done.then(
    () => observe("done", { order: order.order }),
    (error) => observeError(error),
  );
  if (order.order !== "read") await told;
}
process.exit(0);
