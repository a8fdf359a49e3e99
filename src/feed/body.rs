//! Complete bodies: rendered once, compressed once, and shared by all who are sent the same.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::image::{Image, MessageKey};
use super::wire;

/// From this size on a body is compressed for who accepts that.
const GZIP_FROM: usize = 1024;
/// From this size on compressing it is no work for a thread that serves others.
const GZIP_ASIDE_FROM: usize = 64 * 1024;
/// Bodies of several messages that are kept for sharing.
const KEPT: usize = 32;
/// The largest of them that is kept.
const KEPT_BYTES: usize = 1 << 20;

/// A JSON array of messages. A clone shares everything with its original.
#[derive(Clone, Debug)]
pub struct Body(Arc<Rendered>);

#[derive(Debug)]
struct Rendered {
    plain: Bytes,
    /// Where each message ends.
    ends: Box<[u32]>,
    gzip: OnceCell<Option<Bytes>>,
    _room: Option<Room>,
}

/// No more bodies may be alive at once.
#[derive(Debug, thiserror::Error)]
#[error("too many bodies are on their way")]
pub struct Crowded;

/// What all bodies share: their limit, and those of several messages that were made last.
#[derive(Debug)]
pub(super) struct Bodies {
    alive: Arc<AtomicUsize>,
    limit: usize,
    joined: Mutex<VecDeque<Joined>>,
}

/// A body of several messages, made once by whoever wants it first.
type Joined = (Box<[Part]>, Arc<OnceLock<Body>>);

/// A message of a body.
pub(super) type Part = (Arc<Image>, MessageKey);

/// A body's share of the limit.
#[derive(Debug)]
struct Room {
    alive: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Bodies {
    /// Bodies of together at most `limit` bytes, each counted once however many are sent it.
    pub fn new(limit: usize) -> Self {
        Bodies { alive: Arc::default(), limit, joined: Mutex::default() }
    }

    /// How many bytes of bodies are alive, in memory or on their way.
    pub fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    /// Whether a new body may be made now.
    pub fn room(&self) -> Result<(), Crowded> {
        if self.alive() < self.limit { Ok(()) } else { Err(Crowded) }
    }

    /// A body of this text, whose messages end there.
    pub fn body(&self, plain: Bytes, ends: Box<[u32]>) -> Body {
        let bytes = plain.len();
        self.alive.fetch_add(bytes, Ordering::Relaxed);
        let room = Room { alive: Arc::clone(&self.alive), bytes };
        Body(Arc::new(Rendered { plain, ends, gzip: OnceCell::new(), _room: Some(room) }))
    }

    /// A complete body of these messages.
    pub fn of(&self, parts: &[Part]) -> Body {
        if let [(image, key)] = parts {
            return image.body(*key, self);
        }
        let body = {
            let mut joined = self.joined.lock();
            let known = joined.iter().find(|(known, _)| same(known, parts));
            if let Some((_, body)) = known {
                Arc::clone(body)
            } else {
                let body = Arc::default();
                if joined.len() >= KEPT {
                    joined.pop_front();
                }
                joined.push_back((parts.into(), Arc::clone(&body)));
                body
            }
        };
        // Outside of the lock, and still once for all who want the same.
        let made = body.get_or_init(|| self.join(parts)).clone();
        if made.plain().len() > KEPT_BYTES {
            self.joined.lock().retain(|(_, kept)| !Arc::ptr_eq(kept, &body));
        }
        made
    }

    fn join(&self, parts: &[Part]) -> Body {
        let messages: Vec<Body> = parts.iter().map(|(image, key)| image.body(*key, self)).collect();
        let mut writer = wire::Writer::new(messages.iter().map(|body| body.0.plain.len()).sum());
        for message in messages.iter().flat_map(Body::messages) {
            writer.push_rendered(&message);
        }
        let (plain, ends) = writer.complete();
        self.body(plain, ends)
    }
}

/// Whether the bodies of these messages are the same. The images are kept alive by who keeps the
/// parts, so that their addresses tell them apart.
fn same(known: &[Part], parts: &[Part]) -> bool {
    let alike = |((a, a_key), (b, b_key)): (&Part, &Part)| Arc::ptr_eq(a, b) && a_key == b_key;
    known.len() == parts.len() && known.iter().zip(parts).all(alike)
}

impl Body {
    /// The body that says that nothing is new.
    pub fn up_to_date() -> Body {
        static UP_TO_DATE: OnceLock<Body> = OnceLock::new();
        let make = || {
            let (plain, ends) = wire::Writer::new(0).complete();
            Body(Arc::new(Rendered { plain, ends, gzip: OnceCell::new(), _room: None }))
        };
        UP_TO_DATE.get_or_init(make).clone()
    }

    /// The text.
    pub fn plain(&self) -> Bytes {
        self.0.plain.clone()
    }

    /// The text of each message but the control at the end.
    pub fn messages(&self) -> impl Iterator<Item = Bytes> + '_ {
        let ends = &self.0.ends;
        (0..ends.len()).map(|i| {
            // Behind the bracket, or behind the comma.
            let start = if i == 0 { 1 } else { ends[i - 1] as usize + 1 };
            self.0.plain.slice(start..ends[i] as usize)
        })
    }

    /// The text compressed, if that is worth it.
    pub async fn gzip(&self) -> Option<Bytes> {
        let plain = &self.0.plain;
        if plain.len() < GZIP_FROM {
            return None;
        }
        let compressed = self.0.gzip.get_or_init(|| async {
            if plain.len() < GZIP_ASIDE_FROM {
                return compress(plain);
            }
            let plain = plain.clone();
            tokio::task::spawn_blocking(move || compress(&plain)).await.ok().flatten()
        });
        compressed.await.clone()
    }
}

fn compress(plain: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 2), Compression::fast());
    encoder.write_all(plain).ok()?;
    let compressed = encoder.finish().ok()?;
    (compressed.len() < plain.len()).then(|| Bytes::from(compressed))
}
