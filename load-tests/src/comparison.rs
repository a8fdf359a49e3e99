//! The same load on Runwire and on the bare server, in turns.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::database::{self, Database};
use crate::prepared;
use crate::server::{Runwire, Scratch, start_bare};
use crate::statistics::median;
use crate::subscriber::record_live_answer;
use crate::trial::{Found, Load, hold_and_change, untouched};
use crate::writer::Writer;

/// What a whole invocation uses.
pub struct Bench {
    /// The gateway, unless only the bare server is to be tried.
    pub gateway: Option<Gateway>,
    /// For logs and the recorded answer.
    pub scratch: Scratch,
    /// The core of the server under test.
    pub server_core: usize,
    /// How often each server is tried.
    pub repeat: usize,
}

/// Runwire and its database.
pub struct Gateway {
    /// The program.
    pub program: PathBuf,
    /// The database.
    pub database: Database,
}

/// The trials of one load.
pub struct Comparison {
    /// The load.
    pub load: Load,
    /// On Runwire.
    pub runwire: Vec<Found>,
    /// On the bare server.
    pub bare: Vec<Found>,
}

impl Bench {
    /// How Runwire is started here.
    pub fn runwire<'a>(&'a self, gateway: &'a Gateway, slot_kind: &'a str) -> Runwire<'a> {
        Runwire {
            program: &gateway.program,
            url: &gateway.database.url,
            slot_kind,
            scratch: self.scratch.path(),
            core: self.server_core,
        }
    }

    /// Tries the load on both servers in turns.
    pub async fn compare(&self, load: Load) -> Result<Comparison> {
        let answer = self.scratch.path().join("answer.http");
        let mut versions = untouched(load.runs);
        match &self.gateway {
            Some(gateway) => {
                database::seed(&gateway.database.url, load.runs).await?;
                let recorded = self.record(gateway, &mut versions).await?;
                std::fs::write(&answer, recorded)?;
            }
            None => std::fs::write(&answer, prepared::sample())?,
        }
        let mut comparison = Comparison { load, runwire: Vec::new(), bare: Vec::new() };
        for turn in 1..=self.repeat {
            if let Some(gateway) = &self.gateway {
                let found = self.try_runwire(gateway, load, &mut versions).await?;
                progress("runwire", turn, &load, &found);
                comparison.runwire.push(found);
            }
            // The bare server needs no commit. It is given the time of one before each change, so that
            // both have the same time to take the next polls in.
            let commits = comparison.runwire.iter().map(|found| found.commit.p50);
            let pause = load.pause + Duration::from_secs_f64(median(commits) / 1e3);
            let server = start_bare(&answer, load.runs, self.server_core)?;
            let writer = Writer::bare(server.address);
            let mut versions = untouched(load.runs);
            let load = Load { pause, ..load };
            let found = hold_and_change(&server, None, &writer, load, &mut versions).await?;
            progress("bare", turn, &load, &found);
            comparison.bare.push(found);
        }
        Ok(comparison)
    }

    async fn try_runwire(
        &self,
        gateway: &Gateway,
        load: Load,
        versions: &mut [u64],
    ) -> Result<Found> {
        let server = self.runwire(gateway, "temporary").start()?;
        let writer = Writer::postgres(gateway.database.url.clone());
        let postgres = Some(gateway.database.pid);
        let found = hold_and_change(&server, postgres, &writer, load, versions).await?;
        server.stop()?;
        Ok(found)
    }

    /// One real live answer, for the bare server to give.
    async fn record(&self, gateway: &Gateway, versions: &mut [u64]) -> Result<Vec<u8>> {
        let server = self.runwire(gateway, "temporary").start()?;
        let writer = Writer::postgres(gateway.database.url.clone());
        // The second: the first may bring the whole row, as no later one does.
        let recorded = record_live_answer(server.address, 0, 2, || {
            versions[0] += 1;
            let change = writer.order(0, versions[0]);
            async {
                change.await??;
                Ok(())
            }
        });
        recorded.await
    }
}

/// Says on standard error what a trial found, so that a long invocation shows that it moves.
fn progress(server: &str, turn: usize, load: &Load, found: &Found) {
    eprintln!(
        "{server} #{turn}, N={}: p50 {:.2} ms, last {:.2} ms, {:.0}/s, {:.1} µs per delivery, others {:.0} %",
        load.subscribers,
        found.latency.p50,
        found.last.p50,
        found.per_second,
        found.server_us(),
        found.spent.others * 100.0,
    );
}
