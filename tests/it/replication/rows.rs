//! Random rows, with all that is awkward in them.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use runwire::runs::columns::{Column, Kind};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::support::cluster::Database;

/// A row as a query shows it, in the order of [`Column::ALL`].
pub type Cells = Vec<Option<String>>;

/// Writes random rows, and reads them back in the same statement.
pub struct Writer {
    connection: PgConnection,
    written: u32,
}

impl Writer {
    pub async fn connect(database: &Database) -> Writer {
        let mut connection = PgConnection::connect(&database.url).await.unwrap();
        let pinned = "SET datestyle = 'ISO'; SET extra_float_digits = 3; SET timezone = 'UTC'";
        sqlx::raw_sql(pinned).execute(&mut connection).await.unwrap();
        Writer { connection, written: 0 }
    }

    pub async fn insert(&mut self, random: &mut StdRng) -> Cells {
        self.written += 1;
        let id = format!("r{}", self.written);
        let fixed = |column| match column {
            Column::Id => Some(id.clone()),
            Column::FriendlyId => Some(format!("run_{id}")),
            Column::RuntimeEnvironmentId => Some("env_prod".to_owned()),
            _ => None,
        };
        let values: Vec<(Column, Option<String>)> = Column::ALL
            .into_iter()
            .map(|column| (column, fixed(column).or_else(|| value(column, random))))
            .collect();
        let names: Vec<String> =
            values.iter().map(|(column, _)| format!(r#""{}""#, column.name())).collect();
        let places: Vec<String> = values.iter().enumerate().map(place).collect();
        let sql = format!(
            r#"INSERT INTO "TaskRun" ({}, "projectId", queue, "traceId", "spanId")
               VALUES ({}, 'project_shop', 'task/hello', 't', 's') RETURNING {}"#,
            names.join(", "),
            places.join(", "),
            returning()
        );
        self.write(&sql, values).await
    }

    pub async fn update(&mut self, random: &mut StdRng, before: &Cells) -> Cells {
        let key = [Column::Id, Column::FriendlyId, Column::RuntimeEnvironmentId];
        let mut values = Vec::new();
        for column in Column::ALL {
            if !key.contains(&column) && column != Column::Number && random.random_bool(0.2) {
                values.push((column, value(column, random)));
            }
        }
        // An update of nothing is one, too.
        let kept = before[Column::Number as usize].clone();
        values.push((Column::Number, kept));
        let sets: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(i, value)| format!(r#""{}" = {}"#, value.0.name(), place((i, value))))
            .collect();
        let id = before[0].as_deref().unwrap();
        let sql = format!(
            r#"UPDATE "TaskRun" SET {} WHERE id = '{id}' RETURNING {}"#,
            sets.join(", "),
            returning()
        );
        self.write(&sql, values).await
    }

    async fn write(&mut self, sql: &str, values: Vec<(Column, Option<String>)>) -> Cells {
        let mut query = sqlx::query(AssertSqlSafe(sql.to_owned()));
        for (_, value) in values {
            query = query.bind(value);
        }
        let row: PgRow = query.fetch_one(&mut self.connection).await.unwrap();
        (0..Column::COUNT).map(|i| row.get(i)).collect()
    }
}

/// A placeholder, cast from text to the column's type.
fn place((i, (column, _)): (usize, &(Column, Option<String>))) -> String {
    let kind = match column.kind() {
        Kind::Text if *column == Column::Status => r#""TaskRunStatus""#,
        Kind::Text => "text",
        Kind::Timestamp => "timestamp(3)",
        Kind::Bool => "boolean",
        Kind::Int4 => "integer",
        Kind::Float8 => "float8",
        Kind::TextArray => "text[]",
        Kind::Jsonb => "jsonb",
    };
    format!("${}::text::{kind}", i + 1)
}

fn returning() -> String {
    let cells: Vec<String> =
        Column::ALL.iter().map(|column| format!(r#""{}"::text"#, column.name())).collect();
    cells.join(", ")
}

/// A random value of the column, as text; NULL now and then where it may be.
fn value(column: Column, random: &mut StdRng) -> Option<String> {
    use Column::*;
    let nullable = matches!(
        column,
        StartedAt
            | DelayUntil
            | QueuedAt
            | ExpiredAt
            | CompletedAt
            | Ttl
            | Metadata
            | Output
            | RunTags
            | Error
            | RealtimeStreams
            | BatchId
    );
    if nullable && random.random_bool(0.25) {
        return None;
    }
    let large = matches!(column, Payload | Metadata | Output) && random.random_bool(0.3);
    Some(match column.kind() {
        Kind::Text if column == Status => {
            let all = ["PENDING", "EXECUTING", "DEQUEUED", "COMPLETED_SUCCESSFULLY", "EXPIRED"];
            all.choose(random).unwrap().to_string()
        }
        Kind::Text if large => incompressible(random),
        Kind::Text => text(random),
        Kind::Timestamp => timestamp(random),
        Kind::Bool => random.random_bool(0.5).to_string(),
        Kind::Int4 => random.random::<i32>().to_string(),
        Kind::Float8 => float(random),
        Kind::TextArray => array(random),
        Kind::Jsonb => json(random, 3).to_string(),
    })
}

/// Too large to stay in the row, and random, so that compression does not make it small.
fn incompressible(random: &mut StdRng) -> String {
    let length = random.random_range(3_000..40_000);
    (0..length).map(|_| char::from(random.random_range(b'!'..=b'~'))).collect()
}

fn text(random: &mut StdRng) -> String {
    let awkward = [
        "",
        " ",
        "NULL",
        "null",
        "{}",
        "{a,b}",
        "\"",
        "\\",
        "'",
        "a,b",
        "\n",
        "\r\n",
        "\t",
        "\u{1}",
        "\u{7f}",
        "ä",
        "☃",
        "🦀",
        "e\u{301}",
        "\u{202e}",
        "\u{feff}",
        "\u{2028}",
        "\\N",
        "\\x41",
        "%",
        "</script>",
        "\u{10ffff}",
    ];
    (0..random.random_range(0..6)).map(|_| *awkward.choose(random).unwrap()).collect()
}

fn timestamp(random: &mut StdRng) -> String {
    if random.random_bool(0.05) {
        let odd = ["infinity", "-infinity", "0044-03-15 01:02:03.004 BC", "12026-01-01 00:00:00.5"];
        return odd.choose(random).unwrap().to_string();
    }
    let mut part = |range: std::ops::RangeInclusive<u32>| random.random_range(range);
    let (year, month, day) = (part(1..=9999), part(1..=12), part(1..=28));
    let (hour, minute, second) = (part(0..=23), part(0..=59), part(0..=59));
    let fraction = ["", ".5", ".25", ".125", ".001", ".100", ".999", ".000"];
    let fraction = fraction.choose(random).unwrap();
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}{fraction}")
}

fn float(random: &mut StdRng) -> String {
    let odd = ["0", "-0", "NaN", "Infinity", "-Infinity", "1e-7", "1e15", "0.30000000000000004"];
    match random.random_bool(0.3) {
        true => odd.choose(random).unwrap().to_string(),
        false => f64::from_bits(random.random()).to_string().replace("inf", "Infinity"),
    }
}

fn array(random: &mut StdRng) -> String {
    let element = |random: &mut StdRng| {
        if random.random_bool(0.1) {
            return "NULL".to_owned();
        }
        format!("\"{}\"", text(random).replace('\\', "\\\\").replace('"', "\\\""))
    };
    let elements: Vec<String> = (0..random.random_range(0..5)).map(|_| element(random)).collect();
    format!("{{{}}}", elements.join(","))
}

fn json(random: &mut StdRng, depth: u32) -> serde_json::Value {
    use serde_json::Value;
    match random.random_range(0..if depth == 0 { 4 } else { 6 }) {
        0 => Value::Null,
        1 => random.random_bool(0.5).into(),
        2 => random.random_range(-1e12..1e12).into(),
        3 => text(random).into(),
        4 => (0..random.random_range(0..4)).map(|_| json(random, depth - 1)).collect(),
        _ => (0..random.random_range(0..4))
            .map(|_| (text(random), json(random, depth - 1)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}
