//! TLS: the certificate, renewed without a restart, and the handshake.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;
use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::socket::Socket;
use crate::telemetry;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Where the certificate and its key are, both in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, and those up to its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, io::Error),
    /// A file holds something else.
    #[error("{0} holds no {1} in PEM")]
    Pem(PathBuf, &'static str),
    /// The key is not that of the certificate, or of a kind that is not known.
    #[error("{0} and {1} do not belong together: {2}")]
    Pair(PathBuf, PathBuf, rustls::Error),
}

/// Makes TLS connections of sockets.
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
    files: TlsFiles,
    at_start: Found,
    timeout: Counter,
    refused: Counter,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The certificate that is shown from now on.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

impl Tls {
    /// With these files. TLS 1.2 and 1.3; HTTP/2 and HTTP/1.1, as the client likes.
    pub async fn new(files: TlsFiles) -> Result<Tls, TlsError> {
        let found = Found::read(&files).await?;
        let current = Arc::new(Current(RwLock::new(found.parse(&files)?)));
        let versions = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions();
        let versions = versions.expect("the provider has cipher suites for both versions");
        let mut config =
            versions.with_no_client_auth().with_cert_resolver(Arc::clone(&current) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let failed = |why| metrics::counter!(telemetry::TLS_FAILED, "why" => why);
        Ok(Tls {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            current,
            files,
            at_start: found,
            timeout: failed("timeout"),
            refused: failed("refused"),
        })
    }

    /// Shakes hands, or not.
    pub async fn accept<'a>(
        &self,
        socket: &'a mut Socket,
        within: Duration,
    ) -> Option<TlsStream<&'a mut Socket>> {
        match tokio::time::timeout(within, self.acceptor.accept(socket)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(_)) => self.refused.increment(1),
            Err(_) => self.timeout.increment(1),
        }
        None
    }

    /// Takes renewed files up, for ever. Whoever is connected stays so.
    pub async fn renew(&self) {
        let mut last = Some(self.at_start.clone());
        loop {
            tokio::time::sleep(LOOK).await;
            let found = Found::read(&self.files).await;
            // What is wrong is said once, and looked at again when the files change. One of the two may
            // just be newer than the other.
            if found.as_ref().ok() == last.as_ref() {
                continue;
            }
            let renewed = found
                .as_ref()
                .map_err(ToString::to_string)
                .and_then(|found| found.parse(&self.files).map_err(|error| error.to_string()));
            match renewed {
                Ok(certificate) => {
                    *self.current.0.write() = certificate;
                    tracing::info!("the TLS certificate was renewed");
                }
                Err(error) => tracing::warn!(error, "the TLS certificate stays as it was"),
            }
            last = found.ok();
        }
    }
}

/// What the files hold.
#[derive(Clone, PartialEq)]
struct Found {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Found {
    async fn read(files: &TlsFiles) -> Result<Found, TlsError> {
        let read = async |path: &Path| {
            tokio::fs::read(path).await.map_err(|error| TlsError::Read(path.to_owned(), error))
        };
        Ok(Found { certificate: read(&files.certificate).await?, key: read(&files.key).await? })
    }

    fn parse(&self, files: &TlsFiles) -> Result<Arc<CertifiedKey>, TlsError> {
        let no_certificate = || TlsError::Pem(files.certificate.clone(), "certificate");
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| no_certificate())?;
        if chain.is_empty() {
            return Err(no_certificate());
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| TlsError::Pem(files.key.clone(), "private key"))?;
        CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map(Arc::new)
            .map_err(|error| TlsError::Pair(files.certificate.clone(), files.key.clone(), error))
    }
}
