//! How many repeats are allowed: a share of the fresh calls, so that trouble is not multiplied.

/// A repeat, in millionths.
const ONE: u32 = 1_000_000;

/// Why a call is to be tried again.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// The owner was overloaded, not reached, or lost: to ask again is more of what it has too much of.
    Trouble,
    /// The members do not agree yet on who owns the key, or the owner waits to be confirmed: that ends by itself, and to
    /// ask again costs one refusal.
    Moving,
}

impl Repeat {
    /// Millionths of such a repeat that a fresh call earns.
    fn earned(self) -> u32 {
        match self {
            Self::Trouble => ONE / 10,
            Self::Moving => ONE,
        }
    }

    /// Most such repeats saved up, in millionths; also what a node begins with, so that a quiet one may repeat at all.
    fn saved_max(self) -> u32 {
        match self {
            Self::Trouble => 10 * ONE,
            Self::Moving => 1_000 * ONE,
        }
    }
}

/// The repeats that a node may still make.
#[derive(Clone, Debug)]
pub struct Budget {
    /// In millionths.
    trouble: u32,
    moving: u32,
    /// How many fresh calls have earned what is here.
    counted: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { trouble: Repeat::Trouble.saved_max(), moving: Repeat::Moving.saved_max(), counted: 0 }
    }
}

impl Budget {
    /// So many fresh calls have begun in all. What they earn is asked for with the next repeat, not with each of them.
    pub fn count(&mut self, begun: u64) {
        let fresh = begun.saturating_sub(self.counted);
        self.counted += fresh;
        for why in [Repeat::Trouble, Repeat::Moving] {
            let earned = u32::try_from(fresh.saturating_mul(u64::from(why.earned()))).unwrap_or(u32::MAX);
            let purse = self.purse(why);
            *purse = purse.saturating_add(earned).min(why.saved_max());
        }
    }

    /// How many repeats are left.
    pub fn left(&self, why: Repeat) -> u32 {
        match why {
            Repeat::Trouble => self.trouble / ONE,
            Repeat::Moving => self.moving / ONE,
        }
    }

    /// Takes one repeat; false when there is none left.
    pub fn spend(&mut self, why: Repeat) -> bool {
        let purse = self.purse(why);
        let enough = *purse >= ONE;
        if enough {
            *purse -= ONE;
        }
        enough
    }

    fn purse(&mut self, why: Repeat) -> &mut u32 {
        match why {
            Repeat::Trouble => &mut self.trouble,
            Repeat::Moving => &mut self.moving,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeats(why: Repeat) -> u32 {
        let mut budget = Budget::default();
        while budget.spend(why) {}
        let mut repeats = 0;
        for begun in 1..=1_000 {
            budget.count(begun);
            repeats += u32::from(budget.spend(why));
        }
        repeats
    }

    #[test]
    fn repeats_after_trouble_are_a_tenth_of_fresh_calls_and_those_while_keys_move_as_many() {
        assert_eq!(repeats(Repeat::Trouble), 100);
        assert_eq!(repeats(Repeat::Moving), 1_000);
    }

    #[test]
    fn calls_that_are_counted_later_have_earned_as_much() {
        let (mut at_once, mut later) = (Budget::default(), Budget::default());
        for budget in [&mut at_once, &mut later] {
            while budget.spend(Repeat::Trouble) || budget.spend(Repeat::Moving) {}
        }
        (1..=35).for_each(|begun| at_once.count(begun));
        later.count(35);
        later.count(30);
        for why in [Repeat::Trouble, Repeat::Moving] {
            assert_eq!(at_once.left(why), later.left(why));
        }
        later.count(u64::MAX);
        assert_eq!((later.left(Repeat::Trouble), later.left(Repeat::Moving)), (10, 1_000), "no more is saved up");
    }

    #[test]
    fn keys_that_move_take_nothing_from_what_trouble_may() {
        let mut budget = Budget::default();
        while budget.spend(Repeat::Moving) {}
        assert_eq!((budget.left(Repeat::Trouble), budget.left(Repeat::Moving)), (10, 0));
    }
}
