// Subscribes to RUN_ID at BASE_URL with ACCESS_TOKEN, by the SDK that the first argument names.
// Prints `run` per emission, `end` when the loop ends by itself, `error` when it throws.
import { observe, observeError, observeResponses, required } from "./observe.mjs";

const alias = process.argv[2];
if (!alias) throw new Error("which SDK? (an alias of package.json)");

observeResponses();
const { configure, runs } = await import(`${alias}/v3`);
configure({ baseURL: required("BASE_URL"), accessToken: required("ACCESS_TOKEN") });

// Loops end by themselves only in newer SDKs; the older ones poll on, so we leave at completion.
const endsByItself = alias === "sdk-4.8.3" || process.env.STAY === "1";

try {
  for await (const run of runs.subscribeToRun(required("RUN_ID"))) {
    observe("run", run);
    if (run.finishedAt && !endsByItself) process.exit(0);
  }
  observe("end");
} catch (error) {
  observeError(error);
  process.exitCode = 1;
}
