//! The slot: taken up, created, or dropped (`postgres.md`, 4.6; design, section 4).

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection, Row};
use tokio::time::{Instant, sleep};

use super::session::{
    AttachError, Attachment, Progress, Start, bytes, create, identify, session, start,
};
use super::setup::{ServerFacts, SetupError, connect};
use super::{Settings, SlotKind};
use crate::postgres::Lsn;

/// For how long a named slot that somebody else reads is waited for.
const BUSY_WAIT: Duration = Duration::from_secs(10);
/// How long a look at the slot may take.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

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
pub(super) fn temporary_prefix(settings: &Settings) -> String {
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
