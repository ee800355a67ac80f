//! Frames in pieces: cut to what a packet takes, and put together again by their receiver, in the order of their lanes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Streams of a connection that keep the order of what is written on them.
pub(crate) const LANES: usize = 2;
/// Most bytes of frames in a packet, before any larger size was found to pass.
pub(super) const PAYLOAD_BYTES: usize = 1_150;

/// The place of a frame: on which lane, and which number there.
#[derive(Copy, Clone, Debug)]
pub(super) struct Place {
    pub(super) lane: usize,
    pub(super) number: u64,
}

/// A part of a frame that fits into a packet.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    frame: u64,
    index: u16,
    pieces: u16,
    place: Option<Place>,
    bytes: Arc<[u8]>,
}

impl Piece {
    /// The pieces of a frame, in their order; a frame of no bytes has one.
    pub(super) fn cut(frame: u64, place: Option<Place>, bytes: &[u8]) -> impl Iterator<Item = Self> + use<> {
        let bytes: Arc<[u8]> = bytes.into();
        let pieces = bytes.len().div_ceil(PAYLOAD_BYTES).max(1) as u16;
        (0..pieces).map(move |index| Self { frame, index, pieces, place, bytes: Arc::clone(&bytes) })
    }

    /// The frame, if this is all of it.
    pub(crate) fn whole(&self) -> Option<&[u8]> {
        (self.pieces == 1).then_some(&self.bytes)
    }

    /// How many bytes of the frame it carries.
    pub(super) fn bytes(&self) -> usize {
        let rest = self.bytes.len() - PAYLOAD_BYTES * usize::from(self.index);
        rest.min(PAYLOAD_BYTES)
    }
}

/// A stream of ordered frames, at its receiver.
#[derive(Clone, Debug, Default)]
struct Lane {
    /// The next number to deliver.
    delivered: u64,
    early: BTreeMap<u64, Arc<[u8]>>,
}

impl Lane {
    /// A frame is complete: appends what is next in the order now.
    fn deliver(&mut self, number: u64, bytes: Arc<[u8]>, ready: &mut Vec<Arc<[u8]>>) {
        if number != self.delivered {
            self.early.insert(number, bytes);
            return;
        }
        self.delivered += 1;
        ready.push(bytes);
        while let Some(bytes) = self.early.first_entry().filter(|next| *next.key() == self.delivered) {
            self.delivered += 1;
            ready.push(bytes.remove());
        }
    }
}

/// What has arrived of the frames.
#[derive(Clone, Debug, Default)]
pub(super) struct Assembly {
    /// Frames below this one are complete, and these besides.
    complete: u64,
    complete_early: BTreeSet<u64>,
    partial: BTreeMap<u64, BTreeSet<u16>>,
    lanes: [Lane; LANES],
}

impl Assembly {
    /// A piece has arrived: appends the frames that are complete now, in the order of their lanes.
    pub(super) fn put(&mut self, piece: Piece, ready: &mut Vec<Arc<[u8]>>) {
        if piece.frame < self.complete || self.complete_early.contains(&piece.frame) {
            return;
        }
        if piece.pieces > 1 {
            let held = self.partial.entry(piece.frame).or_default();
            held.insert(piece.index);
            if held.len() < usize::from(piece.pieces) {
                return;
            }
            self.partial.remove(&piece.frame);
        }
        if piece.frame == self.complete {
            self.complete += 1;
            while self.complete_early.remove(&self.complete) {
                self.complete += 1;
            }
        } else {
            self.complete_early.insert(piece.frame);
        }
        match piece.place {
            Some(place) => self.lanes[place.lane].deliver(place.number, piece.bytes, ready),
            None => ready.push(piece.bytes),
        }
    }
}
