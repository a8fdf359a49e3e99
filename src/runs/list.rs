//! The runs of a list, in one statement.

use std::sync::{Arc, LazyLock};

use futures_util::TryStreamExt as _;
use sqlx::postgres::PgPool;

use super::columns::{Column, ColumnSet};
use super::lease::Lease;
use super::row::{self, LARGE, LEADING, SEEN};
use super::store::{Seen, StoreError};
use super::tuple::Tuple;

/// Which runs, which of their columns, and how many at most.
#[derive(Clone, Debug)]
pub struct ListQuery {
    /// The environment that they belong to.
    pub environment: Arc<str>,
    /// Which of its runs.
    pub which: Which,
    /// The columns that are read, beside those that Runwire routes by.
    pub columns: ColumnSet,
    /// How many rows at most.
    pub max_rows: usize,
    /// How many bytes of rows at most, as far as their lengths are known before they are read. One
    /// row comes in any case.
    pub max_bytes: usize,
}

/// Which of an environment's runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that have all of these tags, of which there may be none.
    Tags {
        /// The tags, exactly as they are, without NUL, which the door refuses.
        tags: Arc<[Box<str>]>,
        /// Created then or later: `YYYY-MM-DD HH:MM:SS` of UTC.
        created_from: String,
    },
    /// Those that have any of these tags.
    AnyTag {
        /// The tags, as above.
        tags: Vec<Box<str>>,
        /// As above.
        created_from: String,
    },
    /// Those of a batch.
    Batch {
        /// The batch's internal id.
        id: Arc<str>,
    },
}

/// What a list held.
#[derive(Debug)]
pub struct List {
    /// What the query saw.
    pub seen: Seen,
    /// The rows, newest first. Columns that were neither asked for nor routed by are unknown.
    pub rows: Vec<Tuple>,
    /// Whether there are more than the bounds let in.
    pub truncated: bool,
}

/// What Runwire routes by, and so always reads.
const ROUTING: ColumnSet = ColumnSet::EMPTY
    .with(Column::Id)
    .with(Column::FriendlyId)
    .with(Column::CreatedAt)
    .with(Column::RunTags)
    .with(Column::RuntimeEnvironmentId)
    .with(Column::BatchId);

/// Four parameters say which of the large columns to read, so that there are four statements and
/// not one for every set of columns. What is not wanted is neither measured nor fetched.
fn statement(condition: &str) -> String {
    let wanted = |column| match LARGE.iter().position(|large| *large == column) {
        Some(nth) => format!("${}", nth + 4),
        None => "true".to_owned(),
    };
    format!(
        r#"SELECT {LEADING}, {cells} FROM {SEEN} LEFT JOIN (
             SELECT summed.*, (sum <= $3 OR place = 1) AND place < $2 AS carried FROM (
               SELECT sized.*, row_number() OVER newest AS place, sum(size) OVER newest AS sum
               FROM (
                 SELECT {columns}, {size} AS size FROM "TaskRun" t
                 WHERE t."runtimeEnvironmentId" = $1 AND {condition}
                 ORDER BY t."createdAt" DESC, t.id DESC LIMIT $2
               ) sized
               WINDOW newest AS (ORDER BY "createdAt" DESC, id DESC ROWS UNBOUNDED PRECEDING)
             ) summed
           ) found ON true"#,
        cells = row::cells(|column| format!("found.carried AND {}", wanted(column))),
        columns = row::columns_of("t"),
        size = row::size(wanted),
    )
}

// The parameters are typed as the columns are: a cast of the column would keep its index out.
static SINCE: LazyLock<String> =
    LazyLock::new(|| statement(r#"t."createdAt" >= $8::text::timestamp"#));
static TAGGED: LazyLock<String> = LazyLock::new(|| {
    statement(r#"t."createdAt" >= $8::text::timestamp AND t."runTags" @> $9::text[]"#)
});
static ANY_TAG: LazyLock<String> = LazyLock::new(|| {
    statement(r#"t."createdAt" >= $8::text::timestamp AND t."runTags" && $9::text[]"#)
});
static BATCH: LazyLock<String> = LazyLock::new(|| statement(r#"t."batchId" = $8"#));

/// Reads the list.
pub(super) async fn read(pool: &PgPool, list: &ListQuery) -> Result<List, StoreError> {
    let sql = match &list.which {
        Which::Tags { tags, .. } if tags.is_empty() => SINCE.as_str(),
        Which::Tags { .. } => TAGGED.as_str(),
        Which::AnyTag { .. } => ANY_TAG.as_str(),
        Which::Batch { .. } => BATCH.as_str(),
    };
    let bound = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let mut query = sqlx::query(sql)
        // Parsed anew every time, since a plan that is kept knows neither how rare the tags are nor
        // how long ago the list begins: for 200,000 runs, a second instead of a millisecond.
        .persistent(false)
        .bind(&*list.environment)
        // One more than fits shows that there are more.
        .bind(bound(list.max_rows.saturating_add(1)))
        .bind(bound(list.max_bytes));
    for column in LARGE {
        query = query.bind(list.columns.contains(column));
    }
    query = match &list.which {
        Which::Tags { tags, created_from } if tags.is_empty() => query.bind(created_from),
        Which::Tags { tags, created_from } => {
            query.bind(created_from).bind(tags.iter().map(|tag| &**tag).collect::<Vec<_>>())
        }
        Which::AnyTag { tags, created_from } => {
            query.bind(created_from).bind(tags.iter().map(|tag| &**tag).collect::<Vec<_>>())
        }
        Which::Batch { id } => query.bind(&**id),
    };
    let known = list.columns.union(ROUTING);

    let mut lease = Lease::of(pool).await?;
    let mut found = query.fetch(lease.connection()?);
    let (mut seen, mut rows, mut truncated) = (None, Vec::new(), false);
    let mut next = 1;
    while let Some(row) = found.try_next().await? {
        if seen.is_none() {
            seen = Some(row::seen(&row)?);
        }
        match row::place(&row)? {
            None => {}
            // Nothing in SQL says that a join keeps an order, though Postgres' does.
            Some(place) if place != next => return Err(StoreError::Disorder),
            Some(_) if row::carried(&row)? => rows.push(row::tuple(&row, known)?),
            Some(_) => truncated = true,
        }
        next += 1;
    }
    drop(found);
    lease.done();
    Ok(List { seen: seen.ok_or(StoreError::NoRow)?, rows, truncated })
}
