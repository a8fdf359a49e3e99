import { TriggerAuthContext } from "@trigger.dev/react-hooks";

import { BatchFeed, RunFeed, RunWithStreamsFeed, StreamFeed, TagFeed } from "./feeds";
import { watched } from "./watched";

const { baseURL, accessToken, run, stream, tag, batch } = watched;

export function App() {
  return (
    <TriggerAuthContext.Provider value={{ baseURL, accessToken }}>
      <header>
        <h1>Runs, live</h1>
        <Watch />
      </header>
      {accessToken ? (
        <main>
          {run && (stream ? <RunWithStreamsFeed run={run} /> : <RunFeed run={run} />)}
          {run && stream && <StreamFeed run={run} stream={stream} />}
          {tag && <TagFeed tags={tag.split(",")} />}
          {batch && <BatchFeed batch={batch} />}
        </main>
      ) : (
        <p className="hint">Paste a public token, and name a run (and a stream of it), a tag or a batch.</p>
      )}
    </TriggerAuthContext.Provider>
  );
}

/** A plain form: submitting it loads the page anew with another query. */
function Watch() {
  return (
    <form>
      {Object.entries(watched).map(([name, value]) => (
        <label key={name}>
          {name}
          <input name={name} defaultValue={value} spellCheck={false} />
        </label>
      ))}
      <button>Watch</button>
    </form>
  );
}
