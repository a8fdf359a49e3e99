//! Joining rows that a query returned to the stream, so that nothing is lost, doubled or back in time
//! (`postgres.md`, 5.6).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::facts::Facts;
use super::feeds::{CATCH_UP_WAIT, Feeds, Unavailable, View, reach};
use super::filter::Filter;
use super::handle::{Handle, Horizon, MAX_LEN};
use super::image::Image;
use super::key::Runs;
use super::news::Reading;
use crate::limits::Share;
use crate::postgres::Lsn;
use crate::runs::columns::Column;
use crate::runs::created::Floor;
use crate::runs::list::{ListQuery, Which};
use crate::runs::reader::Patience;
use crate::runs::store::Seen;

/// For how long a snapshot is repeated until it shows all that the window has forgotten.
const SETTLE_WAIT: Duration = Duration::from_secs(5);

/// The rows of a feed as of a head, and what to skip of the stream behind it.
#[derive(Debug)]
pub(super) struct Joined {
    pub rows: Vec<Arc<Image>>,
    pub epoch: u64,
    pub head: Lsn,
    /// See [`Handle::start`].
    pub start: Lsn,
    pub horizon: Option<Horizon>,
    /// What a query gave besides its rows.
    pub read: Extras,
}

/// What a query gives besides its rows.
#[derive(Debug, Default)]
pub(super) struct Extras {
    /// The facts of a run that is asked for by itself.
    pub facts: Option<Facts>,
    /// There were more rows than a list may have. The last that was kept was created then.
    pub cut: Option<String>,
    pub share: Option<Arc<Share>>,
}

struct Read {
    seen: Seen,
    rows: Vec<Arc<Image>>,
    extras: Extras,
}

impl Joined {
    /// A handle that nobody has been given, for what was joined.
    pub fn issue(&self, view: &View) -> Handle {
        let mut handle = Handle::issue(self.epoch, view.feed.digest(view.columns), self.start);
        handle.horizon.clone_from(&self.horizon);
        handle
    }
}

