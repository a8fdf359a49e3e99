//! The rows that credentials are checked against (`postgres.md`, 2.3), as the stream and queries give
//! them: the same types from either, by the names of the columns.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::runs::created::timestamp_millis;
use crate::runs::text::elements;
use crate::runs::tuple::Cell;

/// Stands for a secret where it is looked up or compared.
pub type KeyDigest = [u8; 32];

/// The digest of a key's whole text.
pub fn digest(key: &str) -> KeyDigest {
    Sha256::digest(key.as_bytes()).into()
}

/// A root key: what opens an environment, and the secret that signs its public tokens. Its `Debug`
/// shows nothing of it.
#[derive(Clone)]
pub struct SigningKey {
    text: Arc<str>,
    digest: KeyDigest,
}

impl SigningKey {
    /// Takes the whole text of a root key, prefix included.
    pub fn new(key: impl Into<Arc<str>>) -> Self {
        let text = key.into();
        Self { digest: digest(&text), text }
    }

    /// The text itself. Never log it.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// What the key is known by.
    pub fn digest(&self) -> &KeyDigest {
        &self.digest
    }
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

/// `RuntimeEnvironment.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvironmentType {
    /// One per developer; has branches.
    Development,
    /// Ignores branches.
    Staging,
    /// Only its branches have runs.
    Preview,
    /// Ignores branches.
    Production,
    /// A type that this gateway does not know.
    Unknown,
}

impl EnvironmentType {
    fn parse(text: &str) -> Self {
        match text {
            "DEVELOPMENT" => Self::Development,
            "STAGING" => Self::Staging,
            "PREVIEW" => Self::Preview,
            "PRODUCTION" => Self::Production,
            _ => Self::Unknown,
        }
    }
}

/// A row of `RuntimeEnvironment`.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvironmentRow {
    /// `id`.
    pub id: Arc<str>,
    /// `type`.
    pub kind: EnvironmentType,
    /// `apiKey`.
    pub key: SigningKey,
    /// `projectId`.
    pub project: Arc<str>,
    /// `parentEnvironmentId`: the environment of which this is a branch.
    pub parent: Option<Arc<str>>,
    /// `branchName`.
    pub branch: Option<Box<str>>,
    /// Whether `archivedAt` is set.
    pub archived: bool,
}

impl EnvironmentRow {
    /// The environment whose keys open this one: its parent, or itself.
    pub fn root(&self) -> &Arc<str> {
        self.parent.as_ref().unwrap_or(&self.id)
    }
}

/// A row of `Project`.
#[derive(Clone, Debug, PartialEq)]
pub struct ProjectRow {
    /// `id`.
    pub id: Arc<str>,
    /// Whether `deletedAt` is set.
    pub deleted: bool,
}

/// A row of `RevokedApiKey`: a root key that was replaced.
#[derive(Clone, Debug, PartialEq)]
pub struct RotatedKeyRow {
    /// `id`.
    pub id: Arc<str>,
    /// `apiKey`.
    pub key: SigningKey,
    /// `runtimeEnvironmentId`.
    pub environment: Arc<str>,
    /// `expiresAt`, the end of its grace, in milliseconds since 1970.
    pub ends: u64,
}

/// A row of `api_keys`.
#[derive(Clone, PartialEq)]
pub struct AdditionalKeyRow {
    /// `id`.
    pub id: Arc<str>,
    /// `key_hash`; `None` if it is no SHA-256 in lower-case hex, so that no key has it.
    pub hash: Option<KeyDigest>,
    /// `runtime_environment_id`.
    pub environment: Arc<str>,
    /// `scopes`; `None` if the stream left them out, since they did not change.
    pub scopes: Option<Arc<[String]>>,
    /// Whether `revoked_at` is set.
    pub revoked: bool,
    /// `expires_at`, in milliseconds since 1970.
    pub ends: Option<u64>,
}

impl fmt::Debug for AdditionalKeyRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdditionalKeyRow").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A row of one of the tables.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyRow {
    /// An environment.
    Environment(EnvironmentRow),
    /// A project.
    Project(ProjectRow),
    /// A rotated key.
    Rotated(RotatedKeyRow),
    /// An additional key.
    Additional(AdditionalKeyRow),
}

