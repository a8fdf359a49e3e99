//! Many runs by their ids, in one statement.

use std::sync::{Arc, LazyLock};

use futures_util::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::postgres::PgPool;

use super::columns::{Column, ColumnSet};
use super::lease::Lease;
use super::row::{self, CELLS, LEADING, SEEN};
use super::store::{Seen, StoreError, StoredRun};

/// A run, by one of its two ids.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunId {
    /// The environment that it must belong to.
    pub environment: Arc<str>,
    /// Its id.
    pub id: Arc<str>,
}

/// Which of the two ids of a run is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The one that callers know.
    FriendlyId,
    /// The table's key.
    InternalId,
}

/// How much one statement may bring, in bytes of the rows' texts, known before they are read.
#[derive(Clone, Copy, Debug)]
pub struct Carry {
    /// A row larger than this does not come along.
    pub row: usize,
    /// Nor do those, in the order in which they were asked for, that would make the sum exceed this.
    pub all: usize,
}

impl Carry {
    /// Everything, whatever its size.
    pub const EVERYTHING: Carry = Carry { row: usize::MAX, all: usize::MAX };
}

/// What became of one run that was asked for.
#[derive(Debug)]
pub enum Found {
    /// It is there.
    Run(Box<StoredRun>),
    /// There is no such run in the environment.
    Missing,
    /// It is there and too large to come with others; about so many bytes.
    Large(usize),
    /// It is there; the others that came before it were all that could be carried.
    NotCarried,
}

impl Found {
    /// The run, if it came along.
    pub fn into_run(self) -> Option<StoredRun> {
        match self {
            Found::Run(run) => Some(*run),
            Found::Missing | Found::Large(_) | Found::NotCarried => None,
        }
    }
}

fn statement(id_column: &str) -> String {
    format!(
        r#"SELECT {LEADING}, {cells}, found.asked_as, CASE WHEN found.carried THEN found.batch_friendly_id END
           FROM {SEEN} LEFT JOIN (
             SELECT summed.*, size <= $3 AND sum <= $4 AS carried FROM (
               SELECT sized.*, row_number() OVER asked AS place,
                      sum(CASE WHEN size <= $3 THEN size ELSE 0 END) OVER asked AS sum
               FROM (
                 SELECT asked.asked_as, {columns}, b."friendlyId" AS batch_friendly_id, {size} AS size
                 FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (id, environment, asked_as)
                 JOIN "TaskRun" t ON t.{id_column} = asked.id AND t."runtimeEnvironmentId" = asked.environment
                 LEFT JOIN "BatchTaskRun" b ON b.id = t."batchId"
               ) sized
               WINDOW asked AS (ORDER BY asked_as ROWS UNBOUNDED PRECEDING)
             ) summed
           ) found ON true"#,
        cells = row::cells(|_| "found.carried".to_owned()),
        columns = row::columns_of("t"),
        size = row::size(|_| "true".to_owned()),
    )
}

static BY_FRIENDLY_ID: LazyLock<String> = LazyLock::new(|| statement(r#""friendlyId""#));
static BY_INTERNAL_ID: LazyLock<String> = LazyLock::new(|| statement("id"));

/// Reads the runs; what was found is in the order of what was `asked`.
pub(super) async fn read(
    pool: &PgPool,
    by: By,
    asked: &[RunId],
    carry: Carry,
) -> Result<(Seen, Vec<Found>), StoreError> {
    let sql = match by {
        By::FriendlyId => BY_FRIENDLY_ID.as_str(),
        By::InternalId => BY_INTERNAL_ID.as_str(),
    };
    let ids: Vec<&str> = asked.iter().map(|run| sendable(&run.id)).collect();
    let environments: Vec<&str> = asked.iter().map(|run| sendable(&run.environment)).collect();
    let bound = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);

    let mut lease = Lease::of(pool).await?;
    let mut rows = sqlx::query(sql)
        .bind(ids)
        .bind(environments)
        .bind(bound(carry.row))
        .bind(bound(carry.all))
        .fetch(lease.connection()?);
    let mut seen = None;
    let mut found: Vec<Found> = asked.iter().map(|_| Found::Missing).collect();
    while let Some(row) = rows.try_next().await? {
        if seen.is_none() {
            seen = Some(row::seen(&row)?);
        }
        let asked_as: Option<i64> = row.try_get(CELLS + Column::COUNT)?;
        let place = asked_as.and_then(|nth| found.get_mut(usize::try_from(nth - 1).ok()?));
        let Some(place) = place else { continue };
        let size = row::row_size(&row)?;
        *place = if row::carried(&row)? {
            Found::Run(Box::new(StoredRun {
                row: row::tuple(&row, ColumnSet::ALL)?,
                batch_friendly_id: row.try_get(CELLS + Column::COUNT + 1)?,
            }))
        } else if size > carry.row {
            Found::Large(size)
        } else {
            Found::NotCarried
        };
    }
    drop(rows);
    lease.done();
    Ok((seen.ok_or(StoreError::NoRow)?, found))
}

/// Postgres cannot hold NUL in a text, and one such id would fail the statement for all others. No
/// id is empty.
fn sendable(id: &str) -> &str {
    if id.contains('\0') { "" } else { id }
}
