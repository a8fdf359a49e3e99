//! Taking away what Postgres keeps for us.

use std::fmt;

use sqlx::{AssertSqlSafe, Connection};

use super::Settings;
use super::setup::connect;
use super::slot::{drop_named, temporary_prefix};

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