impl Feeds {
    /// Queries until the answer shows all that the window has forgotten, and joins it.
    pub(super) async fn read_and_join(
        &self,
        view: &View,
        floor: Floor,
        patience: Patience,
    ) -> Result<Joined, Unavailable> {
        let filter = Filter::new(&view.feed, floor);
        let deadline = Instant::now() + SETTLE_WAIT;
        let mut pause = Duration::from_millis(2);
        loop {
            let connections = self.feed.state.read().connections;
            let Read { seen, rows, extras } = self.read(view, floor, patience).await?;
            let mut joined = self.join(&filter, connections, &seen, &rows)?;
            // It is a horizon that makes a handle long.
            let too_long = |joined: &Joined| {
                joined.horizon.is_some() && joined.issue(view).encode().len() > MAX_LEN
            };
            if joined.as_ref().is_some_and(too_long) {
                // What the query saw is too long for a handle, so the stream must pass it first.
                if !reach(&self.feed, seen.insert_lsn, CATCH_UP_WAIT).await {
                    return Err(Unavailable);
                }
                joined = self.join(&filter, connections, &seen, &rows)?;
            }
            if let Some(joined) = joined {
                return Ok(Joined { read: extras, ..joined });
            }
            if Instant::now() >= deadline {
                return Err(Unavailable);
            }
            metrics::counter!(crate::telemetry::SNAPSHOT_REPEATS).increment(1);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    async fn read(
        &self,
        view: &View,
        floor: Floor,
        patience: Patience,
    ) -> Result<Read, Unavailable> {
        let environment = view.feed.environment();
        let which = match view.feed.runs() {
            Runs::One(id) => {
                let read = self.reader.run(environment, id, patience).await?;
                let seen = Seen::clone(&read.seen);
                let Some(stored) = &read.run else {
                    return Ok(Read { seen, rows: Vec::new(), extras: Extras::default() });
                };
                let image = Arc::new(Image::of_row(&stored.row));
                let facts = Some(self.facts.of_stored(stored, &image));
                let extras = Extras { facts, ..Extras::default() };
                return Ok(Read { seen, rows: vec![image], extras });
            }
            Runs::OfBatch(id) => Which::Batch { id: Arc::clone(id) },
            Runs::Tagged { tags, .. } => {
                Which::Tags { tags: Arc::clone(tags), created_from: floor.text() }
            }
        };
        let query = ListQuery {
            environment: Arc::clone(environment),
            which,
            columns: view.columns,
            max_rows: self.settings.list_max,
            max_bytes: self.settings.list_bytes,
        };
        let read = self.reader.list(query, patience).await?;
        let (list, share) = (read.list, read.share);
        let rows: Vec<_> = list.rows.into_iter().map(|row| Arc::new(Image::of_row(&row))).collect();
        let oldest = rows.last().and_then(|row| row.text(Column::CreatedAt));
        let cut = oldest.filter(|_| list.truncated).map(str::to_owned);
        let extras = Extras { facts: None, cut, share: Some(share) };
        Ok(Read { seen: list.seen, rows, extras })
    }

    /// The rows of a query and the changes of the window that it does not show, in one version of
    /// the window; `None` if the query must be repeated. `connections` is how many the stream had
    /// had before the query.
    pub(super) fn join(
        &self,
        filter: &Filter,
        connections: u64,
        seen: &Seen,
        rows: &[Arc<Image>],
    ) -> Result<Option<Joined>, Unavailable> {
        let horizon = Horizon { snapshot: seen.snapshot.clone(), lsn: seen.insert_lsn };
        let state = self.feed.state.read();
        let epoch = state.epoch.ok_or(Unavailable)?;
        // Connected anew since: the server may have crashed and taken back what the query saw.
        let void = state.connections != connections;
        if void || !state.settlement.admits(&horizon.snapshot, filter.topics()[0], filter.untold())
        {
            return Ok(None);
        }
        let mut reading =
            Reading::after(state.settlement.shown_up_to(&horizon.snapshot, state.head));
        reading.advance(&state, filter, Some(&horizon), usize::MAX);
        let later: Vec<_> = reading.runs().filter_map(|run| state.state(run)).collect();
        let later: Vec<_> =
            later.into_iter().map(|(image, gone)| (Arc::clone(image), gone)).collect();
        let (head, start) = (state.head, state.head.max(state.resumed_at));
        drop(state);
        // Once the stream has passed what the query can have seen, there is nothing to skip.
        let horizon = (head < horizon.lsn).then_some(horizon);
        let rows = lay_over(rows, later, filter);
        Ok(Some(Joined { rows, epoch, head, start, horizon, read: Extras::default() }))
    }
}

/// The rows with their later states, without those that are of the feed no more, and with those that
/// have come to be.
fn lay_over(
    rows: &[Arc<Image>],
    later: Vec<(Arc<Image>, bool)>,
    filter: &Filter,
) -> Vec<Arc<Image>> {
    if later.is_empty() {
        return rows.to_vec();
    }
    fn id(image: &Image) -> &str {
        image.text(Column::Id).unwrap_or_default()
    }
    let later: HashMap<&str, &(Arc<Image>, bool)> =
        later.iter().map(|later| (id(&later.0), later)).collect();
    let mut laid = Vec::with_capacity(rows.len());
    for row in rows {
        match later.get(id(row)) {
            None => laid.push(Arc::clone(row)),
            Some((_, true)) => {}
            // Tags that the stream has left out ever since are those that the query saw.
            Some((image, false)) => {
                let image = image.filled_from(row);
                laid.extend(filter.matches(&image).then(|| Arc::new(image)));
            }
        }
    }
    // For the same reason a run without known tags that the query did not find is not of the feed.
    let known: std::collections::HashSet<&str> = rows.iter().map(|row| id(row)).collect();
    let new = later.iter().filter(|(id, _)| !known.contains(*id));
    let new = new.filter(|(_, (image, gone))| !gone && filter.matches(image));
    laid.extend(new.map(|(_, (image, _))| Arc::clone(image)));
    laid
}
