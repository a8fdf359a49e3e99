//! Writers that make the versions of runs rise, in all the ways that a transaction can go.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use super::random::HOT;
use super::standby::bump;

/// Writes until it is told to stop. `patient` ones wait for a standby when one is required, and hold
/// their rows as long; the others let all go on meanwhile.
pub async fn write(
    url: String,
    runs: Vec<String>,
    seed: u64,
    patient: bool,
    stop: CancellationToken,
) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut connection = PgConnection::connect(&url).await.expect("connect");
    let mut transactions = 0;
    while !stop.is_cancelled() {
        for statement in script(&runs, patient, &mut rng) {
            match statement {
                Step::Sql(sql) => {
                    let done = sqlx::raw_sql(AssertSqlSafe(sql.as_str()));
                    let done = done.execute(&mut connection).await;
                    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
                }
                Step::Pause(pause) => tokio::time::sleep(pause).await,
            }
        }
        transactions += 1;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..10))).await;
    }
    let _ = connection.close().await;
    transactions
}

enum Step {
    Sql(String),
    Pause(Duration),
}

/// The statements of one transaction. Rows are taken in one order, so that nobody deadlocks.
fn script(runs: &[String], patient: bool, rng: &mut StdRng) -> Vec<Step> {
    let many = if patient { 3 } else { rng.random_range(3..7) };
    let runs = if rng.random_bool(0.5) { &runs[..HOT] } else { runs };
    let mut rows: Vec<&String> = runs.choose_multiple(rng, many).collect();
    rows.sort();
    let sql = |text: &str| Step::Sql(text.to_owned());
    let bumps = |rows: &[&String]| rows.iter().map(|run| Step::Sql(bump(run))).collect::<Vec<_>>();
    let mut steps = vec![sql("BEGIN")];
    // Of the rest the server's setting decides, which waits for no standby.
    match rng.random_range(0..4) {
        _ if patient => steps.push(sql("SET LOCAL synchronous_commit = on")),
        0 => steps.push(sql("SET LOCAL synchronous_commit = off")),
        1 => steps.push(sql("SET LOCAL synchronous_commit = local")),
        _ => {}
    }
    match rng.random_range(0..12) {
        // One row.
        0..=4 => steps.extend(bumps(&rows[..1])),
        // Several rows, one of them twice.
        5..=6 => {
            steps.extend(bumps(&rows));
            steps.extend(bumps(&rows[..1]));
        }
        // A part is taken back.
        7..=8 => {
            steps.extend(bumps(&rows[..1]));
            steps.push(sql("SAVEPOINT a"));
            steps.extend(bumps(&rows[..2]));
            steps.push(sql("ROLLBACK TO a"));
            steps.push(sql("SAVEPOINT b"));
            steps.extend(bumps(&rows[2..]));
            steps.push(sql("RELEASE b"));
        }
        // Slow, while others commit.
        9 => {
            steps.extend(bumps(&rows[..2]));
            steps.push(Step::Pause(Duration::from_millis(rng.random_range(20..250))));
        }
        // A change that is none to the version, and one of a large column.
        10 => {
            let run = rows[0];
            steps.push(Step::Sql(format!(
                r#"UPDATE "TaskRun" SET number = number + 1 WHERE "friendlyId" = '{run}'"#
            )));
            steps.extend(bumps(&rows[..1]));
        }
        // Nothing of it stays.
        _ => {
            steps.extend(bumps(&rows));
            steps.push(sql("ROLLBACK"));
            return steps;
        }
    }
    steps.push(sql("COMMIT"));
    steps
}
