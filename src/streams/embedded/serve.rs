//! Answering requests of S2's own routes.

use std::sync::Arc;

use axum::body::{Body, HttpBody as _};
use axum::http::{Method, Request, Response};
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use s2_common::basin::BasinName;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::{AHEAD, Embedded, PATIENCE, refused, unavailable};
use crate::streams::store::StoreError;

impl Embedded {
    /// See [`crate::streams::Store::serve`].
    pub async fn serve(
        &self,
        basin: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, StoreError> {
        let basin: BasinName = basin.parse().map_err(refused)?;
        let opened = self.in_basin(&basin).await?;
        let room = match *request.method() {
            Method::POST => {
                opened.room.require()?;
                Some(opened.room)
            }
            _ => None,
        };
        let owed = Owed::default();
        let request = match room {
            Some(_) => request.map(|body| owed.note_what_comes(body)),
            None => request,
        };
        let answer = async move {
            let Ok(response) = opened.routes.oneshot(request).await;
            response
        };
        // No deadline: a read may wait for a minute. Who goes away ends it.
        let answer = self.on_runtime(answer)?;
        let response = answer.await.map_err(|_| unavailable("it gave up on a request"))?;
        if response.body().size_hint().exact().is_some() {
            return Ok(response);
        }
        // A session is worked at wherever its answer is asked for, so it is asked for on these threads.
        let (head, body) = response.into_parts();
        let (send, mut receive) = mpsc::channel(AHEAD);
        let pump = self.on_runtime(async move {
            let mut body = body.into_data_stream();
            let cut = async {
                match &room {
                    Some(room) => tokio::select! {
                        () = room.used_up() => StoreError::Full,
                        () = owed.overdue() => unavailable("it did not acknowledge in time"),
                    },
                    None => std::future::pending().await,
                }
            };
            let mut cut = std::pin::pin!(cut);
            loop {
                let next = tokio::select! {
                    next = body.next() => next,
                    why = &mut cut => Some(Err(axum::Error::new(why))),
                    () = send.closed() => return,
                };
                let Some(next) = next else { return };
                let ends = next.is_err();
                if let Ok(piece) = &next {
                    owed.note_what_is_said(piece);
                }
                if send.send(next).await.is_err() || ends {
                    return;
                }
            }
        })?;
        let body = async_stream::stream! {
            let mut pump = pump;
            while let Some(piece) = receive.recv().await {
                yield piece;
            }
            // A clean end is only one if it came to it.
            if (&mut pump).await.is_err() {
                yield Err(axum::Error::new(unavailable("it gave up on a session")));
            }
        };
        Ok(Response::from_parts(head, Body::from_stream(body)))
    }
}

/// What a session has been sent and has not acknowledged. A writer that misses acknowledgements waits for
/// ever, so it is told (`streams-and-sessions.md`, 4.4).
#[derive(Clone, Default)]
struct Owed(Arc<Mutex<Account>>);

#[derive(Default)]
struct Account {
    asked: FrameCount,
    acknowledged: FrameCount,
    /// When either grew last.
    moved: Option<Instant>,
}

impl Owed {
    /// Counts what comes.
    fn note_what_comes(&self, body: Body) -> Body {
        let owed = self.clone();
        Body::from_stream(body.into_data_stream().inspect(move |piece| {
            if let Ok(piece) = piece {
                let mut account = owed.0.lock();
                account.asked.pass(piece);
                account.moved = Some(Instant::now());
            }
        }))
    }

    /// Counts what is said.
    fn note_what_is_said(&self, piece: &[u8]) {
        let mut account = self.0.lock();
        account.acknowledged.pass(piece);
        account.moved = Some(Instant::now());
    }

    /// Waits until something is owed and has been for too long, in which nothing moved: writers stop
    /// sending by themselves when they miss their acknowledgements.
    async fn overdue(&self) {
        loop {
            let due = {
                let account = self.0.lock();
                let owes = account.asked.frames > account.acknowledged.frames;
                account.moved.filter(|_| owes).map(|moved| moved + PATIENCE)
            };
            match due {
                Some(due) if due <= Instant::now() => return,
                Some(due) => tokio::time::sleep_until(due).await,
                None => tokio::time::sleep(PATIENCE / 4).await,
            }
        }
    }
}

/// Counts the frames of one direction of a session: three bytes of length, and as much as they say.
#[derive(Default)]
struct FrameCount {
    frames: u64,
    length: [u8; 3],
    /// Of the length.
    read: usize,
    /// Of the frame.
    left: usize,
}

impl FrameCount {
    fn pass(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            if self.left == 0 {
                self.length[self.read] = piece[0]; // less than 3: it is taken back below
                self.read += 1;
                piece = &piece[1..];
                if self.read < 3 {
                    continue;
                }
                let [high, middle, low] = self.length;
                self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                self.read = 0;
            }
            let taken = self.left.min(piece.len());
            self.left -= taken;
            piece = &piece[taken..];
            if self.left == 0 {
                self.frames += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let mut bytes = Vec::new();
        for length in [1_u32, 300, 0, 70_000, 5] {
            bytes.extend_from_slice(&length.to_be_bytes()[1..]);
            bytes.extend(std::iter::repeat_n(0xff, length as usize));
        }
        for size in [1, 2, 3, 4, 7, 299, 1_000, bytes.len()] {
            let mut count = FrameCount::default();
            bytes.chunks(size).for_each(|piece| count.pass(piece));
            assert_eq!((count.frames, count.left, count.read), (5, 0, 0), "{size}");
            count.pass(&[0, 0, 2, 9]);
            assert_eq!(count.frames, 5, "a part is none");
        }
    }
}
