//! A recorded replication stream, made in memory: pgoutput messages, protocol 1, in text, as a walsender
//! sends them for updates of `"TaskRun"` (one relation of 45 columns, rows of about 1.8 kB).

use bytes::{BufMut, Bytes, BytesMut};

const RELATION: u32 = 16_500;
/// How many runs are updated, round and round.
const RUNS: usize = 5_000;
/// How many versions each has. The next after the last is the first again, and differs from it.
const VERSIONS: usize = 4;

/// A transaction of one update.
pub struct Transaction {
    /// Its id.
    pub xid: u32,
    /// Where its commit record begins.
    pub commit_lsn: u64,
    /// Where its commit record ends.
    pub end_lsn: u64,
    /// When it committed: microseconds since 1970.
    pub commit_time: i64,
    /// The Update message.
    pub update: Bytes,
}

/// The stream.
pub struct Recorded {
    /// The Relation message, which comes before the first row.
    pub relation: Bytes,
    updates: Vec<Bytes>,
}

/// Columns in the order in which a database may have them: not the wire's, and more than Runwire reads.
const COLUMNS: [(&str, u32); 45] = [
    ("id", TEXT),
    ("number", INT4),
    ("friendlyId", TEXT),
    ("engine", ENUM),
    ("status", ENUM),
    ("idempotencyKey", TEXT),
    ("taskIdentifier", TEXT),
    ("isTest", BOOL),
    ("payload", TEXT),
    ("payloadType", TEXT),
    ("context", JSONB),
    ("traceContext", JSONB),
    ("traceId", TEXT),
    ("spanId", TEXT),
    ("runtimeEnvironmentId", TEXT),
    ("environmentType", ENUM),
    ("projectId", TEXT),
    ("organizationId", TEXT),
    ("queue", TEXT),
    ("concurrencyKey", TEXT),
    ("createdAt", TIMESTAMP),
    ("updatedAt", TIMESTAMP),
    ("runTags", TEXT_ARRAY),
    ("taskVersion", TEXT),
    ("sdkVersion", TEXT),
    ("cliVersion", TEXT),
    ("machinePreset", TEXT),
    ("usageDurationMs", INT4),
    ("costInCents", FLOAT8),
    ("baseCostInCents", FLOAT8),
    ("lockedAt", TIMESTAMP),
    ("delayUntil", TIMESTAMP),
    ("queuedAt", TIMESTAMP),
    ("expiredAt", TIMESTAMP),
    ("startedAt", TIMESTAMP),
    ("completedAt", TIMESTAMP),
    ("ttl", TEXT),
    ("metadata", TEXT),
    ("metadataType", TEXT),
    ("output", TEXT),
    ("outputType", TEXT),
    ("error", JSONB),
    ("batchId", TEXT),
    ("depth", INT4),
    ("realtimeStreams", TEXT_ARRAY),
];

const BOOL: u32 = 16;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const FLOAT8: u32 = 701;
const TEXT_ARRAY: u32 = 1009;
const TIMESTAMP: u32 = 1114;
const JSONB: u32 = 3802;
/// Of the database's own types, which have no fixed number.
const ENUM: u32 = 16_400;

/// The friendly id of a run of the stream.
pub fn friendly_id(run: usize) -> String {
    format!("run_clrecorded{run:015}")
}

/// The environment that it belongs to.
pub fn environment(run: usize) -> String {
    format!("clenvironment{:012}", run % 50)
}

impl Recorded {
    /// Makes the stream.
    pub fn new() -> Recorded {
        let rows = (0..VERSIONS).flat_map(|version| (0..RUNS).map(move |run| (run, version)));
        Recorded { relation: relation(), updates: rows.map(|(run, v)| update(run, v)).collect() }
    }

    /// Its transactions, without end: ids and positions rise, the updates come round again.
    pub fn transactions(&self) -> impl Iterator<Item = Transaction> {
        self.updates.iter().cycle().zip(0u64..).map(|(update, number)| {
            let commit_lsn = 0x0100_0000 + number * 2_048;
            Transaction {
                xid: 1_000 + number as u32,
                commit_lsn,
                end_lsn: commit_lsn + 48,
                commit_time: 1_790_000_000_000_000 + number as i64 * 10,
                update: update.clone(),
            }
        })
    }
}

