//! A fresh server with its own directory for streams, and how it is written to and read from.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::lite;
use super::readers::Reading;
use super::session::Leave;
use crate::bench::Bench;
use crate::process::Parties;
use crate::runs;
use crate::server::{Runwire, Server, start_bare_events, start_lite};

/// The key of every run's stream.
const KEY: &str = "load";

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `runwire serve`.
    Runwire,
    /// Plain s2-lite: every reader has a read of its own.
    Lite,
    /// Hyper's own loop, which only holds connections.
    Bare,
}

impl Side {
    /// As it is called in the report.
    pub fn name(self) -> &'static str {
        match self {
            Side::Runwire => "Runwire",
            Side::Lite => "s2-lite",
            Side::Bare => "bare hyper",
        }
    }
}

/// A server and what belongs to it. It ends when this is dropped.
pub struct Stand {
    /// Which.
    pub side: Side,
    /// The server.
    pub server: Server,
    /// Whose CPU time is told apart.
    pub parties: Parties,
    directory: PathBuf,
}

impl Drop for Stand {
    fn drop(&mut self) {
        // The server has it open until it ends, which makes no difference to it.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Stand {
    /// Starts one that collects chunks for this long before they are made durable.
    pub async fn start(bench: &Bench, side: Side, flush: Duration) -> Result<Stand> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = bench.scratch.path().join(format!("streams-{number}"));
        std::fs::create_dir(&directory)?;
        let flush = format!("{}ms", flush.as_millis());
        let (server, postgres) = match (side, &bench.gateway) {
            (Side::Runwire, gateway) => {
                let gateway = gateway.as_ref().context("there is no Runwire to try")?;
                let environment = [
                    ("RUNWIRE_DATA_DIR", directory.display().to_string()),
                    ("RUNWIRE_STREAM_FLUSH", flush),
                ];
                let usual = bench.runwire(gateway, "temporary");
                let server = Runwire { environment: &environment, ..usual }.start()?;
                (server, Some(gateway.database.pid))
            }
            (Side::Lite, _) => (start_lite(&directory, &flush, bench.server_core)?, None),
            (Side::Bare, _) => (start_bare_events(bench.server_core)?, None),
        };
        let parties = Parties { server: server.pid(), postgres };
        Ok(Stand { side, server, parties, directory })
    }

    /// Leave to write the streams of this many runs.
    pub async fn leaves(&self, streams: usize) -> Result<Vec<Leave>> {
        let address = self.server.address;
        if self.side != Side::Runwire {
            let leave = |stream| Leave {
                url: format!("http://{address}/v1/streams/{}/records", name(stream)),
                basin: lite::BASIN.to_owned(),
                token: "none".to_owned(),
            };
            return Ok((0..streams).map(leave).collect());
        }
        let socket = TokioIo::new(TcpStream::connect(address).await?);
        let (mut client, connection) = http1::handshake(socket).await?;
        tokio::spawn(connection);
        let mut leaves = Vec::with_capacity(streams);
        for stream in 0..streams {
            let run = runs::friendly_id(stream);
            let request = Request::put(format!("/realtime/v1/streams/{run}/self/{KEY}"))
                .header("host", address.to_string())
                .header("authorization", format!("Bearer {}", runs::SECRET_KEY))
                .body(Empty::<Bytes>::new())?;
            client.ready().await?;
            leaves.push(leave(&client.send_request(request).await?)?);
        }
        Ok(leaves)
    }

    /// A reader of the stream of the run of this number, from its first chunk on.
    pub fn reading(&self, stream: usize) -> Reading {
        let address = self.server.address;
        let rest = match self.side {
            Side::Runwire => format!(
                "/realtime/v1/streams/{}/{KEY} HTTP/1.1\r\nauthorization: Bearer {}\r\ntimeout-seconds: 600",
                runs::friendly_id(stream),
                runs::SECRET_KEY,
            ),
            Side::Lite | Side::Bare => format!(
                "/v1/streams/{}/records?seq_num=0&clamp=true HTTP/1.1\r\ns2-basin: {}",
                name(stream),
                lite::BASIN,
            ),
        };
        let text = format!("GET {rest}\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n");
        let request = Arc::from(text.into_bytes());
        Reading { address, request, first: 0, until: None }
    }

    /// The same for one that has so many chunks already.
    pub fn reading_after(&self, stream: usize, chunks: u64) -> Reading {
        let mut reading = self.reading(stream);
        let text = String::from_utf8_lossy(&reading.request).into_owned();
        let text = match self.side {
            Side::Runwire if chunks > 0 => {
                let last = format!("\r\nlast-event-id: {}\r\n\r\n", chunks - 1);
                format!("{}{last}", text.trim_end())
            }
            _ => text.replacen("seq_num=0", &format!("seq_num={chunks}"), 1),
        };
        reading.request = Arc::from(text.into_bytes());
        reading.first = chunks;
        reading
    }
}

/// A stream's name at a server that knows no runs; as long as Runwire's, and encoded.
fn name(stream: usize) -> String {
    let run = runs::friendly_id(stream);
    format!("org%2Forg_load%2Fenv%2Fprod%2F{}%2Fruns%2F{run}%2F{KEY}", runs::ENVIRONMENT)
}

fn leave<B>(answer: &Response<B>) -> Result<Leave> {
    let status = answer.status();
    ensure!(status == 202, "no leave to write: {status}");
    let text = |name: &str| -> Result<String> {
        let value = answer.headers().get(name).with_context(|| format!("no {name}"))?;
        Ok(value.to_str()?.to_owned())
    };
    let stream = text("x-s2-stream-name")?.replace('/', "%2F");
    Ok(Leave {
        url: format!("{}/streams/{stream}/records", text("x-s2-endpoint")?),
        basin: text("x-s2-basin")?,
        token: text("x-s2-access-token")?,
    })
}

/// How this program is started as s2-lite.
pub fn lite_command(directory: &Path, flush: &str, port: u16) -> Result<Command> {
    let init = directory.join("init.json");
    std::fs::write(&init, lite::INIT)?;
    let log = File::create(directory.join("log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["lite", "--no-dashboard", "--port", &port.to_string(), "--local-root"])
        .arg(directory.join("data"))
        .arg("--init-file")
        .arg(init)
        .env("SL8_FLUSH_INTERVAL", flush)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leave_is_where_the_answer_says() {
        let answer = Response::builder()
            .status(202)
            .header("x-s2-endpoint", "http://127.0.0.1:3040/s2/v1")
            .header("x-s2-stream-name", "org/o/runs/run_1/load")
            .header("x-s2-basin", "trigger-realtime")
            .header("x-s2-access-token", "token")
            .body(())
            .unwrap();
        let found = leave(&answer).unwrap();
        let url = "http://127.0.0.1:3040/s2/v1/streams/org%2Fo%2Fruns%2Frun_1%2Fload/records";
        assert_eq!((&*found.url, &*found.token), (url, "token"));
        assert!(leave(&Response::new(())).is_err());
    }
}
