//! What waits in the slot when Runwire comes back: how fast it is taken in, and at what cost.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use sqlx::{Connection, PgConnection, Row};

use crate::bench::{Bench, Gateway};
use crate::cores::on_core;
use crate::database;
use crate::layout::Layout;
use crate::process::{cpu, cpu_of_ended_children, cpu_with_children};
use crate::report::Report;
use crate::scenarios::walsender::{drop_slot, make_slot};
use crate::statistics::{median, middle_and_range};

/// How many runs the changes fall on.
const RUNS: usize = 10_000;
/// The slot and the publication that `pg_recvlogical` reads.
const NAME: &str = "load_backlog";

#[derive(Args)]
pub struct Backlog {
    /// Changes committed while Runwire is down, each a transaction of its own
    #[arg(long, default_value_t = 200_000)]
    changes: usize,
}

/// One draining of one backlog.
#[derive(Clone, Copy, Debug)]
struct Drain {
    /// From the start of the process until it was done.
    wall: Duration,
    /// Its CPU time.
    cpu: Duration,
    /// Postgres' CPU time meanwhile.
    postgres: Duration,
}

/// What was found.
#[derive(Default)]
struct Found {
    /// Runwire, until it was ready.
    runwire: Vec<Drain>,
    /// `pg_recvlogical`, until it had received all; empty where there is none.
    receiver: Vec<Drain>,
    /// Seconds until Runwire was ready again after a restart on a full window.
    restarts: Vec<f64>,
    /// Seconds that Runwire took to stop before.
    stops: Vec<f64>,
}

impl Backlog {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let gateway = bench.gateway.as_ref().context("a backlog needs a database")?;
        let changes = self.changes;
        let found = measure(bench, gateway, changes).await?;
        report.heading(&format!(
            "Backlog: {changes} changes, each a transaction, committed while Runwire was down"
        ));
        report.table([
            "who drains",
            "wall, s (min–max)",
            "CPU, µs per change",
            "Postgres CPU, µs per change",
            "changes/s",
        ]);
        for (who, drains) in [
            ("Runwire, from start to ready", &found.runwire),
            ("pg_recvlogical to /dev/null", &found.receiver),
        ] {
            let wall = || drains.iter().map(|drain| drain.wall.as_secs_f64());
            let each = |value: fn(&Drain) -> Duration| {
                let all = drains.iter().map(|drain| value(drain).as_secs_f64());
                format!("{:.1}", median(all) * 1e6 / changes as f64)
            };
            report.row([
                who.to_owned(),
                middle_and_range(wall(), 2),
                each(|drain| drain.cpu),
                each(|drain| drain.postgres),
                format!("{:.0}", changes as f64 / median(wall()).max(1e-9)),
            ]);
        }
        report.line("");
        report.line(&format!(
            "Ready again after a restart on the window that the backlog had filled: {} s. Stopping by SIGTERM before it took {} s.",
            middle_and_range(found.restarts, 2),
            middle_and_range(found.stops, 2),
        ));
        Ok(())
    }
}

/// Makes a backlog in two slots, drains it with Runwire and with `pg_recvlogical`, restarts Runwire;
/// all of it as often as the bench repeats.
async fn measure(bench: &Bench, gateway: &Gateway, changes: usize) -> Result<Found> {
    let database = &gateway.database;
    database::seed(&database.url, Layout::runs(RUNS)).await?;
    let mut connection = PgConnection::connect(&database.url).await?;
    make_slot(&mut connection, NAME).await?;
    let receiver = database.programs.join("pg_recvlogical");
    let runwire = bench.runwire(gateway, "permanent");
    // Makes the permanent slot.
    runwire.start()?.stop()?;

    let mut found = Found::default();
    for turn in 1..=bench.repeat {
        let end = make_changes(&mut connection, changes).await?;

        let before = cpu_with_children(database.pid)?;
        let server = runwire.start()?;
        let drain = Drain {
            wall: server.ready_after,
            cpu: cpu(server.pid())?,
            postgres: cpu_with_children(database.pid)?.saturating_sub(before),
        };
        eprintln!("runwire #{turn}: {drain:?}");
        found.runwire.push(drain);
        found.stops.push(server.stop()?.as_secs_f64());
        let server = runwire.start()?;
        found.restarts.push(server.ready_after.as_secs_f64());
        server.stop()?;

        if receiver.exists() {
            let before = cpu_with_children(database.pid)?;
            let own = cpu_of_ended_children(std::process::id())?;
            let began = Instant::now();
            // On Runwire's core, beside nobody, as Runwire was.
            let status = on_core(bench.server_core, || {
                Command::new(&receiver)
                    .args(["--start", "-f", "/dev/null", "-S", NAME, "-d", &database.url])
                    .args(["--endpos", &end, "-o", "proto_version=1", "-o"])
                    .arg(format!("publication_names={NAME}"))
                    .stdin(Stdio::null())
                    .status()
                    .context("running pg_recvlogical")
            })?;
            anyhow::ensure!(status.success(), "pg_recvlogical failed");
            let drain = Drain {
                wall: began.elapsed(),
                cpu: cpu_of_ended_children(std::process::id())?.saturating_sub(own),
                postgres: cpu_with_children(database.pid)?.saturating_sub(before),
            };
            eprintln!("pg_recvlogical #{turn}: {drain:?}");
            found.receiver.push(drain);
        }
    }
    drop_slot(&mut connection, NAME).await?;
    Ok(found)
}

/// Commits that many updates, each a transaction, and returns the log's end. The server loops by itself
/// and waits for no flush, since the making is not what is measured.
async fn make_changes(connection: &mut PgConnection, changes: usize) -> Result<String> {
    let changes = format!(
        r#"DO $$ BEGIN
            FOR n IN 1..{changes} LOOP
                UPDATE "TaskRun" SET "updatedAt" = now(), metadata = '{{"n":' || n || '}}'
                    WHERE id = 'cload' || lpad((n * 7919 % {RUNS})::text, 20, '0');
                COMMIT;
            END LOOP;
        END $$"#
    );
    // One by one: statements sent together are one transaction, in which none can be committed.
    for statement in
        ["SET synchronous_commit = off", &changes, "RESET synchronous_commit", "CHECKPOINT"]
    {
        // The texts are made of constants and numbers.
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut *connection).await?;
    }
    let end = sqlx::query("SELECT pg_current_wal_flush_lsn()::text").fetch_one(connection).await?;
    Ok(end.try_get(0)?)
}
