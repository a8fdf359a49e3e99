// Prints a public token for SECRET_KEY with the scopes of the SCOPES list (comma-separated), made by
// `auth.createPublicToken` of the SDK named as argument (else the newest), and optionally EXPIRATION,
// SKIP_COLUMNS and BRANCH. SCOPE_LISTS, a JSON array of such lists, makes a token of each. With RUN_ID
// it prints that run instead, read inside of `auth.withPublicToken`.
// The SDK asks its server for the claims first: BASE_URL, else a stand-in that says ENVIRONMENT_ID.
import { createServer } from "node:http";
import { observe, observeError, required } from "./observe.mjs";

const { auth, configure, runs } = await import(`${process.argv[2] ?? "sdk-4.8.3"}/v3`);
const { BASE_URL, SCOPES, SCOPE_LISTS, EXPIRATION, SKIP_COLUMNS, BRANCH, RUN_ID } = process.env;

// `read:runs:run_1` → { read: { runs: ["run_1"] } }, `read:runs` → { read: { runs: true } }
function scopes(list) {
  const tree = {};
  for (const scope of list.split(",")) {
    const [action, type, ...id] = scope.split(":");
    if (!type) {
      tree[action] = true;
      continue;
    }
    const types = (tree[action] ??= {});
    if (id.length === 0) types[type] = true;
    else (types[type] ??= []).push(id.join(":"));
  }
  return tree;
}

async function standIn() {
  const claims = JSON.stringify({ sub: required("ENVIRONMENT_ID"), pub: true });
  const server = createServer((_, response) => response.setHeader("content-type", "application/json").end(claims));
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  return { server, url: `http://127.0.0.1:${server.address().port}` };
}

const stub = BASE_URL ? undefined : await standIn();
try {
  configure({ baseURL: BASE_URL ?? stub.url, accessToken: required("SECRET_KEY"), previewBranch: BRANCH });
  const optionsOf = (list) => ({
    ...(list ? { scopes: scopes(list) } : {}),
    ...(EXPIRATION ? { expirationTime: EXPIRATION } : {}),
    ...(SKIP_COLUMNS ? { realtime: { skipColumns: SKIP_COLUMNS.split(",") } } : {}),
  });
  if (RUN_ID) {
    await auth.withPublicToken(optionsOf(SCOPES), async () => {
      for await (const run of runs.subscribeToRun(RUN_ID)) {
        observe("run", run);
        process.exit(0);
      }
    });
  } else {
    for (const list of SCOPE_LISTS ? JSON.parse(SCOPE_LISTS) : [SCOPES]) {
      observe("token", { token: await auth.createPublicToken(optionsOf(list)) });
    }
  }
} catch (error) {
  observeError(error);
  process.exitCode = 1;
} finally {
  stub?.server.closeAllConnections();
  stub?.server.close();
}
