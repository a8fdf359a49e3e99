// What to watch, where, and as whom: from the page's query, else from the environment (VITE_…).
const query = new URLSearchParams(location.search);

function setting(name: string, variable: string): string {
  return query.get(name) ?? import.meta.env[variable] ?? "";
}

export const watched = {
  baseURL: setting("baseURL", "VITE_BASE_URL") || "http://127.0.0.1:3040",
  accessToken: setting("accessToken", "VITE_ACCESS_TOKEN"),
  run: setting("run", "VITE_RUN"),
  stream: setting("stream", "VITE_STREAM"),
  tag: setting("tag", "VITE_TAG"),
  batch: setting("batch", "VITE_BATCH"),
};
