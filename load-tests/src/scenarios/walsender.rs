//! How long Postgres itself takes to send a committed change: the part of every latency that no
//! receiver can undercut.

use std::collections::HashMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use sqlx::{Connection, PgConnection};

use crate::answer::number;
use crate::bench::Bench;
use crate::database::{self, Database};
use crate::latency::signed_ms;
use crate::layout::Layout;
use crate::report::Report;
use crate::runs::FIRST_VERSION;
use crate::statistics::Percentiles;
use crate::writer::Writer;

const NAME: &str = "load_walsender";

#[derive(Args)]
pub struct Walsender {
    /// Measured commits
    #[arg(long, default_value_t = 300)]
    updates: usize,
}

impl Walsender {
    pub async fn run(&self, bench: &Bench, report: &mut Report) -> Result<()> {
        let gateway = bench.gateway.as_ref().context("the walsender needs a database")?;
        report.heading("The walsender alone: from COMMIT to a bare logical receiver");
        match latency(&gateway.database, self.updates).await? {
            Some(found) => report.line(&format!(
                "p50 {:.2} / p90 {:.2} / p99 {:.2} / max {:.2} ms over {} commits, received by \
                 pg_recvlogical and read from its pipe.",
                found.p50, found.p90, found.p99, found.max, self.updates
            )),
            None => report.line("Not measured: there is no pg_recvlogical beside this Postgres."),
        }
        Ok(())
    }
}

/// `pg_recvlogical` on a slot of its own, killed when dropped.
struct Receiver(Child);

impl Drop for Receiver {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// From COMMIT to `pg_recvlogical`'s output, in ms; `None` where the program is missing.
async fn latency(database: &Database, updates: usize) -> Result<Option<Percentiles>> {
    let program = database.programs.join("pg_recvlogical");
    if !program.exists() {
        return Ok(None);
    }
    database::seed(&database.url, Layout::runs(1)).await?;
    let mut connection = PgConnection::connect(&database.url).await?;
    make_slot(&mut connection, NAME).await?;
    let mut receiver = Receiver(
        Command::new(program)
            .args(["--start", "-f", "-", "-S", NAME, "-d", &database.url])
            .args(["-o", "proto_version=1", "-o"])
            .arg(format!("publication_names={NAME}"))
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut output = receiver.0.stdout.take().context("pg_recvlogical has no output")?;
    let (seen, arrivals) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        // Ends with the receiver, or when nobody listens.
        while let Ok(read) = output.read(&mut bytes) {
            let at = Instant::now();
            for place in memchr::memmem::find_iter(&bytes[..read], br#"{"v":"#) {
                if let Some(version) = number(&bytes[place + 5..read])
                    && seen.send((version, at)).is_err()
                {
                    return;
                }
            }
            if read == 0 {
                return;
            }
        }
    });

    let writer = Writer::postgres(database.url.clone());
    let mut version = FIRST_VERSION;
    let mut commits = Vec::with_capacity(updates);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..updates {
        version += 1;
        commits.push((version, writer.change(&[(0, version)]).await?.at));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(receiver);
    let arrivals: HashMap<u64, Instant> = arrivals.into_iter().collect();
    let latencies: Vec<f64> = commits
        .iter()
        .filter_map(|(version, commit)| Some(signed_ms(*arrivals.get(version)?, *commit)))
        .collect();
    anyhow::ensure!(latencies.len() == updates, "pg_recvlogical got {} changes", latencies.len());
    drop_slot(&mut connection, NAME).await?;
    Ok(Some(Percentiles::of(latencies)))
}

/// Makes a publication of the runs and a slot, both of this name.
pub async fn make_slot(connection: &mut PgConnection, name: &'static str) -> Result<()> {
    let publication = format!(r#"CREATE PUBLICATION {name} FOR TABLE "TaskRun""#);
    sqlx::raw_sql(sqlx::AssertSqlSafe(publication)).execute(&mut *connection).await?;
    sqlx::query("SELECT pg_create_logical_replication_slot($1, 'pgoutput')")
        .bind(name)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes both. The slot is waited for while its last receiver is still on its way out.
pub async fn drop_slot(connection: &mut PgConnection, name: &'static str) -> Result<()> {
    for attempt in 0.. {
        let dropped = sqlx::query("SELECT pg_drop_replication_slot($1)").bind(name);
        match dropped.execute(&mut *connection).await {
            Ok(_) => break,
            Err(_) if attempt < 50 => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(error).context("dropping a slot"),
        }
    }
    let publication = format!("DROP PUBLICATION {name}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(publication)).execute(connection).await?;
    Ok(())
}
