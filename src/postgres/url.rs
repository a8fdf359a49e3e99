//! A connection URL as Trigger.dev's settings hold it: for libpq, for Prisma, or for both.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use pgwire_replication::{ReplicationConfig, SslMode, TlsConfig};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

/// Settings that leak into the text of values, pinned for every connection (`postgres.md`, 4.5):
/// rows that came by SQL and by the stream must be the same bytes.
const PINNED: [(&str, &str); 4] = [
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("timezone", "UTC"),
];

/// Where a Postgres is and who connects. Neither `Debug` nor `Display` shows the password.
#[derive(Clone)]
pub struct ConnectionUrl {
    host: String,
    port: u16,
    user: String,
    password: String,
    database: String,
    tls: Tls,
    root_certificate: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tls {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Why a URL cannot be used. It never repeats the URL, which may hold a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UrlError {
    /// It is not a URL at all.
    #[error("is not a URL: {0}")]
    Malformed(#[from] url::ParseError),
    /// It is a URL of something else.
    #[error("must begin with postgresql:// or postgres://")]
    Scheme,
    /// There is no database in it.
    #[error("names no database; it must end in /database")]
    NoDatabase,
    /// A part is not text.
    #[error("has a part that is not UTF-8")]
    NotUtf8,
    /// The mode of TLS is not one of libpq's.
    #[error(
        "has the unknown sslmode {0:?}; use disable, prefer, require, verify-ca or verify-full"
    )]
    SslMode(String),
}

impl ConnectionUrl {
    /// Reads a URL. Parameters that only Prisma or a pooler knows (`schema`, `connection_limit`,
    /// `pgbouncer`, …) are accepted and mean nothing here.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let url = Url::parse(text.trim())?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(UrlError::Scheme);
        }
        let decode = |part: &str| {
            let bytes: Vec<u8> = percent_decode_str(part).collect();
            String::from_utf8(bytes).map_err(|_| UrlError::NotUtf8)
        };
        let mut found = ConnectionUrl {
            host: decode(url.host_str().unwrap_or_default())?,
            port: url.port().unwrap_or(5432),
            user: decode(url.username())?,
            password: decode(url.password().unwrap_or_default())?,
            database: decode(url.path().trim_start_matches('/'))?,
            tls: Tls::Prefer,
            root_certificate: None,
        };
        for (name, value) in url.query_pairs() {
            match &*name {
                "sslmode" => found.tls = Tls::named(&value)?,
                "sslrootcert" => found.root_certificate = Some(PathBuf::from(&*value)),
                "host" => found.host = value.into_owned(),
                "port" => found.port = value.parse().unwrap_or(found.port),
                "user" => found.user = value.into_owned(),
                "password" => found.password = value.into_owned(),
                "dbname" => found.database = value.into_owned(),
                _ => {}
            }
        }
        if found.host.is_empty() {
            found.host = "127.0.0.1".to_owned();
        }
        if found.user.is_empty() {
            found.user = "postgres".to_owned();
        }
        if found.database.is_empty() {
            return Err(UrlError::NoDatabase);
        }
        Ok(found)
    }

    /// The options of ordinary connections.
    pub fn sql_options(&self) -> PgConnectOptions {
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(self.port)
            .username(&self.user)
            .password(&self.password)
            .database(&self.database)
            .application_name("runwire")
            .ssl_mode(match self.tls {
                Tls::Disable => PgSslMode::Disable,
                Tls::Prefer => PgSslMode::Prefer,
                Tls::Require => PgSslMode::Require,
                Tls::VerifyCa => PgSslMode::VerifyCa,
                Tls::VerifyFull => PgSslMode::VerifyFull,
            })
            .options(PINNED);
        if let Some(path) = &self.root_certificate {
            options = options.ssl_root_cert(path);
        }
        if self.host.starts_with('/') {
            options.socket(&self.host)
        } else {
            options.host(&self.host)
        }
    }

    /// The same server for a replication connection.
    pub fn replication_config(&self) -> ReplicationConfig {
        let pinned: Vec<String> = PINNED.iter().map(|(name, v)| format!("-c {name}={v}")).collect();
        let mode = match self.tls {
            Tls::Disable => SslMode::Disable,
            Tls::Prefer => SslMode::Prefer,
            Tls::Require => SslMode::Require,
            Tls::VerifyCa => SslMode::VerifyCa,
            Tls::VerifyFull => SslMode::VerifyFull,
        };
        let tls =
            TlsConfig { mode, ca_pem_path: self.root_certificate.clone(), ..TlsConfig::default() };
        let mut config = ReplicationConfig::default()
            .with_port(self.port)
            .with_tls(tls)
            .with_options(pinned.join(" "))
            .with_application_name("runwire");
        config.host.clone_from(&self.host);
        config.user.clone_from(&self.user);
        config.password.clone_from(&self.password);
        config.database.clone_from(&self.database);
        config
    }
}

impl Tls {
    fn named(name: &str) -> Result<Tls, UrlError> {
        match name {
            "disable" => Ok(Tls::Disable),
            "allow" | "prefer" => Ok(Tls::Prefer),
            "require" => Ok(Tls::Require),
            "verify-ca" => Ok(Tls::VerifyCa),
            "verify-full" => Ok(Tls::VerifyFull),
            _ => Err(UrlError::SslMode(name.to_owned())),
        }
    }
}

impl fmt::Display for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConnectionUrl { user, host, port, database, .. } = self;
        write!(f, "postgresql://{user}@{host}:{port}/{database}")
    }
}

impl fmt::Debug for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prisma_url_is_read_and_its_password_is_never_shown() {
        let text = "postgresql://us%40er:p%2Fss%3A%23@db.example:6543/main?schema=public&connection_limit=5&pgbouncer=true&sslmode=disable";
        let url = ConnectionUrl::parse(text).unwrap();
        assert_eq!((url.user.as_str(), url.password.as_str()), ("us@er", "p/ss:#"));
        assert_eq!((url.port, url.database.as_str(), url.tls), (6543, "main", Tls::Disable));
        assert_eq!(url.to_string(), "postgresql://us@er@db.example:6543/main");
        assert!(!format!("{url:?}").contains("p/ss"));
        let socket = ConnectionUrl::parse("postgres://u@localhost/main?host=/var/run/pg").unwrap();
        assert_eq!(socket.host, "/var/run/pg");
        assert_eq!((socket.port, socket.tls), (5432, Tls::Prefer));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let error = |text| ConnectionUrl::parse(text).unwrap_err();
        assert_eq!(error("mysql://u@h/d"), UrlError::Scheme);
        assert_eq!(error("postgres://u@h"), UrlError::NoDatabase);
        assert_eq!(error("postgres://u@h/d?sslmode=off"), UrlError::SslMode("off".into()));
        assert!(matches!(error("nonsense"), UrlError::Malformed(_)));
    }
}