/// One row operation on these tables.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyChange {
    /// The row is like this now.
    Put(KeyRow),
    /// The row of this id is gone.
    Gone(KeyTable, Box<str>),
    /// Anything may have changed: a TRUNCATE, more rows than are carried, or a cell that is missing.
    Lost,
}

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyTable {
    /// `RuntimeEnvironment`.
    Environments,
    /// `Project`.
    Projects,
    /// `RevokedApiKey`.
    Rotated,
    /// `api_keys`.
    Additional,
}

impl KeyTable {
    /// All of them.
    pub const ALL: [KeyTable; 4] =
        [Self::Environments, Self::Projects, Self::Rotated, Self::Additional];

    /// The table's name in the schema `public`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Environments => "RuntimeEnvironment",
            Self::Projects => "Project",
            Self::Rotated => "RevokedApiKey",
            Self::Additional => "api_keys",
        }
    }

    /// The columns that matter, the id first.
    pub const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Environments => &[
                "id",
                "type",
                "apiKey",
                "projectId",
                "parentEnvironmentId",
                "branchName",
                "archivedAt",
            ],
            Self::Projects => &["id", "deletedAt"],
            Self::Rotated => &["id", "apiKey", "runtimeEnvironmentId", "expiresAt"],
            Self::Additional => {
                &["id", "key_hash", "runtime_environment_id", "scopes", "revoked_at", "expires_at"]
            }
        }
    }

    /// The most columns that one of them has.
    pub const MOST_COLUMNS: usize = 7;

    /// The row of these cells, which stand in the order of [`KeyTable::columns`]. `None` if one is
    /// missing that must not be.
    pub fn row(self, cells: &[Cell<'_>]) -> Option<KeyRow> {
        let text = |at: usize| match cells.get(at) {
            Some(Cell::Text(text)) => Some(*text),
            _ => None,
        };
        // Neither there nor NULL: what it is cannot be told.
        let known = |at: usize| match cells.get(at)? {
            Cell::Unchanged => None,
            Cell::Null => Some(None),
            Cell::Text(text) => Some(Some(*text)),
        };
        let id: Arc<str> = text(0)?.into();
        Some(match self {
            Self::Environments => KeyRow::Environment(EnvironmentRow {
                id,
                kind: EnvironmentType::parse(text(1)?),
                key: SigningKey::new(text(2)?),
                project: text(3)?.into(),
                parent: known(4)?.map(Arc::from),
                branch: known(5)?.map(Box::from),
                archived: known(6)?.is_some(),
            }),
            Self::Projects => KeyRow::Project(ProjectRow { id, deleted: known(1)?.is_some() }),
            Self::Rotated => KeyRow::Rotated(RotatedKeyRow {
                id,
                key: SigningKey::new(text(1)?),
                environment: text(2)?.into(),
                ends: millis(text(3)?),
            }),
            Self::Additional => KeyRow::Additional(AdditionalKeyRow {
                id,
                hash: parse_hash(text(1)?),
                environment: text(2)?.into(),
                scopes: match cells.get(3)? {
                    Cell::Unchanged => None,
                    Cell::Null => Some(Arc::default()),
                    Cell::Text(list) => Some(elements(list).into()),
                },
                revoked: known(4)?.is_some(),
                ends: known(5)?.map(millis),
            }),
        })
    }
}

/// A time in milliseconds since 1970. One that cannot be read has passed, and so has what is before 1970.
fn millis(text: &str) -> u64 {
    if text == "infinity" { u64::MAX } else { timestamp_millis(text).unwrap_or(0) }
}

fn parse_hash(text: &str) -> Option<KeyDigest> {
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let bytes = text.as_bytes();
    let mut hash = [0; 32];
    if bytes.len() != 2 * hash.len() {
        return None;
    }
    for (out, pair) in hash.iter_mut().zip(bytes.chunks_exact(2)) {
        *out = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(hash)
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
