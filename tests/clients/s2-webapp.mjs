// What a Trigger.dev webapp does with an S2 that it is pointed at, by S2's own client where that has it:
// it makes a basin, mints a token for a runner, appends and reads by itself. Then what a runner does with
// that token: S2's three ways of writing, by the name that the token puts its prefix before.
import { createRequire } from "node:module";
import { observe, observeError, required } from "./observe.mjs";

const [endpoint, service, basin, prefix, run] = ["ENDPOINT", "SERVICE", "BASIN", "PREFIX", "RUN_ID"].map(required);
const sdk = createRequire(createRequire(import.meta.url).resolve("sdk-4.8.3"));
const { AppendInput, AppendRecord, S2 } = sdk("@s2-dev/streamstore");
const client = (accessToken) => new S2({ accessToken, endpoints: { account: endpoint, basin: endpoint } });
const refusal = async (work) => {
  try {
    await work();
    return "none";
  } catch (error) {
    return `${error.status} ${error.code}`;
  }
};

try {
  const webapp = client(service);
  const config = {
    createStreamOnAppend: true,
    createStreamOnRead: true,
    defaultStreamConfig: { retentionPolicy: { ageSecs: 2592000 }, deleteOnEmpty: { minAgeSecs: 3600 } },
  };
  const made = await webapp.basins.create({ basin, config });
  observe("basin", { name: made.name });
  await webapp.basins.reconfigure({ basin, defaultStreamConfig: { retentionPolicy: { ageSecs: 86400 } } });

  const { accessToken } = await webapp.accessTokens.issue({
    id: crypto.randomUUID(),
    scope: { basins: { exact: basin }, ops: ["append", "create-stream", "trim"], streams: { prefix } },
    expiresAt: new Date(Date.now() + 24 * 60 * 60 * 1000),
    autoPrefixStreams: true,
  });
  const runner = client(accessToken);
  const own = runner.basin(basin).stream(`/runs/${run}/ai`);
  await own.append(AppendInput.create([AppendRecord.string({ body: "control", headers: [["trigger-control", "turn-complete"]] })]));
  const session = await own.appendSession();
  for (let n = 0; n < 10; n++) {
    await (await session.submit(AppendInput.create([AppendRecord.string({ body: `${n}` })]))).ack();
  }
  await session.close();
  await own.append(AppendInput.create([AppendRecord.trim(0)]));
  observe("written");

  // As the webapp itself appends and reads: plain requests, by full names.
  const name = `${prefix}/runs/${run}/ai`;
  const url = `${endpoint}/streams/${encodeURIComponent(name)}/records`;
  const headers = { authorization: `Bearer ${service}`, "s2-basin": basin, "s2-format": "raw" };
  const appended = await fetch(url, {
    method: "POST",
    headers: { ...headers, "content-type": "application/json" },
    body: JSON.stringify({ records: [{ body: "server" }] }),
  });
  observe("appended", { status: appended.status, ack: await appended.json() });
  const read = await fetch(`${url}?seq_num=0&count=100`, { headers: { ...headers, accept: "application/json" } });
  const { records } = await read.json();
  observe("read", { bodies: records.filter((record) => record.headers?.[0]?.[0] !== "").map((record) => record.body) });
  const events = await fetch(`${url}?seq_num=0&clamp=true&wait=0`, { headers: { ...headers, accept: "text/event-stream" } });
  observe("events", { form: events.headers.get("content-type"), ends: (await events.text()).endsWith("data: [DONE]\n\n") });
  const tail = await webapp.basin(basin).stream(name).checkTail();
  observe("tail", { next: tail.tail.seqNum });

  const elsewhere = (stream) => runner.basin(basin).stream(stream).append(AppendInput.create([AppendRecord.string({ body: "x" })]));
  observe("refused", {
    sibling: await refusal(() => elsewhere(`0/runs/${run}/ai`)),
    full: await refusal(() => elsewhere(name)),
    read: await refusal(() => own.checkTail()),
    mint: await refusal(() => runner.accessTokens.issue({ id: "x", scope: { streams: { prefix: "" } } })),
    basin: await refusal(() => runner.basins.create({ basin: "basin-of-runner" })),
    drop: await refusal(() => webapp.basins.delete({ basin })),
    wide: await refusal(() => webapp.accessTokens.issue({ id: "x", scope: { basins: { prefix: "" }, ops: ["append"] } })),
    unknown: await refusal(() => client(`${service}x`).accessTokens.issue({ id: "x", scope: {} })),
  });
  process.exit(0);
} catch (error) {
  observeError(error);
  process.exit(1);
}
