// Follows a run until it ends.
//
//   npm install @trigger.dev/sdk
//   BASE_URL=http://127.0.0.1:3040 ACCESS_TOKEN=… RUN_ID=run_… node subscribe-to-run.mjs
import { configure, runs } from "@trigger.dev/sdk";

configure({ baseURL: process.env.BASE_URL, accessToken: process.env.ACCESS_TOKEN });

for await (const run of runs.subscribeToRun(process.env.RUN_ID)) {
  console.log(run.status, run.metadata ?? {});
}
