import {
  useRealtimeBatch,
  useRealtimeRun,
  useRealtimeRunsWithTag,
  useRealtimeRunWithStreams,
  useRealtimeStream,
} from "@trigger.dev/react-hooks";
import type { ReactNode } from "react";

import { Parts } from "./Parts";
import { RunCard } from "./RunCard";

/** A page need not be drawn for every word of an answer. */
const throttleInMs = 100;

/** One run, from wherever it is now to its end. */
export function RunFeed({ run: id }: { run: string }) {
  const { run, error } = useRealtimeRun(id);
  return (
    <Feed name="run" of={id} error={error}>
      {run && <RunCard run={run} />}
    </Feed>
  );
}

/** One run with all of its streams, as they appear. */
export function RunWithStreamsFeed({ run: id }: { run: string }) {
  const { run, streams, error } = useRealtimeRunWithStreams(id, { throttleInMs });
  return (
    <Feed name="run" of={id} error={error}>
      {run && <RunCard run={run} />}
      {Object.entries(streams).map(([key, parts]) => <Parts key={key} stream={key} parts={parts} />)}
    </Feed>
  );
}

/** One stream of a run, from its beginning until nothing has come for ten minutes. */
export function StreamFeed({ run, stream }: { run: string; stream: string }) {
  const { parts, error } = useRealtimeStream(run, stream, { throttleInMs, timeoutInSeconds: 600 });
  return (
    <Feed name="stream" of={stream} error={error}>
      <Parts stream={stream} parts={parts} />
    </Feed>
  );
}

/** The runs of the last day that have all of these tags, the newest first. */
export function TagFeed({ tags }: { tags: string[] }) {
  const { runs, error } = useRealtimeRunsWithTag(tags);
  return (
    <Feed name="tag" of={tags.join(" and ")} error={error}>
      {runs.toReversed().map((run) => <RunCard key={run.id} run={run} />)}
    </Feed>
  );
}

/** The runs of a batch, in the order in which they were triggered. */
export function BatchFeed({ batch }: { batch: string }) {
  const { runs, error } = useRealtimeBatch(batch);
  return (
    <Feed name="batch" of={batch} error={error}>
      {runs.map((run) => <RunCard key={run.id} run={run} />)}
    </Feed>
  );
}

function Feed(props: { name: string; of: string; error?: Error; children: ReactNode }) {
  return (
    <section data-feed={props.name}>
      <h2>
        {props.name} <code>{props.of}</code>
      </h2>
      {props.error && <p className="error">{props.error.message}</p>}
      {props.children}
    </section>
  );
}
