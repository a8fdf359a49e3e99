//! What a whole invocation uses, and how Runwire and the bare server are tried in turns.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::database::{self, Database};
use crate::layout::Layout;
use crate::prepared;
use crate::process::Parties;
use crate::record::{Wanted, record};
use crate::runs::FIRST_VERSION;
use crate::server::{Runwire, Scratch, Server, start_bare};
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
    /// How many descriptors a process may have.
    pub descriptors: u64,
}

/// Runwire and its database.
pub struct Gateway {
    /// The program.
    pub program: PathBuf,
    /// The database.
    pub database: Database,
}

/// What is to be tried in turns.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The runs and their feeds.
    pub layout: Layout,
    /// Which of Runwire's answers the bare server gives.
    pub answer: Wanted,
    /// Whether the bare server speaks HTTP/2.
    pub http2: bool,
    /// See [`Runwire::hold`].
    pub hold: Option<Duration>,
    /// Whether there is anything that the bare server can be tried with.
    pub bare: bool,
}

impl Setting {
    /// Live polls over HTTP/1.1 on both servers.
    pub fn of(layout: Layout) -> Setting {
        Setting { layout, answer: Wanted::Change, http2: false, hold: None, bare: true }
    }
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `runwire serve`.
    Runwire,
    /// The bare server.
    Bare,
}

/// One trial's server, fresh, and what belongs to it.
pub struct Turn<'a> {
    /// Which server.
    pub side: Side,
    /// The server. It is stopped after the turn.
    pub server: &'a Server,
    /// Who makes changes.
    pub writer: &'a Writer,
    /// Whose CPU time is told apart.
    pub parties: Parties,
    /// The newest version of each run.
    pub versions: &'a mut [u64],
}

/// What was found on both servers, a value for each trial.
pub struct Sides<T> {
    /// On Runwire.
    pub runwire: Vec<T>,
    /// On the bare server.
    pub bare: Vec<T>,
}

impl<T> Sides<T> {
    /// The servers that were tried, by name, each with its trials.
    pub fn tried(&self) -> impl Iterator<Item = (&'static str, &[T])> {
        let both = [("Runwire", &self.runwire[..]), ("bare hyper", &self.bare[..])];
        both.into_iter().filter(|(_, trials)| !trials.is_empty())
    }
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
            hold: None,
            environment: &[],
        }
    }

    /// Makes the runs, then tries both servers in turns, each time as a new process.
    pub async fn in_turns<T>(
        &self,
        setting: Setting,
        mut attempt: impl AsyncFnMut(Turn<'_>) -> Result<T>,
    ) -> Result<Sides<T>> {
        let layout = setting.layout;
        let answer = self.scratch.path().join("answer.http");
        let mut versions = vec![FIRST_VERSION; layout.runs];
        match &self.gateway {
            Some(gateway) => {
                database::seed(&gateway.database.url, layout).await?;
                if setting.bare {
                    let recorded = self.record(gateway, setting, &mut versions).await?;
                    std::fs::write(&answer, recorded)?;
                }
            }
            None => std::fs::write(&answer, prepared::sample(setting.answer))?,
        }
        let mut sides = Sides { runwire: Vec::new(), bare: Vec::new() };
        for _ in 0..self.repeat {
            if let Some(gateway) = &self.gateway {
                let program = Runwire { hold: setting.hold, ..self.runwire(gateway, "temporary") };
                let server = program.start()?;
                let turn = Turn {
                    side: Side::Runwire,
                    server: &server,
                    writer: &Writer::postgres(gateway.database.url.clone()),
                    parties: Parties { server: server.pid(), postgres: Some(gateway.database.pid) },
                    versions: &mut versions,
                };
                sides.runwire.push(attempt(turn).await?);
                server.stop()?;
            }
            if setting.bare {
                let server = start_bare(&answer, layout.feeds, setting.http2, self.server_core)?;
                let turn = Turn {
                    side: Side::Bare,
                    server: &server,
                    writer: &Writer::bare(server.address),
                    parties: Parties { server: server.pid(), postgres: None },
                    versions: &mut vec![FIRST_VERSION; layout.runs],
                };
                sides.bare.push(attempt(turn).await?);
            }
        }
        Ok(sides)
    }

    /// One real answer, for the bare server to give.
    async fn record(
        &self,
        gateway: &Gateway,
        setting: Setting,
        versions: &mut [u64],
    ) -> Result<Vec<u8>> {
        let server = self.runwire(gateway, "temporary").start()?;
        let writer = Writer::postgres(gateway.database.url.clone());
        let target = setting.layout.target(0);
        let recorded = record(server.address, &target, setting.answer, || {
            versions[0] += 1;
            let change = writer.order(vec![(0, versions[0])], None);
            async {
                change.await??;
                Ok(())
            }
        });
        recorded.await
    }
}
