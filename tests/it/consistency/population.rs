//! The runs that the random test writes, and the statements that do so. Each raises the version.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use runwire::dev::Environment;
use sqlx::{AssertSqlSafe, PgPool};

/// The tags that runs carry or are given.
pub const TAGS: [&str; 4] = ["red", "green", "blue", "white"];
/// The batches' internal ids; the friendly ones begin with `batch_`.
pub const BATCHES: [&str; 2] = ["b0", "b1"];

/// Makes the batches, and the runs of these friendly ids.
pub async fn populate(pool: &PgPool, environment: &Environment, runs: &[String], rng: &mut StdRng) {
    let mut sql = String::new();
    for batch in BATCHES {
        sql.push_str(&format!(
            r#"INSERT INTO "BatchTaskRun" (id, "friendlyId", "runtimeEnvironmentId", "updatedAt")
               VALUES ('{batch}', 'batch_{batch}', '{}', now());"#,
            environment.id
        ));
    }
    for run in runs {
        sql.push_str(&create(environment.id, run, rng));
        sql.push(';');
    }
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.expect("make the runs");
}

/// A statement that inserts a run at its first version: with any tags, in a batch or in none, new or
/// of yesterday, sometimes with tags or an output that are stored out of line.
pub fn create(environment: &str, run: &str, rng: &mut StdRng) -> String {
    let tags = match rng.random_range(0..4) {
        0 => "NULL".to_owned(),
        1 => "'{}'".to_owned(),
        _ => {
            let many = rng.random_range(1..TAGS.len());
            let tags: Vec<&str> = TAGS.choose_multiple(rng, many).copied().collect();
            let more = if rng.random_bool(0.3) { MANY_TAGS } else { "'{}'" };
            format!("'{{{}}}'::text[] || {more}", tags.join(","))
        }
    };
    let batch = match BATCHES.choose(rng).filter(|_| rng.random_bool(0.6)) {
        Some(batch) => format!("'{batch}'"),
        None => "NULL".to_owned(),
    };
    let age = if rng.random_bool(0.2) { "3 hours" } else { "0" };
    let output = if rng.random_bool(0.4) { LARGE } else { "NULL" };
    let id = run.trim_start_matches("run_");
    format!(
        r#"INSERT INTO "TaskRun" (id, "friendlyId", "runtimeEnvironmentId", "projectId", "taskIdentifier", payload,
             queue, "traceId", "spanId", "createdAt", "updatedAt", "runTags", "batchId", output, metadata)
           VALUES ('{id}', '{run}', '{environment}', 'project_shop', 'hello', '{{}}', 'task/hello', 't', 's',
             clock_timestamp() AT TIME ZONE 'UTC' - interval '{age}', clock_timestamp() AT TIME ZONE 'UTC',
             {tags}, {batch}, {output}, '{{"v": 1}}')"#
    )
}

const LARGE: &str =
    "(SELECT string_agg(md5(i::text || random()), '') FROM generate_series(1, 200) i)";

/// More than fit into a row, so that the stream brings a run's tags when they change and not otherwise.
const MANY_TAGS: &str = "(SELECT array_agg(md5(i::text || random()) || md5(random()::text)) FROM generate_series(1, 40) i)";

const NEXT: &str = r#"metadata = jsonb_build_object('v', coalesce((metadata::jsonb ->> 'v')::bigint, 0) + 1)::text"#;

/// A statement that makes the run's version the next, and mostly nothing else.
pub fn change(run: &str, rng: &mut StdRng) -> String {
    let more = match rng.random_range(0..20) {
        0 => r#", "updatedAt" = clock_timestamp() AT TIME ZONE 'UTC'"#.to_owned(),
        1 => format!(", output = {LARGE}"),
        2 => ", output = NULL".to_owned(),
        3 => r#", status = 'EXECUTING', "startedAt" = now()"#.to_owned(),
        4 => r#", "isTest" = NOT "isTest", "costInCents" = random()"#.to_owned(),
        _ => String::new(),
    };
    format!(r#"UPDATE "TaskRun" SET {NEXT}{more} WHERE "friendlyId" = '{run}'"#)
}

/// A statement that gives the run a tag, unless it has it.
pub fn tag(run: &str, rng: &mut StdRng) -> String {
    let tag = TAGS.choose(rng).expect("a tag");
    format!(
        r#"UPDATE "TaskRun" SET {NEXT}, "runTags" = array_append("runTags", '{tag}')
           WHERE "friendlyId" = '{run}' AND NOT coalesce("runTags", '{{}}') @> '{{{tag}}}'"#
    )
}

/// A statement that ends the run.
pub fn delete(run: &str) -> String {
    format!(r#"DELETE FROM "TaskRun" WHERE "friendlyId" = '{run}'"#)
}
