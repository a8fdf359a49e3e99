//! `runwire dev`: everything at once in one process, and gone at Ctrl-C.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::engine::{self, Engine};
use super::postgres::{Options, Postgres};
use super::welcome::{self, Welcome};
use super::{BinariesError, DatabaseError, StartError, seed};
use crate::config::FeedArgs;
use crate::http::StreamSettings;
use crate::http::listen::Patience;
use crate::http::proxy::Proxies;
use crate::limits::RequestSettings;
use crate::postgres::ConnectionUrl;
use crate::replication;
use crate::server::{self, Server, StartError as ServerError};

/// The database, and what else needs a name in it.
const NAME: &str = "runwire";
/// How long a start takes before we say that it is under way.
const QUIET: Duration = Duration::from_secs(3);
/// How long the stream may take to catch up with a database that nobody else writes to.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// What a shell expects of a process that Ctrl-C ended.
const EXIT_INTERRUPTED: i32 = 130;

/// Everything that `runwire dev` can be told. No address or database of `serve`'s environment is
/// read here: a stand-in must never reach a real database.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// Where clients connect; port 0 takes a free one [default: 127.0.0.1:3040 if it is free]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Where operators connect [default: 127.0.0.1:3041 if it is free]
    #[arg(long, value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// Keep the database in this directory, and go on from it at the next start
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// The mean time between two steps of a simulated run
    #[arg(long, default_value = "700ms", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub pace: Duration,
    /// Makes the simulated engine choose the same again
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    #[command(flatten)]
    feed: FeedArgs,
}

/// Why `runwire dev` did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// The throw-away Postgres did not start.
    #[error(transparent)]
    Postgres(#[from] StartError),
    /// Its database could not be made.
    #[error("cannot make the database: {0}")]
    Database(#[from] DatabaseError),
    /// The seed could not be loaded, or the database does not answer.
    #[error("cannot load the seed: {0}")]
    Seed(#[from] sqlx::Error),
    /// Our own URL is none to the gateway.
    #[error("the database's URL: {0}")]
    Url(#[from] crate::postgres::UrlError),
    /// The gateway did not start.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The gateway did not become ready.
    #[error("the gateway is still not ready: {0}")]
    NotReady(String),
    /// The example's token could not be signed.
    #[error("cannot sign a public token: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
    /// We would not hear Ctrl-C.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    /// Somebody else stopped Postgres.
    #[error("the database has ended")]
    DatabaseEnded,
}

impl DevError {
    /// Whether another setting would help.
    pub fn is_setting(&self) -> bool {
        use StartError::{Binaries, InUse, NotACluster, Unreachable};
        matches!(
            self,
            DevError::Server(ServerError::Listen(..))
                | DevError::Postgres(NotACluster(_) | Unreachable(_) | InUse(_))
                | DevError::Postgres(Binaries(BinariesError::NotPrograms(_)))
        )
    }
}

/// Brings everything up, says how to use it, and takes it down at Ctrl-C or SIGTERM.
pub async fn run(args: DevArgs) -> Result<(), DevError> {
    let stopping = stop_at_signals()?;
    for address in [args.listen, args.admin_listen].into_iter().flatten() {
        // The server would find out, too, but only after Postgres has come up.
        TcpListener::bind(address).map_err(|error| ServerError::Listen(address, error))?;
    }
    let patience = tokio::spawn(async {
        tokio::time::sleep(QUIET).await;
        eprintln!("Starting; the first start may have to fetch Postgres …");
    });
    let started = tokio::select! {
        started = Stand::start(&args) => started,
        // What has been started ends by being dropped.
        () = stopping.cancelled() => return Ok(()),
    };
    patience.abort();
    let mut stand = started?;
    let welcome = match stand.welcome(&args) {
        Ok(text) => text,
        Err(error) => {
            stand.stop().await;
            return Err(error.into());
        }
    };
    // Who closed our output does not want to read it.
    let _ = std::io::stdout().write_all(welcome.as_bytes());
    let ended = tokio::select! {
        () = stopping.cancelled() => Ok(()),
        () = stand.database_ends() => Err(DevError::DatabaseEnded),
    };
    stand.stop().await;
    ended
}

/// A token that the first SIGINT or SIGTERM cancels. The second ends the process at once; the
/// database's guardian cleans up.
fn stop_at_signals() -> Result<CancellationToken, DevError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DevError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DevError::Signals)?;
    let stopping = CancellationToken::new();
    let token = stopping.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if token.is_cancelled() {
                std::process::exit(EXIT_INTERRUPTED);
            }
            token.cancel();
        }
    });
    Ok(stopping)
}

