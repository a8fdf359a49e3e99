// Subscribes to lists of runs at BASE_URL with ACCESS_TOKEN, several at once, by the client that the first
// argument names. FEEDS is a JSON array of { feed, tags, createdAt, skipColumns } or { feed, batch }. Prints
// `run` with the feed's name per emission, `error` when a loop throws.
import { observe, observeError, observeResponses, required } from "./observe.mjs";

const alias = process.argv[2];
if (!alias) throw new Error("which client? (an alias of package.json)");

observeResponses();
const lists = await connect(required("BASE_URL"), required("ACCESS_TOKEN"));

// Before version 4 there are no options.
async function connect(baseURL, accessToken) {
  const { ApiClient, configure, runs } = await import(`${alias}/v3`);
  if (ApiClient) return new ApiClient(baseURL, accessToken); // a core, under its SDK
  configure({ baseURL, accessToken });
  return runs;
}

async function follow({ feed, batch, tags, ...options }) {
  const subscription = batch ? lists.subscribeToBatch(batch) : lists.subscribeToRunsWithTag(tags, options);
  for await (const run of subscription) observe("run", { feed, run });
  observe("end", { feed });
}

for (const feed of JSON.parse(required("FEEDS"))) {
  follow(feed).catch(observeError);
}
