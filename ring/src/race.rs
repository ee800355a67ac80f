//! The weighted slot race: who gets an arc.
//!
//! Every member throws one dart at every arc of a chunk, in an order of its own (a keyed permutation) and at
//! times spaced by its weight; the first dart to arrive owns the arc, the order of arrival is the preference
//! list. It is rendezvous hashing whose scores are spread evenly instead of at random: half the variance. A
//! member's times depend on nothing but itself, so that adding or removing one changes only what it wins or
//! held: strictly minimal. Integers only.
//!
//! The `r`-th of `n` darts arrives at about `-log2(1 - r/n) / weight`: over all arcs that is an exponential
//! distribution, whose minimum goes to each member in exact proportion to its weight. Evenly spaced darts
//! would favour heavy members when there are few (weights 1 and 2 alone: shares of 1/4 and 3/4).

use alloc::sync::Arc;
use alloc::vec::Vec;

use swimring_membership::NodeId;

/// log2 of the arcs of a chunk; permutations are within one.
const CHUNK_LOG2: u32 = 14;
/// Fractional bits of a logarithm.
const LOG_BITS: u32 = 40;
/// Rounds of a permutation.
const ROUNDS: usize = 3;

/// The keyed permutation of one member in one chunk, and its phase.
#[derive(Copy, Clone, Debug)]
struct Darts {
    /// Odd multiplier, its inverse, and addend of each round.
    rounds: [(u32, u32, u32); ROUNDS],
    /// Where between its neighbours every dart arrives, in 2^-16.
    phase: u16,
}

/// A member in the race.
#[derive(Clone, Debug)]
pub(crate) struct Racer {
    weight: u64,
    chunks: Vec<Darts>,
    logs: Arc<[u64]>,
    mask: u32,
    half: u32,
    chunk_log2: u32,
}

/// When a dart arrives; compared first, then the node's place in the order of ids.
pub(crate) type Time = u64;

/// The owner of an arc that has none yet.
pub(crate) const VACANT: u16 = u16::MAX;

impl Racer {
    /// The member `id` with `weight` (at least 1) over 2^`arcs_log2` arcs.
    pub(crate) fn new(id: NodeId, weight: u16, arcs_log2: u32, logs: &Arc<[u64]>) -> Self {
        assert!(weight > 0, "a member without weight does not race");
        let chunk_log2 = arcs_log2.min(CHUNK_LOG2);
        let mask = (1u32 << chunk_log2) - 1;
        let mut constants = blake3::Hasher::new_derive_key("swimring 1 slot race").update(id.as_bytes()).finalize_xof();
        let chunks = (0..1u32 << (arcs_log2 - chunk_log2))
            .map(|_| {
                let mut bytes = [0; 4 + 8 * ROUNDS];
                constants.fill(&mut bytes);
                let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
                let rounds = core::array::from_fn(|round| {
                    let odd = word(4 + 8 * round) | 1;
                    (odd, inverse(odd), word(8 + 8 * round))
                });
                Darts { rounds, phase: word(0) as u16 }
            })
            .collect();
        Self {
            weight: u64::from(weight),
            chunks,
            logs: Arc::clone(logs),
            mask,
            half: chunk_log2.div_ceil(2),
            chunk_log2,
        }
    }

    /// The table that all racers of a cluster share.
    pub(crate) fn logs(&self) -> Arc<[u64]> {
        Arc::clone(&self.logs)
    }

    /// When this member's dart arrives at `arc`.
    pub(crate) fn arrival(&self, arc: u32) -> Time {
        let darts = &self.chunks[(arc >> self.chunk_log2) as usize];
        self.time(darts, self.dart_at(darts, arc & self.mask))
    }

    fn time(&self, darts: &Darts, dart: u32) -> Time {
        let (early, late) = (self.logs[dart as usize], self.logs[dart as usize + 1]);
        (early + (((late - early) * u64::from(darts.phase)) >> 16)) / self.weight
    }

    /// Where the `dart`-th dart lands.
    fn arc_of(&self, darts: &Darts, dart: u32) -> u32 {
        darts.rounds.iter().fold(dart, |slot, (odd, _, add)| {
            let slot = slot.wrapping_mul(*odd).wrapping_add(*add) & self.mask;
            slot ^ (slot >> self.half)
        })
    }

