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
    room: Option<Room>,
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
    bytes: AtomicUsize,
}

impl Room {
    fn take(&self, bytes: usize) {
        self.alive.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
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
        let room = Room { alive: Arc::clone(&self.alive), bytes: AtomicUsize::new(0) };
        room.take(plain.len());
        Body(Arc::new(Rendered { plain, ends, gzip: OnceCell::new(), room: Some(room) }))
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
            Body(Arc::new(Rendered { plain, ends, gzip: OnceCell::new(), room: None }))
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
            let compressed = if plain.len() < GZIP_ASIDE_FROM {
                compress(plain)
            } else {
                let plain = plain.clone();
                tokio::task::spawn_blocking(move || compress(&plain)).await.ok().flatten()
            };
            if let (Some(room), Some(compressed)) = (&self.0.room, &compressed) {
                room.take(compressed.len());
            }
            compressed
        });
        compressed.await.clone()
    }
}

fn compress(plain: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 2), Compression::fast());
    encoder.write_all(plain).ok()?;
    let compressed = encoder.finish().ok()?;
    // It is kept for as long as the body, so not with the room that it did not need.
    (compressed.len() < plain.len()).then(|| Bytes::from(compressed.into_boxed_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_compressed_once_for_all_and_counts_for_as_long_as_it_lives() {
        let bodies = Bodies::new(1 << 30);
        for size in [GZIP_FROM, GZIP_ASIDE_FROM, 1 << 22] {
            let body = bodies.body(Bytes::from(vec![b'x'; size]), Box::default());
            let (first, second) = tokio::join!(body.gzip(), body.gzip());
            let (first, second) = (first.unwrap(), second.unwrap());
            assert_eq!(first.as_ptr(), second.as_ptr(), "{size}");
            assert_eq!(bodies.alive(), size + first.len());
            drop(body);
            assert_eq!(bodies.alive(), 0);
        }
        let small = bodies.body(Bytes::from(vec![b'x'; GZIP_FROM - 1]), Box::default());
        assert!(small.gzip().await.is_none());
    }
}
