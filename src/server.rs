//! Builds the parts, binds the addresses, and drains.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::auth::{self, Door};
use crate::feed::{Feed, FeedSettings, Feeds, Limits};
use crate::http::listen::{self, Patience};
use crate::http::ops::Ops;
use crate::http::proxy::Proxies;
use crate::http::tls::{Tls, TlsError, TlsFiles};
use crate::http::{self, App, Entrance, Metrics, StreamSettings, Streams, Throttle};
use crate::limits::{Fleet, RequestLimits, RequestSettings};
use crate::postgres::ConnectionUrl;
use crate::readiness::Readiness;
use crate::replication::change::{Event, Marks};
use crate::replication::{self, SetupError, Source};
use crate::runs::reader::{Reader, ReaderLimits};
use crate::runs::store::RunStore;
use crate::runs::streams::StreamRuns;
use crate::streams::{RemoteError, Store};
use crate::telemetry;
use crate::ticker::Ticker;

/// Connections for looking up credentials.
const KEY_CONNECTIONS: u32 = 4;
/// How long after leases have ended the next are looked for.
const BETWEEN_ENDINGS: Duration = Duration::from_millis(20);
/// How often the store of streams is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Connections for the rows of runs that have streams.
const STREAM_CONNECTIONS: u32 = 4;
/// How long a drain may take before what is left is cut.
const DRAIN_LIMIT: Duration = Duration::from_secs(4);

/// What a server is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Further addresses for them.
    pub listen_also: Vec<SocketAddr>,
    /// Where they connect with TLS, if they do.
    pub tls: Option<TlsSettings>,
    /// Where operators connect.
    pub admin_listen: SocketAddr,
    /// Connections that are served at once, at all of the clients' addresses.
    pub max_connections: usize,
    /// For how long clients may take.
    pub patience: Patience,
    /// How much may be asked.
    pub requests: RequestSettings,
    /// Who may say on whose behalf they ask.
    pub proxies: Proxies,
    /// Where gateways tell each other what they have live.
    pub redis: Option<redis::Client>,
    /// The primary.
    pub sql_url: ConnectionUrl,
    /// The size of the pool for snapshots and credentials.
    pub database_connections: u32,
    /// How the log is read.
    pub replication: replication::Settings,
    /// How credentials are judged.
    pub auth: auth::Settings,
    /// What bounds the window.
    pub window: Limits,
    /// How feeds behave.
    pub feeds: FeedSettings,
    /// What bounds the reading of snapshots.
    pub reader: ReaderLimits,
    /// How long polls are held.
    pub hold: Duration,
    /// How long connections of events last.
    pub sse_life: Duration,
    /// How often feeds answer.
    pub throttle: Throttle,
    /// How streams work.
    pub streams: StreamSettings,
}

/// Where TLS is spoken.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// The addresses.
    pub listen: Vec<SocketAddr>,
    /// The certificate and its key.
    pub files: TlsFiles,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken or not ours.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// There is no working certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The database is not set up for replication.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// There is no client for the S2 that keeps the streams.
    #[error(transparent)]
    Streams(#[from] RemoteError),
    /// The thread that reads the stream could not be started.
    #[error("cannot start the replication thread: {0}")]
    Thread(std::io::Error),
}

