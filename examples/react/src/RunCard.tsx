import type { useRealtimeRun } from "@trigger.dev/react-hooks";

type Run = NonNullable<ReturnType<typeof useRealtimeRun>["run"]>;

/** A run at a glance: status, what its metadata says of its progress, tags. */
export function RunCard({ run }: { run: Run }) {
  const { progress, step } = { ...run.metadata };
  return (
    <article data-run={run.id}>
      <p>
        <b>{run.taskIdentifier}</b>
        <span className="status" data-status={run.status}>
          {run.status}
        </span>
      </p>
      {typeof progress === "number" && (
        <p>
          <progress value={progress} />
          {typeof step === "string" && <small>{step}</small>}
        </p>
      )}
      {run.error && <p className="error">{run.error.message}</p>}
      <p>
        {run.tags.map((tag) => (
          <span key={tag} className="tag">
            {tag}
          </span>
        ))}
        <code>{run.id}</code>
      </p>
    </article>
  );
}