/// Everything that runs, in the order in which it is taken down.
struct Stand {
    engine: Engine,
    server: Server,
    pool: PgPool,
    postgres: Postgres,
    database_url: String,
}

impl Stand {
    async fn start(args: &DevArgs) -> Result<Stand, DevError> {
        let options = Options { data_dir: args.keep.clone(), ..Options::default() };
        let postgres = Postgres::start(options).await?;
        let database_url = postgres.create_database(NAME).await?;
        // An engine that waits for a database that has gone holds up the end.
        let pool = PgPoolOptions::new().acquire_timeout(Duration::from_secs(5));
        let pool = pool.connect(&database_url).await?;
        let seeded = seed::load(&pool).await?;
        let data = postgres.data_dir().join("runwire");
        let server = Server::start(settings(args, &database_url, &data)?).await?;
        let settings = engine::Settings {
            // At no pace at all it would be a load test.
            step: args.pace.max(Duration::from_millis(1)),
            ticking: Some(seeded.run.to_owned()),
            answering: Some((seeded.run.to_owned(), welcome::reached_at(server.address))),
            seed: args.seed,
            ..engine::Settings::default()
        };
        let engine = Engine::start(pool.clone(), seeded.production, settings);
        let stand = Stand { engine, server, pool, postgres, database_url };
        match stand.ready().await {
            Ok(()) => Ok(stand),
            Err(error) => {
                stand.stop().await;
                Err(error)
            }
        }
    }

    async fn ready(&self) -> Result<(), DevError> {
        let readiness = &self.server.readiness;
        let ready = async {
            while readiness.reason().is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let reached = tokio::time::timeout(READY_WITHIN, ready).await;
        reached.map_err(|_| DevError::NotReady(readiness.reason().unwrap_or_default()))
    }

    fn welcome(&self, args: &DevArgs) -> Result<String, jsonwebtoken::errors::Error> {
        let welcome = Welcome {
            address: self.server.address,
            admin_address: self.server.admin_address,
            database_url: &self.database_url,
            kept: args.keep.as_deref(),
        };
        welcome.text(&seed::SEEDED)
    }

    async fn database_ends(&mut self) {
        while self.postgres.is_running() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn stop(self) {
        self.engine.stop().await;
        self.server.stop().await;
        self.pool.close().await;
        // Waits for Postgres and for the removal of its files; nothing is left to do if it panics.
        let _ = tokio::task::spawn_blocking(move || drop(self.postgres)).await;
    }
}

fn settings(args: &DevArgs, database_url: &str, data: &Path) -> Result<server::Settings, DevError> {
    let url = ConnectionUrl::parse(database_url)?;
    Ok(server::Settings {
        listen: args.listen.unwrap_or_else(|| usual_or_free(3040)),
        listen_also: Vec::new(),
        tls: None,
        admin_listen: args.admin_listen.unwrap_or_else(|| usual_or_free(3041)),
        max_connections: 10_000,
        patience: Patience {
            write: Duration::from_secs(30),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
        },
        requests: RequestSettings::default(),
        proxies: Proxies::default(),
        redis: None,
        sql_url: url.clone(),
        database_connections: 8,
        replication: replication::Settings::new(url, NAME.to_owned(), NAME.to_owned()),
        auth: crate::auth::Settings::default(),
        window: args.feed.limits(),
        feeds: args.feed.settings(),
        reader: args.feed.reader_limits(8),
        hold: args.feed.hold,
        sse_life: args.feed.sse_life(),
        throttle: args.feed.throttle(),
        streams: StreamSettings::of(data),
    })
}

/// The usual port, unless somebody has it.
fn usual_or_free(port: u16) -> SocketAddr {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if TcpListener::bind(usual).is_ok() { usual } else { (Ipv4Addr::LOCALHOST, 0).into() }
}
