//! How the door works.

use std::{num::NonZeroU32, time::Duration};

use super::token::TokenRules;

/// How the door works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long what the database said is believed while the stream does not tell of changes.
    pub accepted_for: Duration,
    /// The same while it does.
    pub confirmed_for: Duration,
    /// How long a refusal is believed. It is shorter, since a key may be about to exist.
    pub refused_for: Duration,
    /// Memory for good credentials, in bytes; about 1,000 per credential.
    pub accepted_bytes: u64,
    /// How many refusals are remembered.
    pub refused_entries: u64,
    /// Memory for all environments and keys, in bytes; about 400 each. Where they take more none is
    /// held, and each credential is looked up.
    pub key_bytes: usize,
    /// How many look-ups run in the database at once.
    pub lookups: usize,
    /// How many look-ups may wait for their turn; more are refused as [`Refusal::Unavailable`].
    pub lookups_waiting: usize,
    /// How long a look-up may take, its wait included.
    pub lookup_deadline: Duration,
    /// How many credentials that are not known are looked up in a second, at most; more are refused
    /// as [`Refusal::Unavailable`].
    pub lookups_per_second: NonZeroU32,
    /// Whether public tokens of an archived branch work until they expire, as upstream.
    pub archived_branch_tokens: bool,
    /// How public tokens are verified.
    pub tokens: TokenRules,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            accepted_for: Duration::from_secs(5),
            confirmed_for: Duration::from_secs(60),
            refused_for: Duration::from_secs(1),
            accepted_bytes: 128 << 20,
            refused_entries: 50_000,
            key_bytes: 256 << 20,
            lookups: 8,
            lookups_waiting: 4096,
            lookup_deadline: Duration::from_secs(2),
            lookups_per_second: NonZeroU32::new(100).unwrap_or(NonZeroU32::MIN),
            archived_branch_tokens: true,
            tokens: TokenRules::default(),
        }
    }
}
