//! A bounded queue that environments share: first in, first out within one, in turns between them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Where an item is in a [`FairQueue`]; also its age, so that an item that was taken out can go back
/// to where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Items by environment. Environments take turns, however many items each has.
#[derive(Debug)]
pub struct FairQueue<T> {
    /// Every environment here has exactly one entry in `turns`; its lane may be empty until that
    /// turn comes.
    lanes: HashMap<Arc<str>, BTreeMap<Ticket, T>>,
    turns: VecDeque<Arc<str>>,
    next: u64,
    len: usize,
    limit: usize,
}

/// What became of an item that was pushed.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed<T> {
    /// It waits.
    In(Ticket),
    /// It waits in the place of another, the newest of the environment that had the most.
    InsteadOf(Ticket, T),
    /// The queue is full and no environment has more waiting than its own.
    Refused(T),
}

impl<T> FairQueue<T> {
    /// A queue of at most `limit` items.
    pub fn new(limit: usize) -> Self {
        FairQueue { lanes: HashMap::new(), turns: VecDeque::new(), next: 0, len: 0, limit }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an item at the end of its environment's lane.
    pub fn push(&mut self, environment: &str, item: T) -> Pushed<T> {
        let mut removed = None;
        if self.len >= self.limit {
            let own = self.lanes.get(environment).map_or(0, BTreeMap::len);
            // Looked for only when the queue is full, so that the usual push stays cheap.
            let longest = self.lanes.values_mut().max_by_key(|lane| lane.len());
            match longest.filter(|lane| lane.len() > own).and_then(BTreeMap::pop_last) {
                Some((_, newest)) => removed = Some(newest),
                None => return Pushed::Refused(item),
            }
            self.len -= 1;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.put(environment, ticket, item);
        match removed {
            None => Pushed::In(ticket),
            Some(other) => Pushed::InsteadOf(ticket, other),
        }
    }

    /// Puts an item back to where it was in its lane, also beyond the limit.
    pub fn put_back(&mut self, environment: &str, ticket: Ticket, item: T) {
        self.put(environment, ticket, item);
    }

    fn put(&mut self, environment: &str, ticket: Ticket, item: T) {
        self.len += 1;
        if let Some(lane) = self.lanes.get_mut(environment) {
            lane.insert(ticket, item);
            return;
        }
        let environment: Arc<str> = environment.into();
        self.turns.push_back(Arc::clone(&environment));
        self.lanes.insert(environment, BTreeMap::from([(ticket, item)]));
    }

    /// Takes an item out that need not wait any more.
    pub fn remove(&mut self, environment: &str, ticket: Ticket) -> Option<T> {
        let removed = self.lanes.get_mut(environment)?.remove(&ticket);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Takes the oldest item of the environment whose turn it is.
    pub fn pop(&mut self) -> Option<(Arc<str>, Ticket, T)> {
        self.pop_if(|_, _| Turn::Take)
    }

    /// The same, where `look` says of each environment's oldest item, in turn, what to do.
    pub fn pop_if(
        &mut self,
        mut look: impl FnMut(&str, &T) -> Turn,
    ) -> Option<(Arc<str>, Ticket, T)> {
        let mut at = 0;
        while let Some(environment) = self.turns.get(at) {
            let lane = self.lanes.get_mut(environment)?;
            let Some(oldest) = lane.first_entry() else {
                self.lanes.remove(environment);
                self.turns.remove(at);
                continue;
            };
            match look(environment, oldest.get()) {
                Turn::Skip => at += 1,
                Turn::Wait => return None,
                Turn::Take => {
                    let (ticket, item) = oldest.remove_entry();
                    self.len -= 1;
                    let environment = self.turns.remove(at)?;
                    if lane.is_empty() {
                        self.lanes.remove(&environment);
                    } else {
                        self.turns.push_back(Arc::clone(&environment));
                    }
                    return Some((environment, ticket, item));
                }
            }
        }
        None
    }
}

/// What becomes of an environment's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Its oldest item is taken.
    Take,
    /// It cannot use its turn now and keeps it, while others go on.
    Skip,
    /// It keeps its turn and all others wait for it.
    Wait,
}
