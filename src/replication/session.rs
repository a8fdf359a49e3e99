//! A replication connection before its stream begins: who the server is, a slot made on it, the start.

use std::time::Duration;

use pgwire_replication::{PgWireError, ReplicationClient};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection};
use tokio::time::sleep;

use super::Settings;
use super::setup::{ServerFacts, SetupError, connect};
use crate::postgres::{Lsn, Snapshot};

/// Creating a slot waits for every open transaction to end; above this it is begun anew.
const CREATE_LIMIT: Duration = Duration::from_secs(600);
/// After this long it is said what is waited for.
const CREATE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the server may take to identify itself, or to start a stream.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// How many events are buffered between the socket and the assembler.
const BUFFERED_EVENTS: usize = 512;

/// A stream that has begun.
pub(super) struct Attachment {
    pub client: ReplicationClient,
    pub slot: String,
    pub permanent: bool,
    pub start: Start,
    /// The database's history.
    pub epoch: u64,
    /// The server's durable log ended here when the connection was made.
    pub server_lsn: Lsn,
    /// What the server lets a permanent slot retain, where it bounds it.
    pub safe_bytes: Option<u64>,
}

/// How far the stream has been handed on, and in which history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub epoch: u64,
    pub delivered: Lsn,
}

impl Progress {
    /// Whether a server with this history, whose log ends there, can go on from here. One that was
    /// set back (an older copy of its disk) has the same history and a shorter log.
    pub fn continues_on(self, epoch: u64, server_lsn: Lsn) -> bool {
        self.epoch == epoch && self.delivered <= server_lsn
    }
}

/// Where a stream begins.
#[derive(Debug)]
pub(super) enum Start {
    /// A slot that was there: all that was not confirmed comes again.
    Resumed { confirmed: Lsn },
    /// A slot made just now.
    Created { floor: Lsn, past: Snapshot },
}

/// Why no stream has begun.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("the database does not answer: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("replication: {0}")]
    Replication(#[from] PgWireError),
    #[error("an unreadable answer to {0}")]
    Answer(&'static str),
    #[error("no answer to {0}")]
    Silent(&'static str),
    #[error("the slot {0} is read by somebody else")]
    Busy(String),
    #[error("a slot could not be created, since transactions have been open for {} s", CREATE_LIMIT.as_secs())]
    OpenTransactions,
}

impl AttachError {
    pub fn is_busy(&self) -> bool {
        match self {
            AttachError::Busy(_) => true,
            AttachError::Replication(error) => sqlstate(error) == Some("55006"),
            _ => false,
        }
    }
}

/// The SQLSTATE that the crate leaves in the text of a server's error.
pub(super) fn sqlstate(error: &PgWireError) -> Option<&str> {
    let PgWireError::Server(text) = error else { return None };
    let (_, rest) = text.split_once("(SQLSTATE ")?;
    rest.get(..5)
}

/// A replication connection that has not started a stream yet.
pub(super) async fn session(
    settings: &Settings,
    server: ServerFacts,
    slot: &str,
    from: Lsn,
) -> Result<ReplicationClient, AttachError> {
    let mut config = settings
        .url
        .replication_config()
        .with_start_lsn(pgwire_replication::Lsn::from_u64(from.0))
        // Otherwise the first report would confirm all that lies before the start.
        .with_ack_lsn(pgwire_replication::Lsn::from_u64(0))
        .with_status_interval(server.report_every)
        .with_wakeup_interval(server.report_every)
        .with_buffer_size(BUFFERED_EVENTS);
    slot.clone_into(&mut config.slot);
    config.publication = settings.publication.as_str().into();
    Ok(ReplicationClient::connect_gated(config).await?)
}

pub(super) async fn create(
    settings: &Settings,
    mut client: ReplicationClient,
    slot: String,
    permanent: bool,
) -> Result<Attachment, AttachError> {
    let (epoch, server_lsn) = identify(settings, &mut client).await?;
    // The server's own limit: if we merely went away, it would wait on and leave a slot behind.
    let limit = format!("SET lock_timeout = '{}s'", CREATE_LIMIT.as_secs());
    client.simple_query(&limit).await?;
    let temporary = if permanent { "" } else { "TEMPORARY " };
    let sql = format!("CREATE_REPLICATION_SLOT {slot} {temporary}LOGICAL pgoutput EXPORT_SNAPSHOT");
    let rows = {
        let created = client.simple_query(&sql);
        let mut created = std::pin::pin!(tokio::time::timeout(2 * CREATE_LIMIT, created));
        tokio::select! {
            rows = created.as_mut() => rows,
            () = sleep(CREATE_PATIENCE) => {
                tracing::warn!("creating a slot waits for open transactions to end");
                created.await
            }
        }
    };
    let rows = rows.map_err(|_| AttachError::OpenTransactions)??;
    let cell = |at: usize| {
        let bytes = rows.first()?.get(at)?.as_ref()?;
        std::str::from_utf8(bytes).ok()
    };
    let floor = cell(1).and_then(|text| text.parse().ok());
    let (Some(floor), Some(exported)) = (floor, cell(2)) else {
        return Err(AttachError::Answer("CREATE_REPLICATION_SLOT"));
    };
    let (past, safe_bytes) = read_exported(settings, exported, &slot).await?;
    start(&mut client).await?;
    let start = Start::Created { floor, past };
    Ok(Attachment { client, slot, permanent, start, epoch, server_lsn, safe_bytes })
}

/// What the new slot regards as past, and what it may retain. The exported snapshot's name is good
/// until the slot's connection does something else.
async fn read_exported(
    settings: &Settings,
    name: &str,
    slot: &str,
) -> Result<(Snapshot, Option<u64>), AttachError> {
    let mut sql = connect(settings).await?;
    let import = format!("SET TRANSACTION SNAPSHOT '{}'", name.replace('\'', "''"));
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ").execute(&mut sql).await?;
    sqlx::raw_sql(AssertSqlSafe(import)).execute(&mut sql).await?;
    let (text, safe): (String, Option<i64>) = sqlx::query_as(
        "SELECT pg_current_snapshot()::text,
                (SELECT safe_wal_size FROM pg_replication_slots WHERE slot_name = $1)",
    )
    .bind(slot)
    .fetch_one(&mut sql)
    .await?;
    let _ = sql.close().await;
    let past = text.parse().map_err(|_| AttachError::Answer("pg_current_snapshot"))?;
    Ok((past, safe.map(bytes)))
}

/// A size that Postgres gives as negative once it is exceeded.
pub(super) fn bytes(size: i64) -> u64 {
    size.max(0) as u64
}

/// Names the database's history: another system or timeline, and every position means something else.
pub(super) async fn identify(
    settings: &Settings,
    client: &mut ReplicationClient,
) -> Result<(u64, Lsn), AttachError> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, client.identify_system()).await;
    let system = answer.map_err(|_| AttachError::Silent("IDENTIFY_SYSTEM"))??;
    let text = format!("{}/{}/{}", system.system_id, system.timeline, settings.epoch_counter);
    let digest = Sha256::digest(text);
    Ok((u64::from_be_bytes(std::array::from_fn(|i| digest[i])), system.xlogpos.into()))
}

pub(super) async fn start(client: &mut ReplicationClient) -> Result<(), AttachError> {
    client.start().await?;
    let started = tokio::time::timeout(ANSWER_LIMIT, client.wait_started()).await;
    Ok(started.map_err(|_| AttachError::Silent("START_REPLICATION"))??)
}
