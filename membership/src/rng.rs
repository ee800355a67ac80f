//! A small seeded generator (xoshiro256++), forked per component so that one more draw in one place never
//! shifts the draws of another.
//!
//! Not for secrets: it decides whom to probe and how long to wait.

use core::time::Duration;

/// A deterministic generator; equal seeds give equal sequences on every platform.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// A generator for `seed`.
    pub fn new(seed: u64) -> Self {
        let mut mix = seed;
        let mut next = || {
            mix = mix.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = mix;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Self { state: [next(), next(), next(), next()] }
    }

    /// An independent generator for the component `label`; does not draw from `self`.
    pub fn fork(&self, label: u64) -> Self {
        let [a, b, c, d] = self.state;
        Self::new(
            a ^ b.rotate_left(13) ^ c.rotate_left(29) ^ d.rotate_left(47) ^ label.wrapping_mul(0xd6e8_feb8_6659_fd93),
        )
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`, each equally likely.
    ///
    /// # Panics
    /// If `bound` is zero: there is nothing to choose from.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a draw needs at least one candidate");
        // Multiply-shift with rejection (Lemire 2019): unbiased and without division in the common case.
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(bound);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True with a chance of `per_million` in 1,000,000.
    pub fn chance(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.below(1_000_000) < u64::from(per_million)
    }

    /// A span from `low` (inclusive) to `high` (exclusive); `low` when the range is empty.
    pub fn span(&mut self, low: Duration, high: Duration) -> Duration {
        let (low, high) = (low.as_nanos() as u64, high.as_nanos() as u64);
        if high <= low { Duration::from_nanos(low) } else { Duration::from_nanos(low + self.below(high - low)) }
    }

    /// `span` lengthened or shortened by up to a quarter, so that nodes do not move in step.
    pub fn jitter(&mut self, span: Duration) -> Duration {
        self.span(span - span / 4, span + span / 4)
    }

    /// Puts `items` into a random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_draws_and_forks_do_not_draw() {
        let mut one = Rng::new(7);
        let mut two = Rng::new(7);
        let _ = two.fork(1);
        assert_eq!(one.next_u64(), two.next_u64());
        assert_ne!(one.fork(1).next_u64(), one.fork(2).next_u64());
    }

    #[test]
    fn the_sequence_is_pinned_across_releases() {
        let mut rng = Rng::new(1);
        assert_eq!(rng.next_u64(), 0xcfc5_d07f_6f03_c29b);
    }

    #[test]
    fn draws_below_a_bound_are_even() {
        let mut rng = Rng::new(3);
        let mut counts = [0u32; 10];
        for _ in 0..100_000 {
            counts[rng.index(10)] += 1;
        }
        assert!(counts.iter().all(|&count| (9_500..10_500).contains(&count)), "{counts:?}");
    }
}