/// Opens the store of streams where that is due, and says how it stands.
async fn watch(store: Store, stop: CancellationToken) {
    let watch = async {
        store.wake().await;
        loop {
            let trouble = store.trouble().is_some();
            metrics::gauge!(telemetry::STREAM_STORE_READY).set(f64::from(u8::from(!trouble)));
            tokio::time::sleep(LOOK_AGAIN).await;
            if trouble || matches!(store, Store::Remote(_)) {
                store.wake().await;
            }
        }
    };
    tokio::select! {
        () = watch => {}
        () = stop.cancelled() => {}
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Further addresses for them.
    pub also_at: Vec<SocketAddr>,
    /// Where they connect with TLS.
    pub tls_addresses: Vec<SocketAddr>,
    /// Where operators connect.
    pub admin_address: SocketAddr,
    /// Whether feeds are served.
    pub readiness: Arc<Readiness>,
    drain: CancellationToken,
    stop_stream: CancellationToken,
    stream: std::thread::JoinHandle<()>,
    store: Store,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts everything and returns once the addresses are bound. The stream attaches and catches
    /// up after that; [`Server::readiness`] tells when.
    pub async fn start(settings: Settings) -> Result<Server, StartError> {
        let metrics = telemetry::install_metrics();
        let bind = |asked| {
            let bound = listen::bind(asked, settings.patience.write);
            let local = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
            local.map_err(|error| StartError::Listen(asked, error))
        };
        let bind_all = |addresses: &[SocketAddr]| {
            let bound = addresses.iter().map(|address| bind(*address));
            bound.collect::<Result<(Vec<_>, Vec<_>), _>>()
        };
        let (address, public) = bind(settings.listen)?;
        let (also_at, public_also) = bind_all(&settings.listen_also)?;
        let (admin_address, admin) = bind(settings.admin_listen)?;
        let (tls, tls_addresses, public_tls) = match settings.tls {
            Some(TlsSettings { listen, files }) => {
                let (addresses, listeners) = bind_all(&listen)?;
                (Some(Arc::new(Tls::new(files).await?)), addresses, listeners)
            }
            None => (None, Vec::new(), Vec::new()),
        };
        let limits = RequestLimits::new(settings.requests);
        let fleet = settings.redis.map(|redis| Fleet::new(redis, limits.live.clone()));

        let (drain, stop_stream) = (CancellationToken::new(), CancellationToken::new());
        let pool = |connections| {
            // A query that nobody waits for any more ends on the server as well.
            let options = settings.sql_url.sql_options().options([("statement_timeout", "10s")]);
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(Duration::from_secs(5))
                .connect_lazy_with(options)
        };
        // Three pools: neither credentials nor the ticker's look may queue behind snapshots.
        let (snapshots, keys) = (pool(settings.database_connections), pool(KEY_CONNECTIONS));
        let ticker_pool = pool(1);

        let feed = Feed::new(settings.window.clone());
        let readiness = Arc::new(Readiness::default());
        let marks = Marks::new();
        let reader = Reader::new(RunStore::new(snapshots), settings.reader);
        let door = Door::new(keys, settings.auth);
        let publication = settings.replication.publication.clone();
        let source = Source::new(settings.replication).await?;
        let status = source.status();

        let sink = {
            let (feed, door) = (Arc::clone(&feed), door.clone());
            move |event: Event| {
                // First, so that whoever sees how far the stream is finds its keys applied.
                door.apply(&event);
                feed.apply(event);
            }
        };
        let stream = source
            .spawn(Arc::clone(&marks), stop_stream.clone(), sink)
            .map_err(StartError::Thread)?;
        let ticker = Ticker {
            store: RunStore::new(ticker_pool.clone()),
            pool: ticker_pool,
            feed: Arc::clone(&feed),
            door: door.clone(),
            publication,
            marks,
            status,
            readiness: Arc::clone(&readiness),
            metrics: metrics.clone(),
        };

        let stream_runs = StreamRuns::new(pool(STREAM_CONNECTIONS), STREAM_CONNECTIONS as usize);
        let store = match settings.streams.remote.clone() {
            Some(elsewhere) => Store::elsewhere(elsewhere)?,
            None => Store::embedded(settings.streams.store.clone()),
        };
        let streams = Streams::new(settings.streams, store.clone(), stream_runs);
        let streams_work = watch(store.clone(), stop_stream.clone());

        let created_max = settings.feeds.created_max;
        let feeds = Feeds::new(feed, reader, readiness.flag(), drain.clone(), settings.feeds);
        let app = Arc::new(App {
            door,
            limits,
            proxies: settings.proxies,
            feeds: Arc::new(feeds),
            hold: settings.hold,
            sse_life: settings.sse_life,
            created_max,
            throttle: settings.throttle,
            streams,
            drain: drain.clone(),
            metrics: Metrics::default(),
        });
        let feeds_work = {
            let (app, stop) = (Arc::clone(&app), stop_stream.clone());
            async move {
                tokio::select! {
                    () = app.feeds.run() => {}
                    // The drain has begun by then.
                    () = stop.cancelled() => app.feeds.end_holds(),
                }
            }
        };
        let limits_work = {
            let (app, stop) = (Arc::clone(&app), stop_stream.clone());
            async move {
                tokio::select! {
                    () = app.limits.run() => {}
                    () = stop.cancelled() => {}
                }
            }
        };
        let fleet_work = {
            let stop = stop_stream.clone();
            async move {
                let Some(fleet) = fleet else { return };
                tokio::select! {
                    () = fleet.run() => {}
                    () = stop.cancelled() => fleet.leave().await,
                }
            }
        };
        let tls_work = {
            let (tls, stop) = (tls.clone(), stop_stream.clone());
            async move {
                let Some(tls) = tls else { return };
                tokio::select! {
                    () = tls.renew() => {}
                    () = stop.cancelled() => {}
                }
            }
        };
        let door_work = {
            let (app, stop) = (Arc::clone(&app), stop_stream.clone());
            async move {
                let end_leases = async {
                    let ended = app.door.ended();
                    loop {
                        ended.notified().await;
                        app.feeds.end_leases();
                        // However many end, going through all that wait is done so often only.
                        tokio::time::sleep(BETWEEN_ENDINGS).await;
                    }
                };
                tokio::select! {
                    () = app.door.run() => {}
                    () = end_leases => {}
                    () = stop.cancelled() => {}
                }
            }
        };
        let ops = Ops { readiness: Arc::clone(&readiness), store: store.clone(), metrics };
        let limit = |connections: usize| listen::Limits {
            places: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            patience: settings.patience,
        };
        let (public_limits, admin_limits) = (limit(settings.max_connections), limit(100));
        let public_routes = http::public(Arc::clone(&app), ops.clone());
        let entrance = Entrance::new(app, public_routes);
        let mut tasks = vec![
            tokio::spawn(ticker.run(stop_stream.clone())),
            tokio::spawn(feeds_work),
            tokio::spawn(limits_work),
            tokio::spawn(fleet_work),
            tokio::spawn(tls_work),
            tokio::spawn(door_work),
            tokio::spawn(streams_work),
            tokio::spawn(listen::serve(
                "admin",
                admin,
                http::ops::admin(ops),
                None,
                admin_limits,
                drain.clone(),
            )),
        ];
        let plain = std::iter::once(public).chain(public_also).map(|listener| (listener, None));
        let with_tls = public_tls.into_iter().map(|listener| (listener, tls.clone()));
        for (listener, tls) in plain.chain(with_tls) {
            let name = if tls.is_some() { "tls" } else { "public" };
            let (entrance, limits) = (entrance.clone(), public_limits.clone());
            let serve = listen::serve(name, listener, entrance, tls, limits, drain.clone());
            tasks.push(tokio::spawn(serve));
        }
        Ok(Server {
            address,
            also_at,
            tls_addresses,
            admin_address,
            readiness,
            drain,
            stop_stream,
            stream,
            store,
            tasks,
        })
    }

    /// Answers all holds, lets the connections finish and gives the slot back. Ends within five seconds.
    pub async fn stop(self) {
        self.readiness.set(Some("shutting down".to_owned()));
        self.drain.cancel();
        self.stop_stream.cancel();
        let stream = self.stream;
        let everything = async {
            for task in self.tasks {
                let _ = task.await;
            }
            let _ = tokio::task::spawn_blocking(move || stream.join()).await;
        };
        if tokio::time::timeout(DRAIN_LIMIT, everything).await.is_err() {
            tracing::warn!("connections were cut at the end of the drain");
        }
        self.store.close().await;
    }
}
