// Prints a public token for SECRET_KEY with the scopes of the SCOPES list (comma-separated), made by
// the newest SDK's `auth.createPublicToken`, and optionally EXPIRATION and SKIP_COLUMNS.
// The SDK asks its server for the claims first: BASE_URL, else a stand-in that says ENVIRONMENT_ID.
import { createServer } from "node:http";
import { observe, observeError, required } from "./observe.mjs";
import { auth, configure } from "sdk-4.8.3";

const { BASE_URL, SCOPES, EXPIRATION, SKIP_COLUMNS } = process.env;

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
  configure({ baseURL: BASE_URL ?? stub.url, accessToken: required("SECRET_KEY") });
  const token = await auth.createPublicToken({
    ...(SCOPES ? { scopes: scopes(SCOPES) } : {}),
    ...(EXPIRATION ? { expirationTime: EXPIRATION } : {}),
    ...(SKIP_COLUMNS ? { realtime: { skipColumns: SKIP_COLUMNS.split(",") } } : {}),
  });
  observe("token", { token });
} catch (error) {
  observeError(error);
  process.exitCode = 1;
} finally {
  stub?.server.closeAllConnections();
  stub?.server.close();
}
