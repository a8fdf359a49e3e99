import { useRealtimeBatch, useRealtimeRun, useRealtimeRunsWithTag } from "@trigger.dev/react-hooks";
import type { ReactNode } from "react";

import { RunCard } from "./RunCard";

/** One run, from wherever it is now to its end. */
export function RunFeed({ run: id }: { run: string }) {
  const { run, error } = useRealtimeRun(id);
  return (
    <Feed name="run" of={id} error={error}>
      {run && <RunCard run={run} />}
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
