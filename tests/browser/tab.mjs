// A browser with one tab, on the pages of the directory PAGES. It obeys the lines on stdin: `open` and a
// query, `reload`, `hide`, `show`, `close`. It prints every request that the page makes of the gateway, as the
// browser sees it, with its end, and `shown` whenever the page shows other runs than before.
import { createInterface } from "node:readline";
import { observe, observeError, required } from "../clients/observe.mjs";
import { launch } from "./chromium.mjs";
import { serve } from "./serve.mjs";

const origin = await serve(required("PAGES"));
const browser = await launch(required("PROFILE"));
const [page] = await browser.pages();
const devtools = await page.createCDPSession();

// Told in the browser's order, although a body takes a moment to get.
let told = Promise.resolve();
const tell = (type, fields) => (told = told.then(async () => observe(type, await fields)));

const statuses = new Map();
await devtools.send("Network.enable");
devtools.on("Network.requestWillBeSent", ({ requestId: id, request }) => {
  const { pathname: path, searchParams } = new URL(request.url);
  if (!path.startsWith("/realtime/")) return;
  statuses.set(id, undefined);
  const headers = Object.entries(request.headers).map(([name, value]) => [name.toLowerCase(), value]);
  const lastEventId = Object.fromEntries(headers)["last-event-id"];
  tell("asked", { id, method: request.method, path, query: Object.fromEntries(searchParams), lastEventId });
});
devtools.on("Network.responseReceived", ({ requestId: id, response }) => {
  if (statuses.has(id)) statuses.set(id, response.status);
});
devtools.on("Network.loadingFinished", ({ requestId: id }) => {
  if (!statuses.has(id)) return;
  const answer = { id, status: statuses.get(id) };
  statuses.delete(id);
  const body = devtools.send("Network.getResponseBody", { requestId: id });
  // There is none of an OPTIONS, nor of a page that has gone meanwhile.
  tell("answered", body.then(({ body }) => ({ ...answer, body }), () => answer));
});
devtools.on("Network.loadingFailed", ({ requestId: id, canceled, errorText, corsErrorStatus }) => {
  if (!statuses.delete(id)) return;
  if (canceled) tell("aborted", { id });
  else tell("failed", { id, why: corsErrorStatus?.corsError ?? errorText });
});

await page.exposeFunction("report", (shown) => tell("shown", JSON.parse(shown)));
await page.evaluateOnNewDocument(() => {
  const run = (card) => ({
    id: card.dataset.run,
    status: card.querySelector(".status").textContent,
    progress: card.querySelector("progress")?.value ?? null,
    tags: [...card.querySelectorAll(".tag")].map((tag) => tag.textContent),
  });
  const parts = (stream) => [stream.dataset.stream, [...stream.children].map((part) => part.textContent)];
  const feed = (section) => [
    section.dataset.feed,
    {
      runs: [...section.querySelectorAll("article")].map(run),
      streams: Object.fromEntries([...section.querySelectorAll("[data-stream]")].map(parts)),
      error: section.querySelector(":scope > .error")?.textContent ?? null,
    },
  ];
  let before;
  const look = () => {
    const shown = JSON.stringify({ feeds: Object.fromEntries([...document.querySelectorAll("section")].map(feed)) });
    if (shown !== before) report((before = shown));
  };
  new MutationObserver(look).observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
});
page.on("pageerror", observeError);
page.on("error", observeError); // its process has died

// What happens to a page whose window is minimized: it is hidden, and told so.
async function minimize(windowState) {
  const { windowId } = await devtools.send("Browser.getWindowForTarget");
  await devtools.send("Browser.setWindowBounds", { windowId, bounds: { windowState } });
}

const orders = {
  open: ({ query }) => page.goto(`${origin}/?${new URLSearchParams(query)}`),
  reload: () => page.reload(),
  hide: () => minimize("minimized"),
  show: () => minimize("normal"),
  close: async () => {
    await browser.close();
    process.exit();
  },
};

observe("ready", { origin });
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  await orders[order.do](order);
  await tell("done", order);
}
