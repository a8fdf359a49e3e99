//! Lists by tags of one environment, many of them in one statement: those that are asked for while
//! others are read go together, and each is dealt its own rows.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::columns::{Column, ColumnSet};
use super::list::{List, ListQuery, Which};
use super::pace::Pace;
use super::reader::{ListRead, Unavailable};
use super::store::RunStore;
use super::text::elements;
use super::tuple::Tuple;
use crate::limits::{Budget, Full, Gate, Place, Share};

/// The lists of all environments that wait for their statement, or are in one.
#[derive(Debug)]
pub(super) struct Together(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: RunStore,
    bounds: Bounds,
    unsent: Mutex<HashMap<Kind, Waiting>>,
}

/// What bounds the statements, and what they draw on.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Places for lists that wait.
    pub waiting: Gate,
    /// Lists in one statement.
    pub batch: usize,
    /// Places for statements under way.
    pub gate: Gate,
    /// Bytes for what they bring.
    pub budget: Budget,
    /// For how long a statement may take.
    pub query_wait: Duration,
    /// For how long a statement waits for its turn.
    pub patience: Duration,
}

/// What lists have in common that one statement can read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    environment: Arc<str>,
    columns: ColumnSet,
    max_rows: usize,
    max_bytes: usize,
}

/// A list, and who waits for it.
#[derive(Debug)]
struct Asked {
    list: Tagged,
    came: Instant,
    answer: oneshot::Sender<Result<ListRead, Unavailable>>,
}

/// Those that no statement has been sent for.
#[derive(Debug)]
struct Waiting {
    lists: Vec<Asked>,
    /// Told of each that comes.
    came: Arc<Notify>,
}

/// The runs that have all of these tags and were created then or later.
#[derive(Clone, Debug)]
struct Tagged {
    /// One at least.
    tags: Arc<[Box<str>]>,
    created_from: String,
}

impl Together {
    pub fn new(store: RunStore, bounds: Bounds) -> Together {
        Together(Arc::new(Shared { store, bounds, unsent: Mutex::default() }))
    }

    /// The list as of now or later. `Err` gives a query back that is not for this: one of a batch, or
    /// of no tags.
    pub async fn read(
        &self,
        query: ListQuery,
        within: Duration,
    ) -> Result<Result<ListRead, Unavailable>, ListQuery> {
        let ListQuery { environment, which, columns, max_rows, max_bytes } = query;
        let kind = Kind { environment, columns, max_rows, max_bytes };
        let list = match which {
            Which::Tags { tags, created_from } if !tags.is_empty() => Tagged { tags, created_from },
            which => return Err(kind.query(which)),
        };
        let Some(_place) = self.0.bounds.waiting.try_enter(&kind.environment) else {
            return Ok(Err(Unavailable::Full));
        };
        let (answer, receive) = oneshot::channel();
        self.0.push(kind, Asked { list, came: Instant::now(), answer });
        Ok(match tokio::time::timeout(within, receive).await {
            Ok(answer) => answer.unwrap_or(Err(Unavailable::Failed)),
            Err(_) => Err(Unavailable::Late),
        })
    }
}

impl Kind {
    fn query(&self, which: Which) -> ListQuery {
        let Kind { environment, columns, max_rows, max_bytes } = self.clone();
        ListQuery { environment, which, columns, max_rows, max_bytes }
    }
}