    /// Which dart lands there: the inverse of [`arc_of`](Self::arc_of). The shift is at least half the width,
    /// so that xor-with-own-upper-half undoes itself.
    fn dart_at(&self, darts: &Darts, slot: u32) -> u32 {
        darts.rounds.iter().rev().fold(slot, |slot, (_, inverse, add)| {
            let slot = slot ^ (slot >> self.half);
            slot.wrapping_sub(*add).wrapping_mul(*inverse) & self.mask
        })
    }
}

/// `-log2(1 - r/n)` for `r` from 0 to `n`, the darts of a chunk, in 2^-40. The last one, which is infinite, is
/// two above the one before it.
pub(crate) fn logs(arcs_log2: u32) -> Arc<[u64]> {
    let chunk_log2 = arcs_log2.min(CHUNK_LOG2);
    let darts = 1u32 << chunk_log2;
    let whole = u64::from(chunk_log2) << LOG_BITS;
    let log = |dart| whole - log2(darts - dart);
    (0..darts).map(log).chain([whole + (2 << LOG_BITS)]).collect()
}

/// `log2(value)` in 2^-40, by repeated squaring.
fn log2(value: u32) -> u64 {
    let integer = value.ilog2();
    let mut mantissa = u128::from(value) << (63 - integer);
    let mut fraction = 0;
    for _ in 0..LOG_BITS {
        mantissa = (mantissa * mantissa) >> 63;
        fraction <<= 1;
        if mantissa >= 1 << 64 {
            mantissa >>= 1;
            fraction |= 1;
        }
    }
    (u64::from(integer) << LOG_BITS) + fraction
}

/// The inverse of an odd number modulo 2^32 (Newton).
fn inverse(odd: u32) -> u32 {
    (0..5).fold(odd, |x, _| x.wrapping_mul(2u32.wrapping_sub(odd.wrapping_mul(x))))
}

/// The winner of every arc, as an index into `racers`, which must be in the order of ids, and when the last arc
/// was won.
pub(crate) fn run(racers: &[Arc<Racer>], arcs_log2: u32) -> (Vec<u16>, Time) {
    assert!(!racers.is_empty() && racers.len() <= usize::from(VACANT), "a race has racers, and an index names each");
    let mut winners = Vec::with_capacity(1 << arcs_log2);
    let mut latest = 0;
    let mut best: Vec<(Time, u16)> = Vec::new();
    for chunk in 0..racers[0].chunks.len() {
        run_chunk(racers, chunk, &mut best);
        winners.extend(best.iter().map(|(_, racer)| *racer));
        latest = best.iter().map(|(time, _)| *time).fold(latest, Time::max);
    }
    (winners, latest)
}

/// Has `racers` (and the index of each) win the vacant arcs of `table`. Returns when the last of them was won.
pub(crate) fn fill(racers: &[(u16, &Arc<Racer>)], table: &mut [u16]) -> Time {
    let Some((_, first)) = racers.first() else {
        return 0;
    };
    let mut latest = 0;
    let mut vacant: Vec<Vacant> = Vec::new();
    for (chunk, winners) in table.chunks_mut(1 << first.chunk_log2).enumerate() {
        vacant.clear();
        let slots = winners.iter().enumerate().filter(|(_, owner)| **owner == VACANT);
        vacant.extend(slots.map(|(slot, _)| Vacant {
            slot: slot as u32,
            time: Time::MAX,
            winner: VACANT,
            weight: 0,
            dart: 0,
        }));
        for (index, racer) in racers {
            let darts = &racer.chunks[chunk];
            for held in &mut vacant {
                let dart = racer.dart_at(darts, held.slot);
                // Of two that are equally heavy the later dart arrives later: most are done with here.
                if racer.weight == held.weight && dart > held.dart {
                    continue;
                }
                let time = racer.time(darts, dart);
                if time < held.time {
                    *held = Vacant { time, winner: *index, weight: racer.weight, dart, ..*held };
                }
            }
        }
        for held in &vacant {
            winners[held.slot as usize] = held.winner;
            latest = latest.max(held.time);
        }
    }
    latest
}

/// An arc without an owner, and who has it so far.
struct Vacant {
    slot: u32,
    time: Time,
    winner: u16,
    weight: u64,
    dart: u32,
}

/// Has the racer `index` win what it wins from the others, of whom none won later than `latest`.
pub(crate) fn enter(racers: &[Arc<Racer>], index: u16, latest: Time, table: &mut [u16]) {
    let racer = &racers[usize::from(index)];
    for (chunk, winners) in table.chunks_mut(1 << racer.chunk_log2).enumerate() {
        let darts = &racer.chunks[chunk];
        for dart in 0..winners.len() as u32 {
            let time = racer.time(darts, dart);
            if time > latest {
                break;
            }
            let slot = racer.arc_of(darts, dart);
            let held = &mut winners[slot as usize];
            let holder = &racers[usize::from(*held)];
            let darts = &holder.chunks[chunk];
            let theirs = holder.time(darts, holder.dart_at(darts, slot));
            if (time, index) < (theirs, *held) {
                *held = index;
            }
        }
    }
}

