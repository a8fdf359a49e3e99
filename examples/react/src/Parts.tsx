/** More than anybody reads at once: a stream may go on for days. */
const SHOWN = 500;

/** The newest parts of a stream, one after the other: text as it is, all else as JSON. */
export function Parts({ stream, parts }: { stream: string; parts: unknown[] }) {
  const first = Math.max(0, parts.length - SHOWN);
  return (
    <p className="parts" data-stream={stream}>
      {parts.slice(first).map((part, index) => (
        <span key={first + index}>{typeof part === "string" ? part : JSON.stringify(part)}</span>
      ))}
    </p>
  );
}
