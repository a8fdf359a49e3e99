//! Writers that make the versions of runs rise, in all the ways that a transaction can go.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use super::population::{change, create, delete, tag};
use super::random::HOT;

/// How many runs a writer makes at most, unless it has deleted all of them.
const OWN: usize = 10;

/// One who writes until it is told to stop.
pub struct Writer {
    pub url: String,
    pub environment: &'static str,
    /// Makes the names of its own runs.
    pub name: String,
    /// What all write.
    pub runs: Vec<String>,
    pub seed: u64,
    /// Waits for a standby when one is required, and holds its rows as long; the others let all go on
    /// meanwhile.
    pub patient: bool,
    pub stop: CancellationToken,
}

impl Writer {
    /// Returns how many transactions it made.
    pub async fn write(self) -> u64 {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut connection = PgConnection::connect(&self.url).await.expect("connect");
        let mut transactions = 0;
        let mut own = Own { alive: Vec::new(), made: 0 };
        while !self.stop.is_cancelled() {
            for step in self.script(&mut own, &mut rng) {
                match step {
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

    /// The statements of one transaction.
    fn script(&self, own: &mut Own, rng: &mut StdRng) -> Vec<Step> {
        let mut steps = vec![sql("BEGIN")];
        // Of the rest the server's setting decides, which waits for no standby.
        match rng.random_range(0..4) {
            _ if self.patient => steps.push(sql("SET LOCAL synchronous_commit = on")),
            0 => steps.push(sql("SET LOCAL synchronous_commit = off")),
            1 => steps.push(sql("SET LOCAL synchronous_commit = local")),
            _ => {}
        }
        let kept = if rng.random_bool(0.25) {
            self.of_own_runs(own, &mut steps, rng)
        } else {
            self.of_shared_runs(&mut steps, rng)
        };
        steps.push(sql(if kept { "COMMIT" } else { "ROLLBACK" }));
        steps
    }

    /// Changes of what all write. Rows are taken in one order, so that nobody deadlocks. Returns
    /// whether it is to stay.
    fn of_shared_runs(&self, steps: &mut Vec<Step>, rng: &mut StdRng) -> bool {
        let many = if self.patient { 3 } else { rng.random_range(3..7) };
        let runs = if rng.random_bool(0.5) { &self.runs[..HOT] } else { &self.runs };
        let mut rows: Vec<&String> = runs.choose_multiple(rng, many).collect();
        rows.sort();
        let mut changes = |rows: &[&String], rng: &mut StdRng| {
            steps.extend(rows.iter().map(|run| Step::Sql(change(run, rng))));
        };
        match rng.random_range(0..13) {
            // One row.
            0..=4 => changes(&rows[..1], rng),
            // Several rows, one of them twice.
            5..=6 => {
                changes(&rows, rng);
                changes(&rows[..1], rng);
            }
            // A part is taken back.
            7..=8 => {
                changes(&rows[..1], rng);
                steps.push(sql("SAVEPOINT a"));
                steps.extend(rows[..2].iter().map(|run| Step::Sql(change(run, rng))));
                steps.push(sql("ROLLBACK TO a"));
                steps.push(sql("SAVEPOINT b"));
                steps.extend(rows[2..].iter().map(|run| Step::Sql(change(run, rng))));
                steps.push(sql("RELEASE b"));
            }
            // Slow, while others commit.
            9 => {
                changes(&rows[..2], rng);
                steps.push(Step::Pause(Duration::from_millis(rng.random_range(20..250))));
            }
            // A change that is none to the version.
            10 => {
                let run = rows[0];
                steps.push(Step::Sql(format!(
                    r#"UPDATE "TaskRun" SET number = number + 1 WHERE "friendlyId" = '{run}'"#
                )));
                steps.push(Step::Sql(change(run, rng)));
            }
            // It enters lists, unless it was in them.
            11 => steps.push(Step::Sql(tag(rows[0], rng))),
            // Nothing of it stays.
            _ => {
                changes(&rows, rng);
                return false;
            }
        }
        true
    }

    /// A run of its own is made, changed or deleted. Returns whether it is to stay.
    fn of_own_runs(&self, own: &mut Own, steps: &mut Vec<Step>, rng: &mut StdRng) -> bool {
        let stays = rng.random_bool(0.9);
        if own.alive.is_empty() || own.made < OWN && rng.random_bool(0.35) {
            let run = format!("run_{}_{}", self.name, own.made);
            own.made += 1;
            steps.push(Step::Sql(create(self.environment, &run, rng)));
            // It enters by what comes after, or slowly.
            match rng.random_range(0..4) {
                0 => steps.push(Step::Sql(tag(&run, rng))),
                1 => steps.push(Step::Sql(change(&run, rng))),
                2 => steps.push(Step::Pause(Duration::from_millis(rng.random_range(20..1_500)))),
                _ => {}
            }
            if stays {
                own.alive.push(run);
            }
            return stays;
        }
        let at = rng.random_range(0..own.alive.len());
        let run = &own.alive[at];
        match rng.random_range(0..20) {
            0 => steps.push(Step::Sql(delete(run))),
            1 => steps.extend([Step::Sql(change(run, rng)), Step::Sql(delete(run))]),
            2..=7 => steps.push(Step::Sql(tag(run, rng))),
            _ => {
                steps.push(Step::Sql(change(run, rng)));
                return stays;
            }
        }
        if matches!(steps.last(), Some(Step::Sql(sql)) if sql.starts_with("DELETE")) && stays {
            own.alive.remove(at);
        }
        stays
    }
}

/// The runs that one writer made.
struct Own {
    alive: Vec<String>,
    made: usize,
}

enum Step {
    Sql(String),
    Pause(Duration),
}

fn sql(text: &str) -> Step {
    Step::Sql(text.to_owned())
}
