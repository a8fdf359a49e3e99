//! The handle: what a client carries so that any node can go on from its offset.
//!
//! It holds no authority. Environment, filter and columns are recomputed from each request and only
//! compared with the handle's digest, so a forged handle opens nothing (`runs-and-auth.md`, 11).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::position::Position;
use crate::postgres::{Lsn, Snapshot};
use crate::runs::created::Floor;

/// The longest handle, in characters.
pub const MAX_LEN: usize = 200;

const VERSION: u8 = 1;
const HAS_HORIZON: u8 = 1;
const HAS_NOT_BEFORE: u8 = 2;
const HAS_FLOOR: u8 = 4;
const HAS_CUT: u8 = 8;
const WHOLE: u8 = 16;
const FLAGS: u8 = HAS_HORIZON | HAS_NOT_BEFORE | HAS_FLOOR | HAS_CUT | WHOLE;

/// What a snapshot showed, for as long as the stream has not passed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// The snapshot that the query's rows were read with.
    pub snapshot: Snapshot,
    /// Where the log ended while the query ran: nothing that commits later can be in the rows.
    pub lsn: Lsn,
}

impl Horizon {
    /// Whether the rows held the changes of this transaction, so that it must not be sent again.
    pub fn shows(&self, xid: u32, commit_lsn: Lsn) -> bool {
        commit_lsn < self.lsn && self.snapshot.shows(xid)
    }
}

/// A subscription's identity and start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    /// The history of the database that its positions belong to.
    pub epoch: u64,
    /// Digest of environment, filter and columns.
    pub feed: u64,
    /// Where the stream stood when the handle was issued, or the server's log when the stream was
    /// last connected, if that is later: a crash of the server after it voids the horizon.
    pub start: Lsn,
    /// Makes it unlike every other handle.
    pub nonce: [u8; 6],
    /// What the opening snapshot showed beyond `start`.
    pub horizon: Option<Horizon>,
    /// Set on a handle that only asks its client to start again: what the client has seen, which
    /// the new start must not fall behind.
    pub not_before: Option<Position>,
    /// The lower bound of `createdAt` of a list, pinned when the list was opened.
    pub floor: Option<Floor>,
    /// Set on a list that did not fit into its first answer: of the runs created up to then, in
    /// milliseconds since 1970, the client may lack some.
    pub cut: Option<u64>,
    /// Set on a handle that only asks its client to start again, since the next part of its list was
    /// not held here: it is to come in one, as those who come to another node for each request
    /// would find no part.
    pub whole: bool,
}

impl Handle {
    /// A handle that nobody has been given before.
    pub fn issue(epoch: u64, feed: u64, start: Lsn) -> Self {
        Handle {
            epoch,
            feed,
            start,
            nonce: rand::random(),
            horizon: None,
            not_before: None,
            floor: None,
            cut: None,
            whole: false,
        }
    }

