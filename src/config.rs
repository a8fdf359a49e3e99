//! Settings: one struct per area. `--help`, the environment and the operations page come from here.

mod door;
mod s2;
mod streams;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

pub use door::{LimitArgs, RedisArgs, TlsArgs};
pub use streams::StreamArgs;

use crate::auth;
use crate::feed::{FeedSettings, Limits};
use crate::http::Throttle;
use crate::http::listen::Patience;
use crate::postgres::ConnectionUrl;
use crate::replication;
use crate::runs::reader::ReaderLimits;
use crate::server;

/// A setting that is missing or wrong, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct SettingError {
    setting: &'static str,
    problem: String,
}

/// Everything that `runwire serve` can be told.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    replication: ReplicationArgs,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    credentials: CredentialArgs,
    #[command(flatten)]
    feed: FeedArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    redis: RedisArgs,
    #[command(flatten)]
    streams: StreamArgs,
}

/// Where the database is.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Database")]
pub struct DatabaseArgs {
    /// Trigger.dev's database, the primary. TLS by `sslmode`; parameters that only Prisma knows are ignored
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// The same database without a pooler in between, as Prisma knows it
    #[arg(long, env = "DIRECT_URL", value_name = "URL", hide_env_values = true)]
    pub direct_url: Option<String>,
    /// Where replication connects, if that is neither DIRECT_URL nor DATABASE_URL
    #[arg(long, env = "RUNWIRE_REPLICATION_URL", value_name = "URL", hide_env_values = true)]
    pub replication_url: Option<String>,
    /// Connections for snapshots. Five more serve credentials and the watch on the stream's lag
    #[arg(long, env = "RUNWIRE_DATABASE_CONNECTIONS", default_value_t = 8, value_name = "N")]
    pub database_connections: u32,
}

/// How the write-ahead log is read.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Replication")]
pub struct ReplicationArgs {
    /// The replication slot
    #[arg(long, env = "RUNWIRE_SLOT", default_value = "runwire", value_name = "NAME")]
    pub slot: String,
    /// Whether the slot outlives this process. `auto` keeps one only where the server bounds what a
    /// slot may retain (max_slot_wal_keep_size, idle_replication_slot_timeout)
    #[arg(long, env = "RUNWIRE_SLOT_KIND", default_value = "auto", value_name = "KIND")]
    pub slot_kind: SlotKindArg,
    /// The publication; created if it is missing and the role may
    #[arg(long, env = "RUNWIRE_PUBLICATION", default_value = "runwire", value_name = "NAME")]
    pub publication: String,
    /// Raise it to make every client start again, as after a change of the data behind Postgres' back
    #[arg(long, env = "RUNWIRE_EPOCH", default_value_t = 0, value_name = "N")]
    pub epoch: u32,
}

/// See [`ReplicationArgs::slot_kind`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SlotKindArg {
    /// Permanent where the server bounds it, else temporary.
    Auto,
    /// Goes with the connection.
    Temporary,
    /// Outlives the process; the operator watches what it retains.
    Permanent,
}

/// Where clients and operators connect.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Addresses")]
pub struct ListenArgs {
    /// Where clients connect, without TLS; several are separated by commas
    #[arg(
        long,
        env = "RUNWIRE_LISTEN",
        default_value = "127.0.0.1:3040",
        value_name = "ADDRESSES",
        value_delimiter = ','
    )]
    pub listen: Vec<SocketAddr>,
    /// Where operators and probes connect: /healthz, /readyz, /metrics
    #[arg(
        long,
        env = "RUNWIRE_ADMIN_LISTEN",
        default_value = "127.0.0.1:3041",
        value_name = "ADDRESS"
    )]
    pub admin_listen: SocketAddr,
    /// Connections that are served at once; more are closed and counted
    #[arg(long, env = "RUNWIRE_MAX_CONNECTIONS", default_value_t = 100_000, value_name = "N")]
    pub max_connections: usize,
    /// For how long a client may take nothing of what is sent to it before its connection is cut. One
    /// that is silent for so long is asked by the kernel whether it is there
    #[arg(long, env = "RUNWIRE_WRITE_TIMEOUT", default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub write_timeout: Duration,
    /// For how long a client may take to send a request's line and headers once it has begun, and for a
    /// TLS handshake
    #[arg(long, env = "RUNWIRE_HEAD_TIMEOUT", default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub head_timeout: Duration,
    /// For how long a connection may ask nothing
    #[arg(long, env = "RUNWIRE_IDLE_TIMEOUT", default_value = "60s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub idle_timeout: Duration,
    /// Where Runwire keeps what it must not lose: the chunks of streams, and the secret for their tokens.
    /// Made with the first stream. One gateway at a time uses it
    #[arg(long, env = "RUNWIRE_DATA_DIR", default_value = "./runwire-data", value_name = "DIR")]
    pub data_dir: PathBuf,
}

