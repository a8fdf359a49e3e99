//! Who waits for the same.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
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

/// A place on a [`List`], which is to be told when it is given up.
#[derive(Debug)]
pub struct Place<T> {
    inner: Arc<Inner<T>>,
    key: usize,
}

#[derive(Debug)]
struct Inner<T> {
    waker: AtomicWaker,
    woken: AtomicBool,
    /// The slice that waits for this one to have run.
    slice: Mutex<Option<Arc<Slice>>>,
    holder: T,
}

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
    /// Takes a place on it.
    pub fn join(&self, holder: T) -> Place<T> {
        let (waker, woken) = (AtomicWaker::new(), AtomicBool::new(false));
        let inner = Arc::new(Inner { waker, woken, slice: Mutex::default(), holder });
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
        self.woken.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Who does not wait just now, since it sends what it was told before, is not waited for.
    fn wake_in(&self, slice: &Arc<Slice>) {
        slice.one_more();
        let former = self.slice.lock().replace(Arc::clone(slice));
        if let Some(former) = former {
            former.one_has_run();
        }
        self.woken.store(true, Ordering::Release);
        match self.waker.take() {
            Some(waker) => waker.wake(),
            None => self.has_run(),
        }
    }

    fn has_run(&self) {
        if let Some(slice) = self.slice.lock().take() {
            slice.one_has_run();
        }
    }
}

impl<T> Place<T> {
    /// Ends at the first wake after this call, also if that comes before it is first polled. So:
    /// call this, then look for news, then await it.
    pub fn woken(&self) -> Woken<'_, T> {
        self.inner.woken.store(false, Ordering::Release);
        self.inner.has_run();
        Woken(&self.inner)
    }

    /// What is known of who holds it.
    pub fn holder(&self) -> &T {
        &self.inner.holder
    }

    /// Whether a slice waits for this one to have run.
    #[cfg(test)]
    pub(super) fn is_waited_for(&self) -> bool {
        self.inner.slice.lock().is_some()
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        self.inner.has_run();
    }
}

/// See [`Place::woken`].
#[derive(Debug)]
pub struct Woken<'a, T>(&'a Inner<T>);

impl<T> Future for Woken<'_, T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let place = self.0;
        if !place.woken.load(Ordering::Acquire) {
            place.waker.register(context.waker());
            if !place.woken.load(Ordering::Acquire) {
                return Poll::Pending;
            }
        }
        place.has_run();
        Poll::Ready(())
    }
}

impl<T> Drop for Woken<'_, T> {
    fn drop(&mut self) {
        self.0.waker.take();
        self.0.has_run();
    }
}
