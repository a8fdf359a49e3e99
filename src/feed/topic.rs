//! Topics: what a change can be found under.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// A run, a tag, a batch or an environment, as a number. Different ones may share a number, so what
/// is found under a topic is compared with what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(u64);

/// The numbers are keyed anew in each process, so that nobody can choose ids that fall together.
static KEYED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl Topic {
    /// One run of an environment, by its friendly id.
    pub fn run(environment: &str, friendly_id: &str) -> Topic {
        Topic::numbered(b'r', environment, friendly_id)
    }

    /// All runs of an environment that carry a tag.
    pub fn tag(environment: &str, tag: &str) -> Topic {
        Topic::numbered(b't', environment, tag)
    }

    /// All runs of an environment's batch, by its internal id.
    pub fn batch(environment: &str, batch_id: &str) -> Topic {
        Topic::numbered(b'b', environment, batch_id)
    }

    /// All runs of an environment.
    pub fn environment(environment: &str) -> Topic {
        Topic::numbered(b'e', environment, "")
    }

    /// The changes of an environment's runs that came without the run's tags.
    pub fn untold(environment: &str) -> Topic {
        Topic::numbered(b'u', environment, "")
    }

    fn numbered(kind: u8, environment: &str, name: &str) -> Topic {
        Topic(KEYED.hash_one(Parts { kind, environment, name }))
    }
}

#[derive(Hash)]
struct Parts<'a> {
    kind: u8,
    environment: &'a str,
    name: &'a str,
}
