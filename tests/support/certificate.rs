//! Certificates for 127.0.0.1 that nobody trusts but who is told to.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{CertifiedKey, KeyPair};

use super::scratch::Scratch;

/// A certificate and its key, in files of their own.
pub struct Certificate {
    pub path: PathBuf,
    pub key: PathBuf,
    _files: Scratch,
}

impl Certificate {
    /// A new one.
    pub fn new(name: &str) -> Certificate {
        let files = Scratch::new(name);
        fs::create_dir_all(&files.0).expect("a directory");
        let of = |file: &str| files.0.join(file);
        let (path, key) = (of("certificate.pem"), of("key.pem"));
        let certificate = Certificate { path, key, _files: files };
        certificate.renew();
        certificate
    }

    /// Puts another certificate and key in their place.
    pub fn renew(&self) {
        let made = made();
        replace(&self.path, &made.cert.pem());
        replace(&self.key, &made.signing_key.serialize_pem());
    }

    /// The certificate, as whoever trusts it is told.
    pub fn trusted(&self) -> reqwest::Certificate {
        reqwest::Certificate::from_pem(&fs::read(&self.path).expect("read it")).expect("PEM")
    }

    /// Where the gateway finds it.
    pub fn arguments(&self) -> [String; 2] {
        let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        [
            format!("--tls-certificate={}", path(&self.path)),
            format!("--tls-key={}", path(&self.key)),
        ]
    }
}

fn made() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate")
}

/// As a renewing client does: never a file that is half written.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).expect("write");
    fs::rename(next, path).expect("rename");
}