/// Throws the darts of one chunk in windows of time. An arc hit in a window is decided at its end, because
/// every earlier dart of every member has been thrown by then.
fn run_chunk(racers: &[Arc<Racer>], chunk: usize, best: &mut Vec<(Time, u16)>) {
    let slots = 1usize << racers[0].chunk_log2;
    best.clear();
    best.resize(slots, (Time::MAX, VACANT));
    let weight: u64 = racers.iter().map(|racer| racer.weight).sum();
    // About one dart for every two arcs in a window.
    let window = (1 << LOG_BITS) / weight * 3 / 4 + 1;
    let mut next: Vec<u32> = alloc::vec![0; racers.len()];
    let mut open = slots;
    let mut end = window;
    while open > 0 {
        for (index, racer) in racers.iter().enumerate() {
            let darts = &racer.chunks[chunk];
            let mut dart = next[index];
            while (dart as usize) < slots {
                let time = racer.time(darts, dart);
                if time >= end {
                    break;
                }
                let held = &mut best[racer.arc_of(darts, dart) as usize];
                open -= usize::from(held.1 == VACANT);
                // Racers come in the order of ids: an equal time keeps the lower one.
                if time < held.0 {
                    *held = (time, index as u16);
                }
                dart += 1;
            }
            next[index] = dart;
        }
        end += window;
        // The last few arcs are cheaper to ask about than to wait for.
        if open * racers.len() * 4 < slots {
            return finish(racers, chunk, best);
        }
    }
}

fn finish(racers: &[Arc<Racer>], chunk: usize, best: &mut [(Time, u16)]) {
    for (slot, held) in best.iter_mut().enumerate().filter(|(_, held)| held.1 == VACANT) {
        for (index, racer) in racers.iter().enumerate() {
            let darts = &racer.chunks[chunk];
            let time = racer.time(darts, racer.dart_at(darts, slot as u32));
            if time < held.0 {
                *held = (time, index as u16);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn racer(number: u128, weight: u16, arcs_log2: u32) -> Racer {
        Racer::new(NodeId::from_u128(number), weight, arcs_log2, &logs(arcs_log2))
    }

    #[test]
    fn logarithms_are_exact_where_they_are_whole_and_rise() {
        assert_eq!((log2(1), log2(1024)), (0, 10 << LOG_BITS));
        let third = log2(3) as f64 / (1u64 << LOG_BITS) as f64;
        assert!((third - 1.584_962_500_721_156).abs() < 1e-11, "{third}");
        assert!(logs(14).windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn darts_hit_every_arc_once_and_the_inverse_finds_them() {
        for arcs_log2 in [8, 9, 13, 14, 16] {
            let racer = racer(5, 3, arcs_log2);
            let slots = 1u32 << racer.chunk_log2;
            for darts in &racer.chunks {
                let mut hit = alloc::vec![false; slots as usize];
                for dart in 0..slots {
                    let arc = racer.arc_of(darts, dart);
                    assert_eq!(racer.dart_at(darts, arc), dart);
                    hit[arc as usize] = true;
                }
                assert!(hit.iter().all(|hit| *hit));
            }
        }
    }

    #[test]
    fn the_race_gives_each_arc_to_the_earliest_arrival() {
        let racers: Vec<Arc<Racer>> = (1..40u128).map(|n| Arc::new(racer(n << 100, 1 + (n % 5) as u16, 15))).collect();
        let (winners, latest) = run(&racers, 15);
        for (arc, winner) in winners.iter().enumerate() {
            let first = (0..racers.len()).min_by_key(|racer| (racers[*racer].arrival(arc as u32), *racer));
            assert_eq!(first, Some(usize::from(*winner)), "arc {arc}");
            assert!(racers[usize::from(*winner)].arrival(arc as u32) <= latest);
        }
    }

    #[test]
    fn a_raised_weight_only_gains() {
        for weight in 1..20 {
            let (light, heavy) = (racer(5, weight, 14), racer(5, weight + 1, 14));
            assert!((0..1 << 14).all(|arc| heavy.arrival(arc) <= light.arrival(arc)));
        }
    }
}
