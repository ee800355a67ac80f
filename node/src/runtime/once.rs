//! Says each thing once: whoever is refused tries again, and the log need not repeat it. Everything is counted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;
use std::time::Duration;

use swimring_membership::Instant;

/// How long a thing that was said is not said again.
const SILENCE: Duration = Duration::from_secs(600);
/// Most things remembered; what is new beyond it is only counted.
const THINGS_MAX: usize = 1_024;

/// What was said, and when.
#[derive(Debug, Default)]
pub(crate) struct Once(Mutex<HashMap<String, Instant>>);

impl Once {
    /// Whether `thing` has to be said now.
    pub(crate) fn is_new(&self, now: Instant, thing: impl Into<String>) -> bool {
        let mut said = self.0.lock().expect("nothing panics while it holds the lock");
        said.retain(|_, at| now.since(*at) < SILENCE);
        if said.len() >= THINGS_MAX {
            return false;
        }
        let Entry::Vacant(place) = said.entry(thing.into()) else {
            return false;
        };
        place.insert(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_said_once_until_it_is_old_and_not_without_bound() {
        let once = Once::default();
        let now = Instant::ORIGIN + SILENCE;
        assert!(once.is_new(now, "a") && !once.is_new(now, "a") && once.is_new(now, "b"));
        assert!(once.is_new(now + SILENCE, "a"));
        let new = (0..2 * THINGS_MAX).filter(|thing| once.is_new(now + SILENCE, thing.to_string())).count();
        assert_eq!(new, THINGS_MAX - 1);
    }
}
