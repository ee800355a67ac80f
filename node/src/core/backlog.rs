//! Frames that wait to be written and that nobody waits for: answers mostly.
//!
//! Short ones lie behind one another in pieces, as they will be written; each long one will have a stream of its own.

use std::collections::VecDeque;

use swimring_forwarder::wire::{Frame, LANE_BODY_BYTES_MAX};

/// What a long frame that waits takes besides its bytes.
const LARGE_OVERHEAD_BYTES: usize = 64;
/// How many bytes of frames lie behind one another before a new piece is begun.
const PIECE_BYTES: usize = 32 * 1_024;
/// With more bytes waiting, on all its connections, the other end does not read.
pub(super) const BYTES_MAX: usize = 64 * 1_024 * 1_024;

/// A frame that has a stream of its own: the body is long, and stays where it is.
#[derive(Debug)]
pub struct Large<B> {
    /// What stands before the body.
    pub head: Vec<u8>,
    /// The body.
    pub body: B,
}

impl<B: AsRef<[u8]>> Large<B> {
    fn bytes(&self) -> usize {
        self.head.len() + self.body.as_ref().len() + LARGE_OVERHEAD_BYTES
    }
}

/// See the module. `B` holds bytes.
#[derive(Debug)]
pub struct Backlog<B> {
    pieces: VecDeque<Vec<u8>>,
    large: VecDeque<Large<B>>,
    bytes: usize,
}

impl<B> Default for Backlog<B> {
    fn default() -> Self {
        Self { pieces: VecDeque::new(), large: VecDeque::new(), bytes: 0 }
    }
}

impl<B: AsRef<[u8]>> Backlog<B> {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.large.is_empty()
    }

    /// Whether something waits for [`take`](Self::take).
    pub fn has_pieces(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Whether something waits for [`take_large`](Self::take_large).
    pub fn has_large(&self) -> bool {
        !self.large.is_empty()
    }

    /// How many bytes wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a frame. A `body` that a lane may carry is copied behind it.
    pub fn push(&mut self, frame: &Frame<'_>, body: B) {
        if body.as_ref().len() <= LANE_BODY_BYTES_MAX {
            return self.push_short(frame, body.as_ref());
        }
        let mut head = Vec::new();
        frame.encode_head(body.as_ref().len(), &mut head);
        let large = Large { head, body };
        self.bytes += large.bytes();
        self.large.push_back(large);
    }

    /// Adds a frame whose `body` a lane may carry.
    pub fn push_short(&mut self, frame: &Frame<'_>, body: &[u8]) {
        let piece = match self.pieces.back_mut() {
            Some(piece) if piece.len() < PIECE_BYTES => piece,
            _ => {
                self.pieces.push_back(Vec::new());
                self.pieces.back_mut().expect("it was just pushed")
            }
        };
        let before = piece.len();
        frame.encode(body, piece);
        self.bytes += piece.len() - before;
    }

    /// Adds frames that were encoded before, one behind the other, each with a body that a lane may carry.
    pub fn push_encoded(&mut self, frames: &[u8]) {
        self.bytes += frames.len();
        match self.pieces.back_mut() {
            Some(piece) if piece.len() < PIECE_BYTES => piece.extend_from_slice(frames),
            // No longer than it is: the transport keeps it until it is acknowledged.
            _ => self.pieces.push_back(frames.to_vec()),
        }
    }

    /// Appends whole frames to `out`, until there are `bytes_max` or a piece more.
    pub fn take(&mut self, bytes_max: usize, out: &mut Vec<u8>) {
        while out.len() < bytes_max
            && let Some(piece) = self.pieces.pop_front()
        {
            self.bytes -= piece.len();
            if out.is_empty() { *out = piece } else { out.extend_from_slice(&piece) }
        }
    }

    /// The next frame with a stream of its own.
    pub fn take_large(&mut self) -> Option<Large<B>> {
        let large = self.large.pop_front()?;
        self.bytes -= large.bytes();
        Some(large)
    }

    /// Adds what `other` holds, behind it.
    pub fn append(&mut self, mut other: Self) {
        self.pieces.append(&mut other.pieces);
        self.large.append(&mut other.large);
        self.bytes += other.bytes;
    }

    /// Drops all: there is nowhere to write it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_no_longer_counted() {
        let mut backlog = Backlog::default();
        let answer = Frame::Ok { seq: 1, fence: 1 };
        let short = vec![0; LANE_BODY_BYTES_MAX];
        for _ in 0..2 * PIECE_BYTES / LANE_BODY_BYTES_MAX {
            backlog.push(&answer, short.clone());
        }
        backlog.push(&answer, vec![0; LANE_BODY_BYTES_MAX + 1]);
        let mut encoded = Vec::new();
        answer.encode(&short, &mut encoded);
        backlog.push_encoded(&encoded);
        assert!(backlog.pieces.len() > 1 && backlog.bytes > 2 * PIECE_BYTES + LANE_BODY_BYTES_MAX);
        let mut out = Vec::new();
        backlog.take(usize::MAX, &mut out);
        assert!(backlog.take_large().is_some() && backlog.take_large().is_none());
        assert!(!backlog.has_pieces() && !backlog.has_large() && backlog.bytes == 0);
    }

    #[test]
    fn an_end_that_reads_nothing_is_choked() {
        let mut backlog = Backlog::default();
        for seq in 0.. {
            backlog.push(&Frame::Ok { seq, fence: 1 }, vec![0; 1 << 20]);
            if backlog.bytes() > BYTES_MAX {
                assert_eq!(backlog.large.len(), BYTES_MAX >> 20);
                break;
            }
        }
        backlog.clear();
        assert!(backlog.bytes() <= BYTES_MAX);
    }
}
