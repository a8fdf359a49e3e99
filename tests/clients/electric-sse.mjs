// Follows FEED (a path and query) at BASE_URL with ACCESS_TOKEN by server-sent events, as a tab does
// with the Electric client that the first argument names. Prints `messages` per batch, and `warning`
// where the client complains, as when it gives events up.
import { observe, observeError, observeResponses, required } from "./observe.mjs";

const alias = process.argv[2];
const options = {
  "electric-1.0.14": { experimentalLiveSse: true },
  "electric-1.5.28": { liveSse: true, warnOnHttp: false },
}[alias];
if (!options) throw new Error("which client? (an alias of package.json)");

// What the library that reads the events wants of its tab.
const document = Object.assign(new EventTarget(), { hidden: false });
Object.assign(globalThis, { window: globalThis, document });
console.warn = (message) => observe("warning", { message });

observeResponses();
const { ShapeStream } = await import(alias);
const stream = new ShapeStream({
  url: new URL(required("FEED"), required("BASE_URL")).href,
  headers: { Authorization: `Bearer ${required("ACCESS_TOKEN")}` },
  ...options,
  onError: observeError,
});

stream.subscribe((messages) => {
  observe("messages", { messages: messages.map(({ key, value, headers }) => ({ key, value, headers })) });
}, observeError);
