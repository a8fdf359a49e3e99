//! The secret that signs access tokens: the operator's, or one that is made once and kept.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

const FILE: &str = "secret";

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or written.
    #[error("the secret in {0} cannot be read or made: {1}")]
    File(String, std::io::Error),
    /// Others than its owner may read it, or it is not one of ours.
    #[error("the secret in {0} is not used, since {1}")]
    Unfit(String, &'static str),
}

/// A key for signatures. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Secret(pub(super) [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// That of the operator's words, for this purpose alone.
    pub fn of(text: &str) -> Secret {
        let digest = Sha256::new_with_prefix(b"runwire stream access\0").chain_update(text);
        Secret(digest.finalize().into())
    }

    /// The one that is kept in this directory; made if there is none.
    pub fn kept_in(directory: &Path) -> Result<Secret, SecretError> {
        let path = directory.join(FILE);
        let shown = path.display().to_string();
        let read = || -> Result<Option<Secret>, SecretError> {
            let failed = |error| SecretError::File(shown.clone(), error);
            let mut file = match std::fs::File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            let unfit = |why| SecretError::Unfit(shown.clone(), why);
            if file.metadata().map_err(failed)?.permissions().mode() & 0o077 != 0 {
                return Err(unfit("others than its owner may read or write it; chmod it to 600"));
            }
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(failed)?;
            match text.trim() {
                text if text.len() >= 32 => Ok(Some(Secret::of(text))),
                _ => Err(unfit("it is shorter than 32 characters")),
            }
        };
        if let Some(secret) = read()? {
            return Ok(secret);
        }
        let make = || -> std::io::Result<()> {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            // Whole or not at all, also if two gateways or a crash meet here.
            let new = directory.join(format!("{FILE}.{:016x}", rand::random::<u64>()));
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&new)?;
            let (first, second): (u128, u128) = rand::random();
            write!(file, "{first:032x}{second:032x}")?;
            file.sync_all()?;
            let linked = std::fs::hard_link(&new, &path);
            std::fs::remove_file(&new)?;
            match linked {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            }
        };
        make().map_err(|error| SecretError::File(shown.clone(), error))?;
        let gone = || SecretError::File(shown.clone(), ErrorKind::NotFound.into());
        read()?.ok_or_else(gone)
    }
}