impl Shared {
    fn push(self: &Arc<Self>, kind: Kind, asked: Asked) {
        match self.unsent.lock().entry(kind) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().lists.push(asked);
                waiting.get().came.notify_one();
            }
            Entry::Vacant(vacant) => {
                let (kind, came) = (vacant.key().clone(), Arc::<Notify>::default());
                vacant.insert(Waiting { lists: vec![asked], came: Arc::clone(&came) });
                tokio::spawn(Arc::clone(self).drive(kind, came));
            }
        }
    }

    /// Sends statement after statement, until nobody has come for as long as the pace asks for.
    async fn drive(self: Arc<Self>, kind: Kind, came: Arc<Notify>) {
        let mut pace = Pace::new(Instant::now());
        loop {
            while let Some(due) = self.due(&kind, &pace) {
                // Whoever comes may be the last that a batch has room for, or that it waits for.
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = came.notified() => {}
                }
            }
            if let Entry::Occupied(waiting) = self.unsent.lock().entry(kind.clone())
                && waiting.get().lists.is_empty()
            {
                waiting.remove();
                return;
            }
            // Whoever comes while this waits for its turn goes along.
            let entered = self.enter(&kind).await;
            let batch = self.next_batch(&kind);
            match entered {
                Ok(entered) => {
                    pace.sent(Instant::now(), batch.len());
                    tokio::spawn(Arc::clone(&self).fly(kind.clone(), batch, entered));
                }
                Err(Full) => refuse(batch, Unavailable::Full),
            }
        }
    }

    /// Until when others are waited for, if they are.
    fn due(&self, kind: &Kind, pace: &Pace) -> Option<Instant> {
        let unsent = self.unsent.lock();
        let waiting = unsent.get(kind).map(|waiting| &waiting.lists);
        let waiting = waiting.filter(|lists| lists.len() < self.bounds.batch)?;
        let due = waiting.last().map_or(pace.next(), |last| pace.due(last.came));
        (due > Instant::now()).then_some(due)
    }

    fn next_batch(&self, kind: &Kind) -> Vec<Asked> {
        let mut unsent = self.unsent.lock();
        let Some(Waiting { lists: waiting, .. }) = unsent.get_mut(kind) else { return Vec::new() };
        waiting.retain(|asked| !asked.answer.is_closed());
        let many = waiting.len().min(self.bounds.batch);
        waiting.drain(..many).collect()
    }

    async fn enter(&self, kind: &Kind) -> Result<(Share, Place), Full> {
        let Bounds { gate, budget, patience, .. } = &self.bounds;
        let share = budget.take(&kind.environment, kind.max_bytes, *patience).await?;
        let place = gate.enter(&kind.environment, *patience).await?;
        Ok((share, place))
    }

    /// Reads a batch and gives everybody their list. What is too much for one statement, or holds a
    /// row that cannot be read, is tried in halves.
    async fn fly(self: Arc<Self>, kind: Kind, batch: Vec<Asked>, entered: (Share, Place)) {
        let (mut parts, mut entered) = (vec![batch], Some(entered));
        while let Some(mut part) = parts.pop() {
            part.retain(|asked| !asked.answer.is_closed());
            if part.is_empty() {
                continue;
            }
            // Bytes before a place, as all do, or two would wait for each other.
            let (mut share, _place) = match entered.take() {
                Some(entered) => entered,
                None => match self.enter(&kind).await {
                    Ok(entered) => entered,
                    Err(Full) => {
                        refuse(part, Unavailable::Full);
                        continue;
                    }
                },
            };
            let alone = part.len() == 1;
            let query = kind.query(which(&part));
            let read = self.store.list(&query);
            match tokio::time::timeout(self.bounds.query_wait, read).await {
                Ok(Ok(list)) if alone || !list.truncated => {
                    share.resize(list.rows.iter().map(Tuple::size).sum());
                    deal(part, list, &Arc::new(share));
                }
                Ok(Ok(_)) => split(&mut parts, part),
                Ok(Err(error)) if !alone && error.is_of_the_data() => split(&mut parts, part),
                failed => {
                    let error = failed.map(|answer| answer.err()).ok().flatten();
                    refuse(part, Unavailable::of(error));
                }
            }
        }
    }
}

fn refuse(batch: Vec<Asked>, why: Unavailable) {
    for asked in batch {
        // Who has gone needs no answer.
        let _ = asked.answer.send(Err(why));
    }
}

fn split(parts: &mut Vec<Vec<Asked>>, mut part: Vec<Asked>) {
    let rest = part.split_off(part.len() / 2);
    parts.extend([rest, part]);
}

/// What one statement reads for all of them: one list as it is, of several every run that has one tag
/// of each. The tag is the one that the fewest of them share, since a common one would bring too much.
fn which(part: &[Asked]) -> Which {
    if let [alone] = part {
        let Tagged { tags, created_from } = alone.list.clone();
        return Which::Tags { tags, created_from };
    }
    let tags = leading(part).into_keys().map(Box::from).collect();
    let from = part.iter().map(|asked| &asked.list.created_from).min();
    Which::AnyTag { tags, created_from: from.cloned().unwrap_or_default() }
}

/// The tag that each of them is read by, with the lists that it stands for.
fn leading(part: &[Asked]) -> HashMap<&str, Vec<usize>> {
    let mut sharing: HashMap<&str, usize> = HashMap::new();
    for tag in part.iter().flat_map(|asked| asked.list.tags.iter()) {
        *sharing.entry(tag).or_default() += 1;
    }
    let mut leading: HashMap<&str, Vec<usize>> = HashMap::new();
    for (nth, asked) in part.iter().enumerate() {
        let rarest = asked.list.tags.iter().min_by_key(|tag| sharing[&***tag]);
        leading.entry(rarest.map_or("", |tag| tag)).or_default().push(nth);
    }
    leading
}

/// Gives each its rows, in their order.
fn deal(part: Vec<Asked>, list: List, share: &Arc<Share>) {
    let List { seen, rows, truncated } = list;
    let dealt = if part.len() == 1 { vec![rows] } else { sort_out(&part, &rows) };
    for (asked, rows) in part.into_iter().zip(dealt) {
        let list = List { seen: seen.clone(), rows, truncated };
        let _ = asked.answer.send(Ok(ListRead { list, share: Arc::clone(share) }));
    }
}

fn sort_out(part: &[Asked], rows: &[Tuple]) -> Vec<Vec<Tuple>> {
    let leading = leading(part);
    let mut dealt: Vec<Vec<Tuple>> = part.iter().map(|_| Vec::new()).collect();
    for row in rows {
        let mut tags = row.text(Column::RunTags).map(elements).unwrap_or_default();
        // A tag may stand there twice.
        tags.sort_unstable();
        tags.dedup();
        let has = |tag: &str| tags.binary_search_by(|own| own.as_str().cmp(tag)).is_ok();
        for &nth in tags.iter().filter_map(|tag| leading.get(tag.as_str())).flatten() {
            let Tagged { tags, created_from } = &part[nth].list;
            let recent = row.text(Column::CreatedAt).is_some_and(|at| at >= created_from.as_str());
            if recent && tags.iter().all(|tag| has(tag)) {
                dealt[nth].push(row.clone());
            }
        }
    }
    dealt
}