/// Which credentials are accepted, and how keys are kept.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Credentials")]
pub struct CredentialArgs {
    /// Accept public tokens without expiry, and HS384 and HS512, as Trigger.dev's own servers do
    #[arg(long, env = "RUNWIRE_LAX_TOKENS")]
    pub lax_tokens: bool,
    /// Refuse the public tokens of an archived branch at once. Trigger.dev's own servers accept them
    /// until they expire
    #[arg(long, env = "RUNWIRE_REFUSE_ARCHIVED_BRANCHES")]
    pub refuse_archived_branches: bool,
    /// How much memory all environments and keys may take, about 400 bytes each; with more, none are
    /// held, and each credential is looked up
    #[arg(long, env = "RUNWIRE_KEY_BYTES", default_value = "256MiB", value_name = "SIZE")]
    pub key_bytes: ByteSize,
    /// How many unknown credentials are looked up per second while keys are not held in memory; more
    /// get a 503
    #[arg(long, env = "RUNWIRE_KEY_LOOKUPS", default_value = "100", value_name = "N")]
    pub key_lookups: NonZeroU32,
}

impl CredentialArgs {
    /// How the door works.
    pub fn settings(&self) -> auth::Settings {
        auth::Settings {
            tokens: auth::TokenRules { lax: self.lax_tokens },
            archived_branch_tokens: !self.refuse_archived_branches,
            key_bytes: size(self.key_bytes),
            lookups_per_second: self.key_lookups,
            ..auth::Settings::default()
        }
    }
}

/// How much is remembered, and how long polls are held.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Feeds")]
pub struct FeedArgs {
    /// How long a change is kept in memory, so that a client that was away goes on from its offset
    #[arg(long, env = "RUNWIRE_WINDOW", default_value = "2min", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub window: Duration,
    /// How much memory the kept changes and their runs may take; the oldest go first
    #[arg(long, env = "RUNWIRE_WINDOW_BYTES", default_value = "256MiB", value_name = "SIZE")]
    pub window_bytes: ByteSize,
    /// How long a poll is held when nothing is new, spread by ±15 %
    #[arg(long, env = "RUNWIRE_HOLD", default_value = "20s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub hold: Duration,
    /// How long a connection of server-sent events lasts before its client makes a new one, spread by
    /// ±15 %; at least 2s, since clients give events up whose connections end at once
    #[arg(long, env = "RUNWIRE_SSE_LIFE", default_value = "60s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub sse_life: Duration,
    /// How far back lists reach at most, whatever `createdAt` asks for
    #[arg(long, env = "RUNWIRE_CREATED_MAX", default_value = "24h", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub created_max: Duration,
    /// The most rows that a list or batch answers with; the newest, and a header says that there are more
    #[arg(long, env = "RUNWIRE_LIST_MAX", default_value_t = 10_000, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub list_max: usize,
    /// The most memory that the rows of one list may take; like RUNWIRE_LIST_MAX
    #[arg(long, env = "RUNWIRE_LIST_BYTES", default_value = "32MiB", value_name = "SIZE")]
    pub list_bytes: ByteSize,
    /// How much memory the chunks of long lists may take that wait to be fetched; the oldest go first
    #[arg(long, env = "RUNWIRE_CHUNK_BYTES", default_value = "128MiB", value_name = "SIZE")]
    pub chunk_bytes: ByteSize,
    /// How much memory bodies may take that are kept or on their way; beyond it requests get a 503
    #[arg(long, env = "RUNWIRE_BODY_BYTES", default_value = "512MiB", value_name = "SIZE")]
    pub body_bytes: ByteSize,
    /// How much memory rows may take that are being read, of all environments together
    #[arg(long, env = "RUNWIRE_SNAPSHOT_BYTES", default_value = "256MiB", value_name = "SIZE")]
    pub snapshot_bytes: ByteSize,
    /// For how long a run's completion waits for the metadata that is written right after it, on the
    /// feed of that run alone; 0s switches it off
    #[arg(long, env = "RUNWIRE_COMPLETION_FOLD", default_value = "100ms", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub completion_fold: Duration,
    /// For how long a run or batch that is not there is waited for, since clients may ask before its
    /// transaction commits; then it is a 404
    #[arg(long, env = "RUNWIRE_JUST_CREATED_WAIT", default_value = "2s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub just_created_wait: Duration,
    /// The shortest time between two answers that something changed, up to 10s, where neither the
    /// token nor the request says. First changes, completions and errors never wait
    #[arg(long, env = "RUNWIRE_THROTTLE", default_value = "0s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub throttle: Duration,
    /// The same for single environments, as `<environment id>=<time>`, separated by commas
    #[arg(long, env = "RUNWIRE_THROTTLE_ENVIRONMENTS", value_name = "LIST", value_delimiter = ',', value_parser = environment_throttle)]
    pub throttle_environments: Vec<(String, Duration)>,
}

fn environment_throttle(text: &str) -> Result<(String, Duration), String> {
    let (environment, time) = text.split_once('=').ok_or("is not <environment id>=<time>")?;
    let time = humantime::parse_duration(time).map_err(|error| error.to_string())?;
    Ok((environment.to_owned(), time))
}

