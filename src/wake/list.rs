//! Who waits for the same.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use slab::Slab;

use super::rounds::{SLICE, Slice};

/// Places of those who wait for the same, and what is known of each.
#[derive(Debug)]
pub struct List<T> {
    places: Mutex<Slab<Arc<Inner<T>>>>,
    /// How often it was woken.
    pub(super) wakes: AtomicU64,
    /// Whether it waits for its next slice.
    pub(super) in_rounds: AtomicBool,
}

/// A place to wait at, on a [`List`], which is to be told when it is given up, or on none.
#[derive(Debug)]
pub struct Place<T> {
    inner: Arc<Inner<T>>,
    /// Where it is on its list; one that is on none is the first of a list that may come.
    key: usize,
}

/// Wakes a place that is on no list.
#[derive(Debug)]
pub struct Lone<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    /// One lock for what would be three: most of the time nobody else has it.
    wait: Mutex<Wait>,
    holder: T,
}

#[derive(Debug, Default)]
struct Wait {
    woken: bool,
    waker: Option<Waker>,
    /// The slice that waits for this one to have run.
    slice: Option<Arc<Slice>>,
}

/// The key of a list's first place.
const FIRST: usize = 0;

impl<T> Default for List<T> {
    fn default() -> Self {
        let (wakes, in_rounds) = (AtomicU64::new(0), AtomicBool::new(false));
        List { places: Mutex::default(), wakes, in_rounds }
    }
}

impl<T> AsRef<List<T>> for List<T> {
    fn as_ref(&self) -> &List<T> {
        self
    }
}

impl<T> List<T> {
    /// A list that begins with one who waited alone, for others to join.
    pub fn begun_by(lone: &Lone<T>) -> List<T> {
        let mut places = Slab::with_capacity(2);
        let key = places.insert(Arc::clone(&lone.0));
        debug_assert_eq!(key, FIRST);
        List { places: Mutex::new(places), ..List::default() }
    }

    /// Takes a place on it.
    pub fn join(&self, holder: T) -> Place<T> {
        let inner = Arc::new(Inner { wait: Mutex::default(), holder });
        let key = self.places.lock().insert(Arc::clone(&inner));
        Place { inner, key }
    }

    /// Gives the place up. Says whether nobody is left.
    pub fn leave(&self, place: &Place<T>) -> bool {
        let mut places = self.places.lock();
        places.remove(place.key);
        places.is_empty()
    }

    /// Wakes those at once of whom this holds, however many they are.
    pub fn wake_where(&self, holds: impl Fn(&T) -> bool) {
        let places = self.places.lock();
        let meant = places.iter().map(|(_, place)| place).filter(|place| holds(&place.holder));
        meant.for_each(|place| place.wake());
    }

    /// Wakes everybody at once if they are few.
    pub(super) fn wake_few(&self) -> bool {
        let places = self.places.lock();
        let few = places.len() <= SLICE;
        if few {
            places.iter().for_each(|(_, place)| place.wake());
        }
        few
    }

    /// Wakes the slice that begins at this place, and gives where the next one does.
    pub(super) fn wake_slice(&self, begin: usize, slice: &Arc<Slice>) -> Option<usize> {
        let places = self.places.lock();
        let (mut next, mut woken) = (begin, 0);
        while next < places.capacity() && woken < SLICE {
            if let Some(place) = places.get(next) {
                place.wake_in(slice);
                woken += 1;
            }
            next += 1;
        }
        (next < places.capacity()).then_some(next)
    }
}

impl<T> Inner<T> {
    fn wake(&self) {
        let waker = {
            let mut wait = self.wait.lock();
            wait.woken = true;
            wait.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// Who does not wait just now, since it sends what it was told before, is not waited for.
    fn wake_in(&self, slice: &Arc<Slice>) {
        let (waker, former) = {
            let mut wait = self.wait.lock();
            wait.woken = true;
            let (waker, former) = (wait.waker.take(), wait.slice.take());
            if waker.is_some() {
                slice.one_more();
                wait.slice = Some(Arc::clone(slice));
            }
            (waker, former)
        };
        former.iter().for_each(|former| former.one_has_run());
        waker.into_iter().for_each(Waker::wake);
    }

    fn rest(&self) {
        let (_waker, slice) = {
            let mut wait = self.wait.lock();
            (wait.waker.take(), wait.slice.take())
        };
        slice.iter().for_each(|slice| slice.one_has_run());
    }
}

impl<T> Lone<T> {
    /// Wakes it.
    pub fn wake(&self) {
        self.0.wake();
    }

    /// What is known of who holds the place.
    pub fn holder(&self) -> &T {
        &self.0.holder
    }
}

impl<T> Clone for Lone<T> {
    fn clone(&self) -> Self {
        Lone(Arc::clone(&self.0))
    }
}

impl<T> Place<T> {
    /// A place on no list, which takes no memory but its own.
    pub fn alone(holder: T) -> (Place<T>, Lone<T>) {
        let inner = Arc::new(Inner { wait: Mutex::default(), holder });
        (Place { inner: Arc::clone(&inner), key: FIRST }, Lone(inner))
    }

    /// Ends at the first wake after this call, also if that comes before it is first polled. So:
    /// call this, then look for news, then await it.
    pub fn woken(&self) -> Woken<'_, T> {
        let slice = {
            let mut wait = self.inner.wait.lock();
            wait.woken = false;
            wait.slice.take()
        };
        slice.iter().for_each(|slice| slice.one_has_run());
        Woken(&self.inner)
    }

    /// It is busy: nobody waits for it to have run.
    pub fn rest(&self) {
        self.inner.rest();
    }

    /// What is known of who holds it.
    pub fn holder(&self) -> &T {
        &self.inner.holder
    }

    /// Whether a slice waits for this one to have run.
    #[cfg(test)]
    pub(super) fn is_waited_for(&self) -> bool {
        self.inner.wait.lock().slice.is_some()
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        self.rest();
    }
}

/// See [`Place::woken`].
#[derive(Debug)]
pub struct Woken<'a, T>(&'a Inner<T>);

impl<T> Future for Woken<'_, T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let slice = {
            let mut wait = self.0.wait.lock();
            if !wait.woken {
                let waker = context.waker();
                if !wait.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                    wait.waker = Some(waker.clone());
                }
                return Poll::Pending;
            }
            wait.slice.take()
        };
        slice.iter().for_each(|slice| slice.one_has_run());
        Poll::Ready(())
    }
}

impl<T> Drop for Woken<'_, T> {
    fn drop(&mut self) {
        self.0.rest();
    }
}
