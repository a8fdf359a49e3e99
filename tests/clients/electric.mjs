// Reads the raw feed that FEED (path and query) names at BASE_URL with ACCESS_TOKEN, by the Electric client
// that the first argument names; goes on from HANDLE and OFFSET if they are set. Prints `messages` per batch. With
// STORAGE (a JSON object) it has a browser's localStorage that holds this, and prints its changes.
import { observe, observeError, observeResponses, required } from "./observe.mjs";

const alias = process.argv[2] ?? "electric-1.0.14";
const { HANDLE: handle, OFFSET: offset, STORAGE: stored } = process.env;

if (stored) {
  const items = JSON.parse(stored);
  const storage = {
    getItem: (key) => items[key] ?? null,
    setItem: (key, value) => {
      items[key] = value;
      observe("storage", { items });
    },
    removeItem: (key) => delete items[key],
  };
  Object.defineProperty(globalThis, "localStorage", { value: storage });
}

observeResponses();
const { ShapeStream } = await import(alias);
const stream = new ShapeStream({
  url: required("BASE_URL") + required("FEED"),
  headers: { Authorization: `Bearer ${required("ACCESS_TOKEN")}` },
  ...(handle && offset ? { handle, offset } : {}),
  onError: observeError,
});

stream.subscribe(
  (messages) =>
    observe("messages", {
      messages: messages.map(({ key, value, headers }) => ({ key, value, headers })),
      handle: stream.shapeHandle,
      offset: stream.lastOffset,
      upToDate: stream.isUpToDate,
    }),
  observeError,
);
