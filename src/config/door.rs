//! Settings of what requests meet before their route: limits, proxies, TLS, Redis.

use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;
use redis::{Client, ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo};

use super::SettingError;
use crate::http::proxy::{Proxies, ProxyHeader};
use crate::http::tls::TlsFiles;
use crate::limits::{LiveSettings, Quantity, RequestSettings};
use crate::server::TlsSettings;

/// How much may be asked, by whom.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Requests that may be at the door at once, not authenticated yet; more get a 503
    #[arg(long, env = "RUNWIRE_MAX_AT_DOOR", default_value_t = 20_000, value_name = "N")]
    pub max_at_door: usize,
    /// Held polls and connections of events that an environment may have at once; more get a 429
    #[arg(long, env = "RUNWIRE_LIVE", default_value_t = 100_000, value_name = "N")]
    pub live: usize,
    /// The same for single environments, as `<environment id>=<n>`, separated by commas
    #[arg(long, env = "RUNWIRE_LIVE_ENVIRONMENTS", value_name = "LIST", value_delimiter = ',', value_parser = environment_live)]
    pub live_environments: Vec<(String, usize)>,
    /// Requests that one address may make, as `<requests>/<time>`: so many at once, and as many again
    /// spread over that time. A poll that is held is one. Not limited by default. Behind a proxy,
    /// RUNWIRE_TRUSTED_PROXIES must name it
    #[arg(long, env = "RUNWIRE_ADDRESS_RATE", value_name = "N/TIME")]
    pub address_rate: Option<Quantity>,
    /// The same for one credential
    #[arg(long, env = "RUNWIRE_CREDENTIAL_RATE", value_name = "N/TIME")]
    pub credential_rate: Option<Quantity>,
    /// Networks of the proxies that say on whose behalf they ask, such as 10.0.0.0/8, separated by commas
    #[arg(
        long,
        env = "RUNWIRE_TRUSTED_PROXIES",
        value_name = "NETWORKS",
        value_delimiter = ',',
        value_parser = network
    )]
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they say it. The other one is not looked at
    #[arg(
        long,
        env = "RUNWIRE_PROXY_HEADER",
        default_value = "x-forwarded-for",
        value_name = "NAME"
    )]
    pub proxy_header: ProxyHeader,
}

fn environment_live(text: &str) -> Result<(String, usize), String> {
    let (environment, live) = text.split_once('=').ok_or("is not <environment id>=<n>")?;
    let live = live.parse().map_err(|_| "is not <environment id>=<n>")?;
    Ok((environment.to_owned(), live))
}

/// A network, or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    network.map_err(|_| "is no network such as 10.0.0.0/8".to_owned())
}

impl LimitArgs {
    /// What requests are held against.
    pub fn requests(&self) -> RequestSettings {
        RequestSettings {
            admission: self.max_at_door,
            address: self.address_rate,
            credential: self.credential_rate,
            live: LiveSettings {
                default: self.live,
                environments: self.live_environments.iter().cloned().collect(),
            },
        }
    }

    /// Who is believed about whose requests they pass on.
    pub fn proxies(&self) -> Proxies {
        Proxies { networks: self.trusted_proxies.clone(), header: self.proxy_header }
    }
}

/// Where and how TLS is spoken.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Where clients connect with TLS, for HTTP/2 and HTTP/1.1; several are separated by commas
    #[arg(
        long,
        env = "RUNWIRE_TLS_LISTEN",
        value_name = "ADDRESSES",
        value_delimiter = ',',
        requires_all = ["tls_certificate", "tls_key"]
    )]
    pub tls_listen: Vec<std::net::SocketAddr>,
    /// The certificate and those up to its root, in PEM. Renewed files are taken up within seconds
    #[arg(long, env = "RUNWIRE_TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "RUNWIRE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

impl TlsArgs {
    /// `None` if no address is set.
    pub fn settings(&self) -> Option<TlsSettings> {
        let listen = self.tls_listen.clone();
        let (certificate, key) = (self.tls_certificate.clone()?, self.tls_key.clone()?);
        (!listen.is_empty()).then_some(TlsSettings { listen, files: TlsFiles { certificate, key } })
    }
}

/// Where gateways meet, so that limits of environments hold across them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Redis")]
pub struct RedisArgs {
    /// The Redis in which gateways say how much each environment has live. Needed only for limits that
    /// hold across several gateways, and never for delivery. Keys begin with `runwire:`
    #[arg(long, env = "RUNWIRE_REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<String>,
    /// The same as Trigger.dev knows it, if there is no URL
    #[arg(long, env = "REDIS_HOST", value_name = "HOST")]
    pub redis_host: Option<String>,
    /// Its port
    #[arg(long, env = "REDIS_PORT", default_value_t = 6379, value_name = "PORT")]
    pub redis_port: u16,
    /// Who connects
    #[arg(long, env = "REDIS_USERNAME", value_name = "NAME")]
    pub redis_username: Option<String>,
    /// With what password
    #[arg(long, env = "REDIS_PASSWORD", value_name = "TEXT", hide_env_values = true)]
    pub redis_password: Option<String>,
    /// `true` to connect without TLS
    #[arg(long, env = "REDIS_TLS_DISABLED", default_value = "false", value_name = "TEXT")]
    pub redis_tls_disabled: String,
}

impl RedisArgs {
    /// `None` if none is set.
    pub fn settings(&self) -> Result<Option<Client>, SettingError> {
        let wrong = |setting| {
            // Not the error's own text, which may quote a password.
            let problem =
                "is no Redis, as redis://user:password@host:6379 or rediss://…".to_owned();
            move |_| SettingError { setting, problem }
        };
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(url) = given(&self.redis_url) {
            return Client::open(url).map(Some).map_err(wrong("RUNWIRE_REDIS_URL"));
        }
        let Some(host) = given(&self.redis_host) else { return Ok(None) };
        let port = self.redis_port;
        let address = match self.redis_tls_disabled.as_str() {
            "true" => ConnectionAddr::Tcp(host, port),
            _ => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        let mut who = RedisConnectionInfo::default();
        if let Some(name) = given(&self.redis_username) {
            who = who.set_username(name);
        }
        if let Some(password) = given(&self.redis_password) {
            who = who.set_password(password);
        }
        let info = address.into_connection_info().map(|info| info.set_redis_settings(who));
        info.and_then(Client::open).map(Some).map_err(wrong("REDIS_HOST"))
    }
}
