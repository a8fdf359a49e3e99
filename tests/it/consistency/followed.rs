//! What a subscriber follows, and what it must hold of it at the end: the table's own rows, put into
//! the clients' form by SQL and not by the code under test.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, PgPool};

/// A row as a client holds it.
pub type Row = Map<String, Value>;
/// Rows by the run's internal id.
pub type Rows = BTreeMap<String, Arc<Row>>;

/// A feed of one environment.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    /// A run, by its friendly id.
    Run(String),
    /// A list.
    List(List),
    /// A batch, by its friendly id.
    Batch(String),
}

/// A list and what a client asks of it.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// Runs that carry all of these.
    pub tags: &'static [&'static str],
    /// Runs of the last hour alone.
    pub recent: bool,
    /// Columns that are left out.
    pub skipped: &'static [&'static str],
}

impl Followed {
    /// The path of its requests, up to where the protocol's parameters go.
    pub fn path(&self) -> String {
        match self {
            Followed::Run(run) => format!("/realtime/v1/runs/{run}?"),
            Followed::Batch(batch) => format!("/realtime/v1/batches/{batch}?"),
            Followed::List(list) => {
                let mut path = "/realtime/v1/runs?".to_owned();
                let parameters = [
                    ("tags", list.tags.join(",")),
                    ("skipColumns", list.skipped.join(",")),
                    ("createdAt", if list.recent { "1h".to_owned() } else { String::new() }),
                ];
                for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
                    path.push_str(&format!("{name}={value}&"));
                }
                path
            }
        }
    }

    /// Whether a row that a client was sent belongs to it, as far as the row tells.
    pub fn holds(&self, row: &Row) -> bool {
        match self {
            Followed::Run(run) => row["friendlyId"] == run.as_str(),
            Followed::Batch(_) => true,
            Followed::List(list) => {
                let tags = row.get("runTags").and_then(Value::as_str).unwrap_or_default();
                list.tags.iter().all(|tag| tags.contains(&format!("\"{tag}\"")))
            }
        }
    }

    /// The columns that its rows have, in order.
    pub fn columns(&self) -> Vec<&'static str> {
        let skipped = match self {
            Followed::List(list) => list.skipped,
            _ => &[],
        };
        COLUMNS.iter().map(|(name, _)| *name).filter(|name| !skipped.contains(name)).collect()
    }

    /// The rows that a client must hold now.
    pub async fn rows(&self, pool: &PgPool, environment: &str) -> Rows {
        let (condition, argument) = match self {
            Followed::Run(run) => (r#""friendlyId" = $2[1]"#, vec![run.as_str()]),
            Followed::Batch(batch) => (
                r#""batchId" = (SELECT id FROM "BatchTaskRun" WHERE "friendlyId" = $2[1])"#,
                vec![batch.as_str()],
            ),
            Followed::List(list) => {
                (r#"coalesce("runTags", '{}') @> $2::text[]"#, list.tags.to_vec())
            }
        };
        let recent = matches!(self, Followed::List(List { recent: true, .. }));
        let sql = format!(
            r#"SELECT id, {}::text FROM "TaskRun" WHERE "runtimeEnvironmentId" = $1 AND {condition}
               AND (NOT $3 OR "createdAt" > now() AT TIME ZONE 'UTC' - interval '90 minutes')"#,
            object(&self.columns())
        );
        let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(environment)
            .bind(argument)
            .bind(recent)
            .fetch_all(pool)
            .await
            .expect("read the table");
        let row = |(id, text): (String, String)| {
            (id, Arc::new(serde_json::from_str(&text).expect("a JSON object")))
        };
        rows.into_iter().map(row).collect()
    }
}

/// The internal ids of all runs that there are.
pub async fn all_ids(pool: &PgPool) -> BTreeSet<String> {
    let ids = sqlx::query_scalar(r#"SELECT id FROM "TaskRun""#).fetch_all(pool).await;
    ids.expect("read the table").into_iter().collect()
}

#[derive(Clone, Copy)]
enum Form {
    Text,
    Time,
    Bool,
    List,
}

const COLUMNS: [(&str, Form); 26] = [
    ("id", Form::Text),
    ("taskIdentifier", Form::Text),
    ("createdAt", Form::Time),
    ("updatedAt", Form::Time),
    ("startedAt", Form::Time),
    ("delayUntil", Form::Time),
    ("queuedAt", Form::Time),
    ("expiredAt", Form::Time),
    ("completedAt", Form::Time),
    ("friendlyId", Form::Text),
    ("number", Form::Text),
    ("isTest", Form::Bool),
    ("status", Form::Text),
    ("usageDurationMs", Form::Text),
    ("costInCents", Form::Text),
    ("baseCostInCents", Form::Text),
    ("ttl", Form::Text),
    ("payload", Form::Text),
    ("payloadType", Form::Text),
    ("metadata", Form::Text),
    ("metadataType", Form::Text),
    ("output", Form::Text),
    ("outputType", Form::Text),
    ("runTags", Form::List),
    ("error", Form::Text),
    ("realtimeStreams", Form::List),
];

/// The SQL of an object of these columns in the clients' form.
fn object(columns: &[&str]) -> String {
    let members: Vec<String> = COLUMNS
        .iter()
        .filter(|(name, _)| columns.contains(name))
        .map(|(name, form)| {
            let value = match form {
                Form::Text => format!(r#""{name}"::text"#),
                Form::Time => format!(r#"to_char("{name}", 'YYYY-MM-DD"T"HH24:MI:SS.MS')"#),
                Form::Bool => format!(r#"CASE WHEN "{name}" THEN 't' ELSE 'f' END"#),
                Form::List => format!(
                    r#"'{{' || array_to_string(ARRAY(SELECT '"' || regexp_replace(element, '(["\\])', '\\\1', 'g') || '"'
                       FROM unnest("{name}") WITH ORDINALITY AS u (element, place) ORDER BY place), ',') || '}}'
                       || CASE WHEN "{name}" IS NULL THEN NULL ELSE '' END"#
                ),
            };
            format!("'{name}', {value}")
        })
        .collect();
    format!("jsonb_build_object({})", members.join(", "))
}
