//! The slot: taken up, created, or dropped (`postgres.md`, 4.6; design, section 4).

use std::fmt;
use std::time::Duration;

use pgwire_replication::{PgWireError, ReplicationClient};
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection, Row};
use tokio::time::{Instant, sleep};

use super::setup::{ServerFacts, SetupError, connect};
use super::{Settings, SlotKind};
use crate::postgres::{Lsn, Snapshot};

/// For how long a named slot that somebody else reads is waited for.
const BUSY_WAIT: Duration = Duration::from_secs(10);
/// Creating a slot waits for every open transaction to end; above this it is begun anew.
const CREATE_LIMIT: Duration = Duration::from_secs(600);
/// After this long it is said what is waited for.
const CREATE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a look at the slot may take.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
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
    fn is_busy(&self) -> bool {
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

/// Takes up the slot that the settings and the server allow, and starts its stream after `progress`
/// or where the slot stands, whichever is later. A named slot that stays busy is stood in for by a
/// temporary one.
pub(super) async fn attach(
    settings: &Settings,
    server: ServerFacts,
    progress: Option<Progress>,
) -> Result<Attachment, AttachError> {
    let permanent = match settings.slot_kind {
        SlotKind::Auto => server.bounds_slots,
        SlotKind::Temporary => false,
        SlotKind::Permanent => true,
    };
    if permanent {
        let deadline = Instant::now() + BUSY_WAIT;
        loop {
            match attach_named(settings, server, progress).await {
                Err(error) if error.is_busy() => {}
                other => return other,
            }
            if Instant::now() >= deadline {
                tracing::warn!(
                    slot = settings.slot,
                    "the slot is read by somebody else: a temporary one serves"
                );
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
    let name = format!("{}{:08x}", temporary_prefix(settings), rand::random::<u32>());
    let client = session(settings, server, &name, Lsn(0)).await?;
    create(settings, client, name, false).await
}

/// How the names of temporary slots begin.
fn temporary_prefix(settings: &Settings) -> String {
    format!("{}_tmp_", settings.slot)
}

async fn attach_named(
    settings: &Settings,
    server: ServerFacts,
    progress: Option<Progress>,
) -> Result<Attachment, AttachError> {
    let mut sql = connect(settings).await?;
    let row = sqlx::query(
        "SELECT plugin::text, database = current_database(), active, wal_status
         FROM pg_replication_slots WHERE slot_name = $1",
    )
    .bind(&settings.slot)
    .fetch_optional(&mut sql)
    .await?;
    let name = settings.slot.clone();
    let Some(row) = row else {
        let client = session(settings, server, &name, Lsn(0)).await?;
        return create(settings, client, name, true).await;
    };
    let plugin: Option<String> = row.try_get(0)?;
    if plugin.as_deref() != Some("pgoutput") || row.try_get::<Option<bool>, _>(1)? != Some(true) {
        let text = format!("RUNWIRE_SLOT: the slot {name} is of another database or plugin");
        return Err(SetupError::Wrong(text).into());
    }
    if row.try_get(2)? {
        return Err(AttachError::Busy(name));
    }
    let lost = row.try_get::<Option<&str>, _>(3)? == Some("lost");
    if lost || server.published_now {
        let reason = if lost {
            "the server has removed log that it needs"
        } else {
            "it is older than its publication"
        };
        tracing::warn!(slot = name, reason, "the slot cannot be read: a new one is made");
        drop_named(&mut sql, &name).await?;
        let client = session(settings, server, &name, Lsn(0)).await?;
        return create(settings, client, name, true).await;
    }
    let from = progress.map_or(Lsn(0), |progress| progress.delivered);
    let mut client = session(settings, server, &name, from).await?;
    let (mut epoch, mut server_lsn) = identify(settings, &mut client).await?;
    if progress.is_some_and(|progress| !progress.continues_on(epoch, server_lsn)) {
        // Our position means something else there, and the server would skip all that comes before it.
        client = session(settings, server, &name, Lsn(0)).await?;
        (epoch, server_lsn) = identify(settings, &mut client).await?;
    }
    start(&mut client).await?;
    // Only now is the slot ours, so that nobody else moves it.
    let (confirmed, safe): (Option<String>, Option<i64>) = sqlx::query_as(
        "SELECT confirmed_flush_lsn::text, safe_wal_size FROM pg_replication_slots WHERE slot_name = $1",
    )
    .bind(&name)
    .fetch_one(&mut sql)
    .await?;
    let _ = sql.close().await;
    let confirmed = confirmed.and_then(|text| text.parse().ok());
    let confirmed = confirmed.ok_or(AttachError::Answer("the slot's position"))?;
    let (start, safe_bytes) = (Start::Resumed { confirmed }, safe.map(bytes));
    Ok(Attachment { client, slot: name, permanent: true, start, epoch, server_lsn, safe_bytes })
}

/// A replication connection that has not started a stream yet.
async fn session(
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

async fn create(
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
fn bytes(size: i64) -> u64 {
    size.max(0) as u64
}

/// Names the database's history: another system or timeline, and every position means something else.
async fn identify(
    settings: &Settings,
    client: &mut ReplicationClient,
) -> Result<(u64, Lsn), AttachError> {
    use sha2::{Digest, Sha256};
    let answer = tokio::time::timeout(ANSWER_LIMIT, client.identify_system()).await;
    let system = answer.map_err(|_| AttachError::Silent("IDENTIFY_SYSTEM"))??;
    let text = format!("{}/{}/{}", system.system_id, system.timeline, settings.epoch_counter);
    let digest = Sha256::digest(text);
    Ok((u64::from_be_bytes(std::array::from_fn(|i| digest[i])), system.xlogpos.into()))
}

async fn start(client: &mut ReplicationClient) -> Result<(), AttachError> {
    client.start().await?;
    let started = tokio::time::timeout(ANSWER_LIMIT, client.wait_started()).await;
    Ok(started.map_err(|_| AttachError::Silent("START_REPLICATION"))??)
}

pub(super) async fn drop_named(sql: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_drop_replication_slot($1)").bind(name).execute(sql).await.map(drop)
}

/// Whether the server regards the slot as being read. If it does not answer either, nobody knows.
pub(super) async fn is_read(settings: &Settings, slot: &str) -> bool {
    let look = async {
        let mut sql = connect(settings).await?;
        let active = "SELECT active FROM pg_replication_slots WHERE slot_name = $1";
        let active: Option<bool> =
            sqlx::query_scalar(active).bind(slot).fetch_optional(&mut sql).await?;
        let _ = sql.close().await;
        Ok::<_, sqlx::Error>(active == Some(true))
    };
    !matches!(tokio::time::timeout(LOOK_LIMIT, look).await, Ok(Ok(false)))
}

/// How much log the slot makes the server keep, in bytes; `None` if there is no such slot.
pub async fn retained_wal(pool: &PgPool, slot: &str) -> Option<i64> {
    sqlx::query_scalar::<_, Option<i64>>(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint
         FROM pg_replication_slots WHERE slot_name = $1",
    )
    .bind(slot)
    .fetch_optional(pool)
    .await
    .ok()??
}

/// What [`drop_slot`] removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Whether there was a slot.
    pub slot: bool,
    /// Whether there was a publication.
    pub publication: bool,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |gone| if gone { "removed" } else { "was not there" };
        write!(f, "slot: {}; publication: {}", said(self.slot), said(self.publication))
    }
}

/// Why a slot could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// Somebody reads it.
    #[error("the slot {0} is being read; stop the gateway that does first")]
    Busy(String),
    /// The server refused or did not answer.
    #[error("the database does not answer: {0}")]
    Sql(#[from] sqlx::Error),
}

/// Removes the slot and the publication of these settings, so that Postgres keeps nothing for us.
pub async fn drop_slot(settings: &Settings) -> Result<Dropped, DropError> {
    let mut sql = connect(settings).await?;
    // Temporary slots go by themselves, but while one is read the publication must stay.
    let slots: Vec<(String, bool)> = sqlx::query_as(
        "SELECT slot_name::text, active FROM pg_replication_slots
         WHERE database = current_database() AND (slot_name = $1 OR starts_with(slot_name, $2))",
    )
    .bind(&settings.slot)
    .bind(temporary_prefix(settings))
    .fetch_all(&mut sql)
    .await?;
    if let Some((busy, _)) = slots.iter().find(|(_, active)| *active) {
        return Err(DropError::Busy(busy.clone()));
    }
    let slot = slots.iter().any(|(name, _)| *name == settings.slot);
    if slot {
        drop_named(&mut sql, &settings.slot).await?;
    }
    let publication: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)")
            .bind(&settings.publication)
            .fetch_one(&mut sql)
            .await?;
    if publication {
        let name = settings.publication.replace('"', "\"\"");
        let sql_text = format!(r#"DROP PUBLICATION "{name}""#);
        sqlx::raw_sql(AssertSqlSafe(sql_text)).execute(&mut sql).await?;
    }
    let _ = sql.close().await;
    Ok(Dropped { slot, publication })
}
