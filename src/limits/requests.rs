//! What bounds requests at the door, before and after it is known who asks.

use std::collections::HashMap;
use std::hash::RandomState;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::admission::Admission;
use super::gate::Gate;
use super::live::{Live, LiveSettings};
use super::rate::{Quantity, Rate};

/// Addresses, and credentials, of which is remembered how much of their rate they have used. About
/// 100 bytes each.
const MOST_KEYS: usize = 200_000;
/// Bodies that are read at once; no environment has more than three quarters of them.
const MOST_BODIES: usize = 1_000;
/// How often what is not used any more is forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// What the door is told.
#[derive(Clone, Debug)]
pub struct RequestSettings {
    /// Requests that may be at the door at once, not authenticated yet.
    pub admission: usize,
    /// What one address may ask.
    pub address: Option<Quantity>,
    /// What one credential may ask.
    pub credential: Option<Quantity>,
    /// How much an environment may have live.
    pub live: LiveSettings,
}

impl Default for RequestSettings {
    fn default() -> RequestSettings {
        let live = LiveSettings { default: 100_000, environments: HashMap::new() };
        RequestSettings { admission: 20_000, address: None, credential: None, live }
    }
}

/// The limits of requests, in the order in which they are met.
#[derive(Debug)]
pub struct RequestLimits {
    /// All that are at the door.
    pub admission: Arc<Admission>,
    /// By the client's address; an IPv6 one stands for its /64.
    pub addresses: Option<Rate<IpAddr>>,
    /// By a keyed digest of the bearer.
    pub credentials: Option<Rate<u64>>,
    /// Keys those digests.
    pub digests: RandomState,
    /// Held polls and connections of events, by environment.
    pub live: Live,
    /// Bodies that are being read, by environment.
    pub bodies: Gate,
}

impl RequestLimits {
    /// With nothing counted yet.
    pub fn new(settings: RequestSettings) -> RequestLimits {
        RequestLimits {
            admission: Admission::new(settings.admission),
            addresses: settings.address.map(|each| Rate::new(each, MOST_KEYS, "address")),
            credentials: settings.credential.map(|each| Rate::new(each, MOST_KEYS, "credential")),
            digests: RandomState::new(),
            live: Live::new(settings.live),
            bodies: Gate::new(MOST_BODIES, 0, "bodies"),
        }
    }

    /// Forgets what is not used any more, for ever.
    pub async fn run(&self) {
        loop {
            self.admission.report();
            self.live.sweep();
            self.addresses.iter().for_each(Rate::sweep);
            self.credentials.iter().for_each(Rate::sweep);
            tokio::time::sleep(SWEEP).await;
        }
    }
}
