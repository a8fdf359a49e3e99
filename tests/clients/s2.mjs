// Writes a stream by S2's own client, of the version that the SDK loads, in its three ways: a control
// record (unary JSON), a session (HTTP/2), a trim (unary protobuf). Then reads it back by READ_TOKEN.
import { createRequire } from "node:module";
import { observe, observeError, required } from "./observe.mjs";

const [endpoint, token, basin, stream] = ["ENDPOINT", "TOKEN", "BASIN", "STREAM"].map(required);
const sdk = createRequire(createRequire(import.meta.url).resolve("sdk-4.8.3"));
const { AppendInput, AppendRecord, S2 } = sdk("@s2-dev/streamstore");
const open = (accessToken) =>
  new S2({ accessToken, endpoints: { account: endpoint, basin: endpoint } }).basin(basin).stream(stream);

try {
  const own = open(token);
  const headers = [
    ["trigger-control", "turn-complete"],
    ["public-access-token", "x"],
  ];
  const control = await own.append(AppendInput.create([AppendRecord.string({ body: "", headers })]));
  observe("control", { start: control.start.seqNum, end: control.end.seqNum });

  const session = await own.appendSession();
  const tickets = [];
  for (let n = 0; n < 50; n++) {
    tickets.push(await session.submit(AppendInput.create([AppendRecord.string({ body: `{"n":${n}}` })])));
  }
  for (const [n, ticket] of tickets.entries()) {
    const ack = await ticket.ack();
    if (ack.start.seqNum !== n + 1) throw new Error(`${n} is acknowledged as ${ack.start.seqNum}`);
  }
  await session.close();
  observe("session");

  const trim = await own.append(AppendInput.create([AppendRecord.trim(3)]));
  observe("trim", { start: trim.start.seqNum });

  const batch = await open(required("READ_TOKEN")).read({ start: { from: { seqNum: 45 } }, stop: { limits: { count: 10 } } });
  observe("read", { numbers: batch.records.map((record) => record.seqNum) });
  process.exit(0);
} catch (error) {
  observeError(error);
  process.exit(1);
}
