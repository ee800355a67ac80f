//! Attempts that wait to be handed over.

use std::collections::VecDeque;

use swimring_forwarder::wire::{self, LANE_BODY_BYTES_MAX};
use swimring_membership::Instant;

use super::{Outbound, Payload};

/// How an attempt goes to the other process.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// In a lane, among others.
    Lane,
    /// On a stream of its own, for its body is large.
    Large,
    /// On a stream of its own both ways, for more comes behind its body.
    Duplex,
}

impl Way {
    const ALL: [Self; 3] = [Self::Lane, Self::Large, Self::Duplex];

    fn of<B: AsRef<[u8]>>(payload: &Payload<B>) -> Self {
        match payload {
            Payload { duplex: true, .. } => Self::Duplex,
            Payload { body, .. } if body.as_ref().len() > LANE_BODY_BYTES_MAX => Self::Large,
            _ => Self::Lane,
        }
    }
}

#[derive(Debug)]
pub(super) struct Queued<T, B> {
    pub(super) seq: u64,
    pub(super) token: T,
    pub(super) call: Outbound<B>,
}

impl<T, B: AsRef<[u8]>> Queued<T, B> {
    fn body_bytes(&self) -> usize {
        self.call.payload.body.as_ref().len()
    }
}

/// Each in the order of its numbers.
#[derive(Debug)]
pub(super) struct Queues<T, B> {
    by_way: [VecDeque<Queued<T, B>>; Way::ALL.len()],
    /// Of bodies.
    bytes: [usize; Way::ALL.len()],
}

impl<T, B> Default for Queues<T, B> {
    fn default() -> Self {
        Self { by_way: Default::default(), bytes: Default::default() }
    }
}

impl<T, B: AsRef<[u8]>> Queues<T, B> {
    pub(super) fn push(&mut self, queued: Queued<T, B>) {
        let way = Way::of(&queued.call.payload) as usize;
        self.bytes[way] += queued.body_bytes();
        self.by_way[way].push_back(queued);
    }

    pub(super) fn len(&self) -> usize {
        self.by_way.iter().map(VecDeque::len).sum()
    }

    /// Of bodies.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.iter().sum()
    }

    /// About as many bytes as the frames of those that go this way take.
    pub(super) fn frame_bytes(&self, way: Way) -> usize {
        self.by_way[way as usize].len() * wire::usual_frame_bytes(0) + self.bytes[way as usize]
    }

    /// The next one that goes this way.
    pub(super) fn front(&self, way: Way) -> Option<&Queued<T, B>> {
        self.by_way[way as usize].front()
    }

    /// Takes it.
    pub(super) fn pop(&mut self, way: Way) -> Option<Queued<T, B>> {
        let queued = self.by_way[way as usize].pop_front()?;
        self.bytes[way as usize] -= queued.body_bytes();
        Some(queued)
    }

    /// Takes one back.
    pub(super) fn remove(&mut self, seq: u64) {
        for (queue, bytes) in self.by_way.iter_mut().zip(&mut self.bytes) {
            if let Ok(index) = queue.binary_search_by_key(&seq, |queued| queued.seq) {
                *bytes -= queue.remove(index).map_or(0, |queued| queued.body_bytes());
            }
        }
    }

    /// Takes back those whose deadline is here.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<T> {
        let mut late = Vec::new();
        for (queue, bytes) in self.by_way.iter_mut().zip(&mut self.bytes) {
            if !queue.iter().any(|queued| queued.call.deadline <= now) {
                continue;
            }
            for queued in std::mem::take(queue) {
                if queued.call.deadline <= now {
                    *bytes -= queued.body_bytes();
                    late.push(queued.token);
                } else {
                    queue.push_back(queued);
                }
            }
        }
        late
    }

    /// Takes all back.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.bytes = Default::default();
        self.by_way.iter_mut().flat_map(|queue| queue.drain(..)).map(|queued| queued.token)
    }

    /// The lowest number that waits.
    pub(super) fn lowest(&self) -> Option<u64> {
        Way::ALL.into_iter().filter_map(|way| self.front(way)).map(|queued| queued.seq).min()
    }

    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.by_way.iter().flatten().map(|queued| queued.call.deadline)
    }
}
