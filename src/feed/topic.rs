//! Topics: what a change can be found under.

use std::hash::{BuildHasher, RandomState};

/// A run, a tag, a batch or an environment, as a number. Different ones may share a number, so what
/// is found under a topic is compared with what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(u64);

/// Makes topics. The numbers are keyed anew in each process, so that nobody can choose ids that fall together.
#[derive(Clone, Debug, Default)]
pub struct Topics(RandomState);

impl Topics {
    /// One run of an environment, by its friendly id.
    pub fn run(&self, environment: &str, friendly_id: &str) -> Topic {
        self.number(b'r', environment, friendly_id)
    }

    /// All runs of an environment that carry a tag.
    pub fn tag(&self, environment: &str, tag: &str) -> Topic {
        self.number(b't', environment, tag)
    }

    /// All runs of an environment's batch, by its internal id.
    pub fn batch(&self, environment: &str, batch_id: &str) -> Topic {
        self.number(b'b', environment, batch_id)
    }

    /// All runs of an environment.
    pub fn environment(&self, environment: &str) -> Topic {
        self.number(b'e', environment, "")
    }

    /// The changes of an environment's runs that came without the run's tags.
    pub fn untold(&self, environment: &str) -> Topic {
        self.number(b'u', environment, "")
    }

    fn number(&self, kind: u8, environment: &str, name: &str) -> Topic {
        Topic(self.0.hash_one(Parts { kind, environment, name }))
    }
}

#[derive(Hash)]
struct Parts<'a> {
    kind: u8,
    environment: &'a str,
    name: &'a str,
}
