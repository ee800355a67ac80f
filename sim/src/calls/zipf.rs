//! Ranks of which the first are drawn most often.
//!
//! Integers only: every platform draws the same.

use swimring_membership::Rng;

/// Bits of the mantissa of a logarithm.
const BITS: u32 = 31;

/// A rank from 1 to `count` (at least 1), each in proportion to its power of minus `exponent` thousandths.
///
/// Rejection from ranks that are drawn evenly from an evenly drawn octave: the fewer of them are kept the larger the
/// exponent is, at worst one of all octaves.
pub(super) fn rank(rng: &mut Rng, exponent: u32, count: u32) -> u32 {
    let count = u64::from(count.max(1));
    let fall = |log2_milli: u64| log2_milli * u64::from(exponent) / 1_000;
    let octaves = u64::from(count.ilog2()) + 1;
    let size = |octave: u64| (count + 1 - (1 << octave)).min(1 << octave);
    let share = |octave: u64| log2_milli(size(octave)) as i64 - fall(octave * 1_000) as i64;
    // All octaves but the last, which may be short, grow or fall one like the other.
    let most = share(0).max(share(octaves.saturating_sub(2))).max(share(octaves - 1));
    loop {
        let octave = rng.below(octaves);
        let rank = (1 << octave) + rng.below(size(octave));
        let kept = log2_milli(size(octave)) as i64 - fall(log2_milli(rank)) as i64 - most;
        let drawn = log2_milli(rng.next_u64().max(1)) as i64 - 64_000;
        if drawn <= kept {
            return rank as u32;
        }
    }
}

/// `1000 * log2(value)` of a value that is not 0, rounded down.
fn log2_milli(value: u64) -> u64 {
    let whole = value.ilog2();
    if value.is_power_of_two() {
        return u64::from(whole) * 1_000;
    }
    let mut mantissa = if whole > BITS { value >> (whole - BITS) } else { value << (BITS - whole) };
    let mut fraction = 0;
    // The mantissa lies in [1, 2): each squaring yields one more bit of the logarithm.
    for _ in 0..16 {
        mantissa = (mantissa * mantissa) >> BITS;
        let carry = mantissa >> (BITS + 1);
        mantissa >>= carry;
        fraction = fraction << 1 | carry;
    }
    u64::from(whole) * 1_000 + ((fraction * 1_000) >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 200_000;

    /// How often the ranks up to the first, the tenth and the hundredth were drawn, and how often they should have been.
    fn shares(exponent: u32, count: u32) -> [(f64, f64); 3] {
        let mut rng = Rng::new(7);
        let ranks: Vec<u32> = (0..DRAWS).map(|_| rank(&mut rng, exponent, count)).collect();
        assert!(ranks.iter().all(|rank| (1..=count).contains(rank)));
        let power = |rank: u32| f64::from(rank).powf(-f64::from(exponent) / 1_000.0);
        let all: f64 = (1..=count).map(power).sum();
        [1, 10, 100].map(|upto| {
            let drawn = ranks.iter().filter(|rank| **rank <= upto).count();
            (drawn as f64 / f64::from(DRAWS), (1..=upto.min(count)).map(power).sum::<f64>() / all)
        })
    }

    #[test]
    fn ranks_are_drawn_in_proportion_to_their_powers() {
        for (exponent, count) in [(0, 1_000), (500, 300), (1_000, 10_000), (1_100, 10_000), (2_000, 999), (3_500, 5)] {
            for (drawn, due) in shares(exponent, count) {
                assert!((drawn - due).abs() < 0.005, "zipf({exponent}, {count}): {drawn} instead of {due}");
            }
        }
    }

    #[test]
    fn there_is_always_one() {
        let mut rng = Rng::new(1);
        for exponent in [0, 1_000, 10_000] {
            assert_eq!([0, 1].map(|count| rank(&mut rng, exponent, count)), [1, 1]);
            assert!(rank(&mut rng, exponent, u32::MAX) >= 1);
        }
    }

    #[test]
    fn logarithms_agree_with_the_table() {
        for (value, milli) in [(1, 0), (2, 1_000), (3, 1_584), (10, 3_321), (1_000, 9_965), (1 << 40, 40_000)] {
            assert_eq!(log2_milli(value), milli, "{value}");
        }
        assert_eq!(log2_milli(u64::MAX), 63_999);
    }
}
