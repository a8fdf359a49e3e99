//! Settings of streams.

use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::s2::RemoteArgs;
use super::{SettingError, size};
use crate::http::StreamSettings;
use crate::streams::{Secret, ServiceTokens, StoreSettings};

/// Streams of runs, kept in S2.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Streams")]
pub struct StreamArgs {
    /// The basin of runs that have none of their own, as Trigger.dev has it
    #[arg(
        long,
        env = "REALTIME_STREAMS_S2_BASIN",
        default_value = "trigger-realtime",
        value_name = "NAME"
    )]
    pub s2_basin: String,
    /// How long a writer's access token lives, in milliseconds; it should outlive the longest run
    #[arg(
        long,
        env = "REALTIME_STREAMS_S2_ACCESS_TOKEN_EXPIRATION_IN_MS",
        default_value_t = 24 * 60 * 60 * 1_000,
        value_name = "MS"
    )]
    pub s2_access_token_expiration_in_ms: u64,
    /// For how long writers collect chunks before they send them, in milliseconds
    #[arg(
        long,
        env = "REALTIME_STREAMS_S2_FLUSH_INTERVAL_MS",
        default_value_t = 10,
        value_name = "MS"
    )]
    pub s2_flush_interval_ms: u64,
    /// For how long a reader waits for the next chunk before its stream ends, in seconds, where it does
    /// not say
    #[arg(long, env = "REALTIME_STREAMS_S2_WAIT_SECONDS", default_value_t = 60, value_name = "N")]
    pub s2_wait_seconds: u64,
    /// Where writers reach /s2/v1, such as https://realtime.example.com/s2/v1; a proxy in between must
    /// carry HTTP/2. By default http and the host that they asked
    #[arg(long, env = "RUNWIRE_S2_PUBLIC_ENDPOINT", value_name = "URL")]
    pub s2_public_endpoint: Option<String>,
    /// Signs access tokens for streams, at least 32 characters; the same on every gateway. By default
    /// one is made and kept in RUNWIRE_DATA_DIR
    #[arg(long, env = "RUNWIRE_SECRET", value_name = "TEXT", hide_env_values = true)]
    pub secret: Option<String>,
    /// Former secrets, whose tokens are still good, separated by commas
    #[arg(
        long,
        env = "RUNWIRE_SECRET_PREVIOUS",
        value_name = "LIST",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub secret_previous: Vec<String>,
    /// What a Trigger.dev webapp presents that keeps its streams here (its
    /// REALTIME_STREAMS_S2_ACCESS_TOKEN), at least 32 characters; several, separated by commas, while it
    /// changes. It opens all streams. By default /s2/v1 serves no webapp
    #[arg(
        long,
        env = "RUNWIRE_S2_SERVICE_TOKEN",
        value_name = "LIST",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub s2_service_token: Vec<String>,
    /// How long the store in this process collects chunks before it makes them durable, up to 1s. Readers
    /// see only what is durable
    #[arg(long, env = "RUNWIRE_STREAM_FLUSH", default_value = "5ms", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub stream_flush: Duration,
    /// What appends leave free of the disk of the store in this process; while there is less they are
    /// refused, and reading goes on
    #[arg(long, env = "RUNWIRE_STREAM_MIN_FREE", default_value = "1GiB", value_name = "SIZE")]
    pub stream_min_free: ByteSize,
    /// How much memory recent chunks may take, of all streams that are read; those who are behind that
    /// read the store
    #[arg(
        long,
        env = "RUNWIRE_STREAM_RECENT_BYTES",
        default_value = "128MiB",
        value_name = "SIZE"
    )]
    pub stream_recent_bytes: ByteSize,
    #[command(flatten)]
    remote: RemoteArgs,
}

impl StreamArgs {
    /// How streams work, or what is wrong with a setting.
    pub fn settings(&self, data: &Path) -> Result<StreamSettings, SettingError> {
        let given = self.secret.as_deref().filter(|text| !text.is_empty());
        if given.is_some_and(|secret| secret.len() < 32) {
            let problem = "is shorter than 32 characters".to_owned();
            return Err(SettingError { setting: "RUNWIRE_SECRET", problem });
        }
        // An empty one would be everybody's: compose files set what they know no value of.
        let former = self.secret_previous.iter().filter(|text| !text.is_empty());
        if former.clone().any(|secret| secret.len() < 32) {
            let problem = "holds one that is shorter than 32 characters".to_owned();
            return Err(SettingError { setting: "RUNWIRE_SECRET_PREVIOUS", problem });
        }
        let service = self.s2_service_token.iter().filter(|text| !text.is_empty());
        if service.clone().any(|token| token.len() < 32) {
            let problem = "is shorter than 32 characters".to_owned();
            return Err(SettingError { setting: "RUNWIRE_S2_SERVICE_TOKEN", problem });
        }
        let endpoint = self.s2_public_endpoint.clone().filter(|url| !url.is_empty());
        let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        if endpoint.as_ref().is_some_and(|url| !is_url(url) || url.contains(['?', '#', ' '])) {
            let problem = "is no URL such as https://realtime.example.com/s2/v1".to_owned();
            return Err(SettingError { setting: "RUNWIRE_S2_PUBLIC_ENDPOINT", problem });
        }
        let flush = self.stream_flush.clamp(Duration::from_millis(1), Duration::from_secs(1));
        Ok(StreamSettings {
            basin: self.s2_basin.as_str().into(),
            token_lifetime: Duration::from_millis(self.s2_access_token_expiration_in_ms),
            linger_ms: self.s2_flush_interval_ms,
            wait: Duration::from_secs(self.s2_wait_seconds),
            endpoint,
            secret: given.map(Secret::of),
            former: former.map(|text| Secret::of(text)).collect(),
            service: ServiceTokens::of(service.map(String::as_str)),
            data: data.to_owned(),
            remote: self.remote.settings()?,
            store: StoreSettings {
                directory: data.join("streams"),
                flush,
                min_free: self.stream_min_free.as_u64(),
            },
            recent: size(self.stream_recent_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        streams: StreamArgs,
    }

    #[test]
    fn nothing_is_no_former_secret_and_a_short_one_is_refused() {
        let former = |list: &str| {
            let list = format!("--secret-previous={list}");
            let settings = Cli::parse_from(["test", &list]).streams.settings(Path::new("data"));
            settings.map(|settings| settings.former.len()).map_err(|error| error.to_string())
        };
        let long = "x".repeat(32);
        assert_eq!(former(""), Ok(0));
        assert_eq!(former(&format!(",{long},,{long}y")), Ok(2));
        let refused = former(&format!("{long},short")).unwrap_err();
        assert!(refused.starts_with("RUNWIRE_SECRET_PREVIOUS: ") && !refused.contains("short,"));
    }
}
