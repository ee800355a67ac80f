//! Mutexes that are taken in one order, so that no two threads wait for each other: in builds with debug assertions whoever
//! breaks it panics, whether another thread was in the way or not.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

/// A mutex of a rank: whoever holds it takes only others of higher rank. It is held for synchronous code only.
#[derive(Debug, Default)]
pub(super) struct Ranked<T, const RANK: u8>(Mutex<T>);

/// What is in a [`Ranked`] mutex, for as long as that is held.
pub(super) struct Held<'a, T, const RANK: u8> {
    guard: MutexGuard<'a, T>,
    _order: order::Place,
}

impl<T, const RANK: u8> Ranked<T, RANK> {
    pub(super) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits for it.
    pub(super) fn lock(&self) -> Held<'_, T, RANK> {
        let _order = order::Place::take(RANK);
        Held { guard: self.0.lock().expect("nothing panics while it holds the lock"), _order }
    }
}

impl<T, const RANK: u8> Deref for Held<'_, T, RANK> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T, const RANK: u8> DerefMut for Held<'_, T, RANK> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(debug_assertions)]
mod order {
    use std::cell::RefCell;

    thread_local!(static HELD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });

    /// That this thread holds a mutex of this rank.
    pub(super) struct Place(u8);

    impl Place {
        pub(super) fn take(rank: u8) -> Self {
            // A thread that ends notes nothing any more.
            _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                let inner = held.iter().max();
                assert!(inner.is_none_or(|inner| *inner < rank), "a mutex of rank {rank} is taken within {inner:?}");
                held.push(rank);
            });
            Self(rank)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            HELD.with_borrow_mut(|held| {
                held.iter().rposition(|rank| *rank == self.0).map(|place| held.swap_remove(place))
            });
        }
    }
}

#[cfg(not(debug_assertions))]
mod order {
    /// Nothing is noted.
    pub(super) struct Place;

    impl Place {
        pub(super) fn take(_rank: u8) -> Self {
            Self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutexes_are_taken_in_the_order_of_their_ranks() {
        let (outer, inner) = (Ranked::<_, 1>::new(1), Ranked::<_, 2>::new(2));
        let first = outer.lock();
        assert_eq!((*first, *inner.lock()), (1, 2));
        drop(first);
        let second = inner.lock();
        assert_eq!(*second, 2, "what is not held any more does not count");
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "a mutex of rank 1 is taken within Some(2)")]
    fn the_other_order_panics_though_nobody_is_in_the_way() {
        let (outer, inner) = (Ranked::<_, 1>::new(1), Ranked::<_, 2>::new(2));
        let _held = inner.lock();
        let _broken = outer.lock();
    }
}
