//! How many repeats are allowed: a share of the fresh calls, so that trouble is not multiplied.

/// Millionths of a repeat that a fresh call earns: 10 %.
const EARNED: u32 = 100_000;
/// Most repeats saved up; also what a node begins with, so that a quiet one may repeat at all.
const SAVED_MAX: u32 = 10 * 1_000_000;

/// The repeats that a node may still make.
#[derive(Clone, Debug)]
pub struct Budget {
    millionths: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { millionths: SAVED_MAX }
    }
}

impl Budget {
    /// A fresh call begins.
    pub fn earn(&mut self) {
        self.millionths = (self.millionths + EARNED).min(SAVED_MAX);
    }

    /// How many repeats are left.
    pub fn left(&self) -> u32 {
        self.millionths / 1_000_000
    }

    /// Takes one repeat; false when there is none left.
    pub fn spend(&mut self) -> bool {
        let enough = self.millionths >= 1_000_000;
        if enough {
            self.millionths -= 1_000_000;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_a_tenth_of_fresh_calls() {
        let mut budget = Budget::default();
        while budget.spend() {}
        let mut repeats = 0;
        for _ in 0..1_000 {
            budget.earn();
            repeats += u32::from(budget.spend());
        }
        assert_eq!(repeats, 100);
    }
}
