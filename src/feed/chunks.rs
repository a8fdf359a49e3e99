//! Long answers, cut into chunks that are held for a short time until their clients have fetched them
//! (`runs-and-auth.md`, 6.2).

use std::sync::Arc;
use std::time::Duration;

use moka::policy::EvictionPolicy;

use super::body::Body;
use super::feeds::{Answer, View};
use super::position::Position;

/// How long a chunk is held after the last one was fetched, and how long in all.
const IDLE: Duration = Duration::from_secs(30);
const LIFE: Duration = Duration::from_secs(300);

/// What a feed was opened with: one snapshot, in one chunk or several.
#[derive(Debug)]
pub(super) struct Opening {
    pub view: View,
    pub handle: String,
    pub chunks: Vec<Body>,
    /// Where the feed goes on behind the last chunk.
    pub end: Position,
    pub truncated: bool,
}

/// The openings of several chunks that are being fetched, by handle.
#[derive(Debug)]
pub(super) struct Chunks(moka::sync::Cache<String, Arc<Opening>>);

impl Chunks {
    /// Holds so many bytes; the openings that were fetched from longest ago go first.
    pub fn new(bytes: usize) -> Self {
        let weigh = |_: &String, opening: &Arc<Opening>| {
            let bytes = opening.chunks.iter().map(|chunk| chunk.plain().len()).sum::<usize>();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let cache = moka::sync::Cache::builder()
            .max_capacity(bytes as u64)
            .weigher(weigh)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(IDLE)
            .time_to_live(LIFE)
            .build();
        Chunks(cache)
    }

    /// Holds what its clients will come back for.
    pub fn hold(&self, opening: &Arc<Opening>) {
        if opening.chunks.len() > 1 {
            self.0.insert(opening.handle.clone(), Arc::clone(opening));
        }
    }

    /// The chunk that continues an answer, if it is still held and was made for this view.
    pub fn get(&self, view: &View, handle: &str, at: Position) -> Option<Answer> {
        let opening = self.0.get(handle).filter(|opening| opening.view == *view)?;
        opening.chunk(at.index as usize)
    }

    /// How many bytes are held.
    pub fn bytes(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.weighted_size()
    }
}

impl Opening {
    /// The answer that this chunk is.
    pub fn chunk(&self, index: usize) -> Option<Answer> {
        let body = self.chunks.get(index)?.clone();
        let complete = index + 1 == self.chunks.len();
        let offset = if complete { self.end } else { Position::part(index as u32 + 1) };
        Some(Answer {
            handle: self.handle.clone(),
            offset,
            body,
            complete,
            truncated: self.truncated,
            committed_at: None,
        })
    }
}