fn relation() -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(b'R');
    out.put_u32(RELATION);
    text(&mut out, "public");
    text(&mut out, "TaskRun");
    out.put_u8(b'd');
    out.put_u16(COLUMNS.len() as u16);
    for (index, (name, kind)) in COLUMNS.iter().enumerate() {
        // The primary key is the identity.
        out.put_u8(u8::from(index == 0));
        text(&mut out, name);
        out.put_u32(*kind);
        out.put_i32(if *kind == TIMESTAMP { 3 } else { -1 });
    }
    out.freeze()
}

/// Text as the protocol ends it.
fn text(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn update(run: usize, version: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(2_048);
    out.put_u8(b'U');
    out.put_u32(RELATION);
    out.put_u8(b'N');
    out.put_u16(COLUMNS.len() as u16);
    for (name, _) in COLUMNS {
        match cell(name, run, version) {
            Some(value) => {
                out.put_u8(b't');
                out.put_u32(value.len() as u32);
                out.put_slice(value.as_bytes());
            }
            None => out.put_u8(b'n'),
        }
    }
    out.freeze()
}

/// A column's text as Postgres prints it; `None` is NULL.
fn cell(name: &str, run: usize, version: usize) -> Option<String> {
    let step = run + version * 7;
    Some(match name {
        "id" => format!("clrecorded{run:015}"),
        "friendlyId" => friendly_id(run),
        "number" => run.to_string(),
        "engine" => "V2".into(),
        "status" => ["EXECUTING", "WAITING_TO_RESUME"][version % 2].into(),
        "taskIdentifier" => format!("task-{}", run % 40),
        "isTest" => "f".into(),
        "payload" => format!(r#"{{"order":{run},"note":"{}"}}"#, "payload ".repeat(75)),
        "payloadType" | "metadataType" | "outputType" => "application/json".into(),
        "traceContext" => {
            format!(r#"{{"traceparent": "00-{run:032x}-{step:016x}-01", "tracestate": ""}}"#)
        }
        "traceId" => format!("{run:032x}"),
        "spanId" => format!("{run:016x}"),
        "runtimeEnvironmentId" => environment(run),
        "environmentType" => "PRODUCTION".into(),
        "projectId" => format!("clproject{:016}", run % 50),
        "organizationId" => format!("clorganization{:011}", run % 50),
        "queue" => format!("task/task-{}", run % 40),
        "createdAt" | "queuedAt" => "2026-09-01 08:15:30.12".into(),
        "startedAt" | "lockedAt" => "2026-09-01 08:15:30.9".into(),
        "updatedAt" => format!("2026-09-01 08:{:02}:{:02}.{:03}", version, step % 60, step % 1000),
        "runTags" => format!("{{user:{},\"kind:recorded stream\",shard:{}}}", run % 900, run % 16),
        "taskVersion" | "sdkVersion" | "cliVersion" => "20260901.1".into(),
        "machinePreset" => "small-1x".into(),
        "usageDurationMs" => (step * 13).to_string(),
        "costInCents" | "baseCostInCents" => format!("0.{:04}", 1 + step % 9_999),
        "metadata" => format!(
            r#"{{"progress":{version},"step":{step},"log":"{}"}}"#,
            "working on it ".repeat(14)
        ),
        "depth" => "0".into(),
        "realtimeStreams" => "{}".into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_about_as_large_as_a_real_one_and_no_two_in_a_row_of_a_run_are_alike() {
        let recorded = Recorded::new();
        let size = recorded.updates.iter().map(Bytes::len).sum::<usize>() / recorded.updates.len();
        assert!((1_600..2_000).contains(&size), "{size}");
        for run in [0, RUNS - 1] {
            for version in 0..VERSIONS {
                assert_ne!(update(run, version), update(run, (version + 1) % VERSIONS));
            }
        }
    }

    #[test]
    fn the_relation_names_every_column_that_runwire_reads() {
        let relation = Recorded::new().relation;
        for column in runwire::runs::columns::Column::ALL {
            let name = [column.name().as_bytes(), b"\0"].concat();
            assert!(memchr::memmem::find(&relation, &name).is_some(), "{column:?}");
        }
    }

    #[test]
    fn positions_and_ids_rise_when_the_updates_come_round_again() {
        let recorded = Recorded::new();
        let all = RUNS * VERSIONS;
        let some: Vec<_> = recorded.transactions().skip(all - 1).take(2).collect();
        assert!(some[0].end_lsn < some[1].commit_lsn && some[0].xid < some[1].xid);
        assert!(some[0].commit_time < some[1].commit_time);
        assert_eq!(some[1].update, recorded.updates[0]);
    }
}