fn size(bytes: ByteSize) -> usize {
    usize::try_from(bytes.as_u64()).unwrap_or(usize::MAX)
}

impl FeedArgs {
    /// What bounds the window.
    pub fn limits(&self) -> Limits {
        Limits { age: self.window, bytes: size(self.window_bytes), bodies: size(self.body_bytes) }
    }

    /// How feeds behave.
    pub fn settings(&self) -> FeedSettings {
        FeedSettings {
            completion_fold: self.completion_fold,
            just_created_wait: self.just_created_wait,
            created_max: self.created_max,
            list_max: self.list_max,
            list_bytes: size(self.list_bytes),
            chunk_bytes: size(self.chunk_bytes),
            chunk: 1 << 20,
        }
    }

    /// What bounds the reading of snapshots with so many connections.
    pub fn reader_limits(&self, connections: u32) -> ReaderLimits {
        ReaderLimits {
            connections: connections as usize,
            bytes: size(self.snapshot_bytes),
            bytes_per_environment: size(self.snapshot_bytes) / 2,
            ..ReaderLimits::default()
        }
    }

    /// How long a connection of events lasts.
    pub fn sse_life(&self) -> Duration {
        self.sse_life.max(Duration::from_secs(2))
    }

    /// How often feeds answer.
    pub fn throttle(&self) -> Throttle {
        let environments = self.throttle_environments.iter().cloned().collect();
        Throttle { default: self.throttle, environments }
    }
}

impl DatabaseArgs {
    /// Where queries go, or what is wrong with the setting.
    pub fn sql_url(&self) -> Result<ConnectionUrl, SettingError> {
        match &self.database_url {
            Some(url) => read_url("DATABASE_URL", url),
            None => Err(SettingError {
                setting: "DATABASE_URL",
                problem: "is not set; it names Trigger.dev's Postgres, as postgresql://user:password@host:5432/database".into(),
            }),
        }
    }

    fn replication_url(&self) -> Result<ConnectionUrl, SettingError> {
        match (&self.replication_url, &self.direct_url) {
            (Some(url), _) => read_url("RUNWIRE_REPLICATION_URL", url),
            (None, Some(url)) => read_url("DIRECT_URL", url),
            (None, None) => self.sql_url(),
        }
    }
}

fn read_url(setting: &'static str, url: &str) -> Result<ConnectionUrl, SettingError> {
    ConnectionUrl::parse(url).map_err(|error| SettingError { setting, problem: error.to_string() })
}

/// What `runwire slot` needs of the settings.
#[derive(Args, Clone, Debug)]
pub struct SlotArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    replication: ReplicationArgs,
}

impl SlotArgs {
    /// The replication settings, or what is wrong with them.
    pub fn settings(&self) -> Result<replication::Settings, SettingError> {
        Ok(self.replication.settings(self.database.replication_url()?, usize::MAX))
    }
}

impl ReplicationArgs {
    fn settings(&self, url: ConnectionUrl, max_tx_bytes: usize) -> replication::Settings {
        let slot_kind = match self.slot_kind {
            SlotKindArg::Auto => replication::SlotKind::Auto,
            SlotKindArg::Temporary => replication::SlotKind::Temporary,
            SlotKindArg::Permanent => replication::SlotKind::Permanent,
        };
        replication::Settings {
            slot_kind,
            max_tx_bytes,
            epoch_counter: self.epoch,
            ..replication::Settings::new(url, self.slot.clone(), self.publication.clone())
        }
    }
}

impl ServeArgs {
    /// The server's settings, or what is wrong with them.
    pub fn settings(&self) -> Result<server::Settings, SettingError> {
        let window = self.feed.limits();
        let Some((listen, listen_also)) = self.listen.listen.split_first() else {
            let problem = "names no address".to_owned();
            return Err(SettingError { setting: "RUNWIRE_LISTEN", problem });
        };
        Ok(server::Settings {
            listen: *listen,
            listen_also: listen_also.to_vec(),
            tls: self.tls.settings(),
            admin_listen: self.listen.admin_listen,
            max_connections: self.listen.max_connections,
            patience: Patience {
                write: self.listen.write_timeout,
                head: self.listen.head_timeout,
                idle: self.listen.idle_timeout,
            },
            requests: self.limits.requests(),
            proxies: self.limits.proxies(),
            redis: self.redis.settings()?,
            sql_url: self.database.sql_url()?,
            database_connections: self.database.database_connections,
            // A transaction that would not leave room for anything else is not carried.
            replication: self
                .replication
                .settings(self.database.replication_url()?, window.bytes / 2),
            auth: self.credentials.settings(),
            window,
            feeds: self.feed.settings(),
            reader: self.feed.reader_limits(self.database.database_connections),
            hold: self.feed.hold,
            sse_life: self.feed.sse_life(),
            throttle: self.feed.throttle(),
            streams: self.streams.settings(&self.listen.data_dir)?,
        })
    }
}