    /// The opaque text.
    pub fn encode(&self) -> String {
        let mut out = Vec::with_capacity(64);
        out.push(VERSION);
        let horizon = if self.horizon.is_some() { HAS_HORIZON } else { 0 };
        let not_before = if self.not_before.is_some() { HAS_NOT_BEFORE } else { 0 };
        let floor = if self.floor.is_some() { HAS_FLOOR } else { 0 };
        let cut = if self.cut.is_some() { HAS_CUT } else { 0 };
        let whole = if self.whole { WHOLE } else { 0 };
        out.push(horizon | not_before | floor | cut | whole);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.feed.to_be_bytes());
        out.extend_from_slice(&self.nonce);
        put(&mut out, self.start.0);
        if let Some(horizon) = &self.horizon {
            put(&mut out, horizon.lsn.0);
            put(&mut out, horizon.snapshot.xmin);
            put(&mut out, horizon.snapshot.xmax - horizon.snapshot.xmin);
            put(&mut out, horizon.snapshot.xip.len() as u64);
            let mut last = horizon.snapshot.xmin;
            for xid in &horizon.snapshot.xip {
                put(&mut out, xid - last);
                last = *xid;
            }
        }
        if let Some(position) = self.not_before {
            put(&mut out, position.lsn.0);
            put(&mut out, u64::from(position.index));
        }
        if let Some(Floor(minutes)) = self.floor {
            put(&mut out, u64::from(minutes));
        }
        if let Some(cut) = self.cut {
            put(&mut out, cut);
        }
        URL_SAFE_NO_PAD.encode(out)
    }

    /// Reads a handle; `None` for anything that Runwire did not write.
    pub fn decode(text: &str) -> Option<Handle> {
        if text.len() > MAX_LEN {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let mut input = bytes.as_slice();
        let [version, flags] = take::<2>(&mut input)?;
        if version != VERSION || flags & !FLAGS != 0 {
            return None;
        }
        let epoch = u64::from_be_bytes(take(&mut input)?);
        let feed = u64::from_be_bytes(take(&mut input)?);
        let nonce = take(&mut input)?;
        let start = Lsn(get(&mut input)?);
        let mut horizon = None;
        if flags & HAS_HORIZON != 0 {
            let lsn = Lsn(get(&mut input)?);
            let xmin = get(&mut input)?;
            let xmax = xmin.checked_add(get(&mut input)?)?;
            let count = get(&mut input)?;
            let mut xip = Vec::new();
            let mut last = xmin;
            for _ in 0..count {
                last = last.checked_add(get(&mut input)?)?;
                xip.push(last);
            }
            horizon = Some(Horizon { snapshot: Snapshot { xmin, xmax, xip }, lsn });
        }
        let mut not_before = None;
        if flags & HAS_NOT_BEFORE != 0 {
            let lsn = Lsn(get(&mut input)?);
            not_before = Some(Position { lsn, index: u32::try_from(get(&mut input)?).ok()? });
        }
        let mut floor = None;
        if flags & HAS_FLOOR != 0 {
            floor = Some(Floor(u32::try_from(get(&mut input)?).ok()?));
        }
        let cut = if flags & HAS_CUT != 0 { Some(get(&mut input)?) } else { None };
        let whole = flags & WHOLE != 0;
        let handle = Handle { epoch, feed, start, nonce, horizon, not_before, floor, cut, whole };
        input.is_empty().then_some(handle)
    }
}

/// Digest of a feed's identity, the same on every node and in every version.
pub fn feed_digest(parts: &[&str], columns: u32) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.update(columns.to_be_bytes());
    let digest = hasher.finalize();
    u64::from_be_bytes(std::array::from_fn(|i| digest[i]))
}

/// LEB128.
fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn get(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let [byte] = take::<1>(input)?;
        let bits = u64::from(byte & 0x7F);
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn any_handle()(
            epoch: u64, feed: u64, start: u64, nonce: [u8; 6], xmin in 0..u64::MAX / 4,
            steps in prop::collection::vec(0u64..300, 0..12), lsn: u64,
            has_horizon: bool, not_before in prop::option::of((any::<u64>(), any::<u32>())),
            floor: Option<u32>, cut: Option<u64>, whole: bool,
        ) -> Handle {
            let xip: Vec<u64> = steps.iter().scan(xmin, |at, step| { *at += step; Some(*at) }).collect();
            let xmax = xip.last().map_or(xmin, |last| last + 1);
            let horizon = Horizon { snapshot: Snapshot { xmin, xmax, xip }, lsn: Lsn(lsn) };
            Handle {
                epoch, feed, start: Lsn(start), nonce,
                horizon: has_horizon.then_some(horizon),
                not_before: not_before.map(|(lsn, index)| Position { lsn: Lsn(lsn), index }),
                floor: floor.map(Floor), cut, whole,
            }
        }
    }

    proptest! {
        #[test]
        fn a_handle_reads_as_it_was_written(handle in any_handle()) {
            let text = handle.encode();
            if text.len() <= MAX_LEN {
                prop_assert_eq!(Handle::decode(&text), Some(handle));
            }
        }

        #[test]
        fn any_text_is_a_handle_or_none(text in ".*") {
            let _ = Handle::decode(&text);
        }

        #[test]
        fn a_changed_handle_never_panics(handle in any_handle(), at: prop::sample::Index, byte in b'0'..b'z') {
            let mut text = handle.encode().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            let _ = Handle::decode(std::str::from_utf8(&text).unwrap());
        }
    }

    #[test]
    fn handles_of_the_other_backends_are_not_ours() {
        for text in ["run-cj7lxlsusgqpjufn7kjv78rkj", "3833821-1721812114261", "", "g-run-x-next"] {
            assert_eq!(Handle::decode(text), None);
        }
    }

    #[test]
    fn no_two_handles_are_alike() {
        let a = Handle::issue(1, 2, Lsn(3));
        assert_ne!(a.encode(), Handle::issue(1, 2, Lsn(3)).encode());
    }
}
