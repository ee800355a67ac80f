//! The frames of calls and replies.
//!
//! Frame: length of the rest (4 bytes, little endian), kind (1), version (1), header length (2), header, body.
//! The body is the application's and not looked at. An unknown kind is skipped by its length. Frames with a body
//! of up to [`LANE_BODY_BYTES_MAX`] share a lane; a longer one has a stream of its own.

use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};
use swimring_membership::codec::{self, Blob, Malformed, Slice};
use swimring_membership::{Instant, NodeId};

/// The protocol version that this release speaks.
pub const VERSION: u8 = 1;
/// Bytes of a frame before its header.
pub const PREFIX_BYTES: usize = 8;
/// Longest header, in bytes: the longest key, a member record, and the rest.
pub const HEADER_BYTES_MAX: usize = 8 * 1_024;
/// Most headers are shorter: room that is made for one at once.
const USUAL_HEADER_BYTES: usize = 64;
/// Longest body of a frame that shares a stream with others, in bytes: what waits behind it must not wait long.
pub const LANE_BODY_BYTES_MAX: usize = 64 * 1_024;
/// Longest name of a service, in bytes.
pub const SERVICE_BYTES_MAX: usize = 64;
/// Longest context of a call, in bytes.
pub const CONTEXT_BYTES_MAX: usize = 1_024;

/// Why a process refuses a call. The call has not run there, except where it says so.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Stood still, and does not know yet whether it is still the one.
    #[error("the owner does not know yet whether it still is the owner")]
    Unconfirmed,
    /// Too late to begin.
    #[error("the deadline had passed")]
    Expired,
    /// Does not own the key.
    #[error("the members do not agree yet on who owns the key")]
    NotOwner,
    /// Has as much to do as it takes.
    #[error("the owner is overloaded")]
    Overloaded {
        /// After how many milliseconds another try may fare better: so soon a place becomes free there of late.
        retry_after_ms: u32,
    },
    /// Has no such service.
    #[error("the owner has no such service")]
    NoService,
    /// The key or the body breaks a limit; the caller's fault.
    #[error("the call breaks a limit")]
    Invalid,
}

impl Refusal {
    /// Whether another try, a little later, may fare better.
    pub fn is_passing(self) -> bool {
        match self {
            Self::Unconfirmed | Self::NotOwner | Self::Overloaded { .. } => true,
            Self::Expired | Self::NoService | Self::Invalid => false,
        }
    }
}

/// At which members a call may run.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Scope {
    /// At the owner of its key.
    #[default]
    Owner,
    /// At each of so many first owners of its key.
    Owners(u8),
    /// At any member.
    Members,
}

/// What a call says besides its body. Borrows from the bytes of its frame, or from what is to be sent.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CallHeader<'a> {
    /// The attempt's number at this owner.
    pub seq: u64,
    /// The caller waits for nothing below this.
    pub floor: u64,
    /// The process that it is meant for.
    pub life: u64,
    /// Until when it may begin, in nanoseconds of the receiver's clock as the caller estimates it.
    pub deadline: u64,
    /// By how much that estimate may be wrong, in microseconds.
    pub error_us: u32,
    /// 1 for the first process asked, 2 for the one that it named.
    pub hop: u8,
    /// Which service.
    pub service: &'a str,
    /// Which key.
    #[serde(borrow)]
    pub key: Slice<'a>,
    /// The member record that made the last process say that it is not the owner.
    #[serde(borrow)]
    pub record: Option<Slice<'a>>,
    /// At which members it may run.
    pub scope: Scope,
    /// What goes with it for those who watch: a trace context, say.
    #[serde(borrow)]
    pub context: Slice<'a>,
}

impl CallHeader<'_> {
    /// When it is too late to begin, on the receiver's clock: the error of the clocks is the caller's to bear.
    pub fn latest(&self) -> Instant {
        Instant::from_nanos(self.deadline) + Duration::from_micros(u64::from(self.error_us))
    }
}

/// About as many bytes as a frame with a body of so many takes.
pub const fn usual_frame_bytes(body_bytes: usize) -> usize {
    PREFIX_BYTES + USUAL_HEADER_BYTES + body_bytes
}

/// A frame, its body aside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame<'a> {
    /// Run this.
    Call(CallHeader<'a>),
    /// It ran; the body is the answer.
    Ok {
        /// The attempt.
        seq: u64,
        /// The fence of the owner's hold on the key.
        fence: u64,
    },
    /// It ran and failed; the body is the handler's error.
    Executed {
        /// The attempt.
        seq: u64,
        /// The fence of the owner's hold on the key.
        fence: u64,
    },
    /// It did not run.
    Refused {
        /// The attempt.
        seq: u64,
        /// Why.
        why: Refusal,
        /// Who owns the key, if another member does.
        owner: Option<NodeId>,
        /// The record that decided so.
        record: Option<Blob>,
    },
    /// The caller does not wait any more.
    Cancel {
        /// The attempt.
        seq: u64,
    },
    /// What does your clock show?
    Clock {
        /// The sender's.
        sent: u64,
    },
    /// This.
    ClockIs {
        /// As it was asked.
        sent: u64,
        /// The answerer's.
        clock: u64,
    },
    /// This process takes nothing new; whoever has all of its answers closes the connection.
    Goodbye,
    /// The handler has begun: the caller sends what comes behind the body of its call. On a stream of one call only.
    Begun {
        /// The attempt.
        seq: u64,
    },
    /// The body is the next piece of what comes behind a call's body, or before its answer; an empty one is the last. On a
    /// stream of one call only.
    Piece,
}

impl<'a> Frame<'a> {
    /// Appends the frame with `body`.
    pub fn encode(&self, body: &[u8], out: &mut Vec<u8>) {
        out.reserve(usual_frame_bytes(body.len()));
        self.encode_head(body.len(), out);
        out.extend_from_slice(body);
    }

    /// Appends what stands before a body of so many bytes.
    pub fn encode_head(&self, body_bytes: usize, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; PREFIX_BYTES]);
        let kind = match self {
            Self::Call(header) => put(1, header, out),
            Self::Ok { seq, fence } => put(2, &(seq, fence), out),
            Self::Executed { seq, fence } => put(3, &(seq, fence), out),
            Self::Refused { seq, why, owner, record } => put(4, &(seq, why, owner, record), out),
            Self::Cancel { seq } => put(5, seq, out),
            Self::Clock { sent } => put(6, sent, out),
            Self::ClockIs { sent, clock } => put(7, &(sent, clock), out),
            Self::Goodbye => put(8, &(), out),
            Self::Begun { seq } => put(9, seq, out),
            Self::Piece => put(10, &(), out),
        };
        let header = out.len() - start - PREFIX_BYTES;
        assert!(header <= HEADER_BYTES_MAX, "every part of a header has its limit");
        let length = u32::try_from(out.len() - start - 4 + body_bytes).expect("bodies are limited far below 4 GiB");
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        out[start + 4] = kind;
        out[start + 5] = VERSION;
        out[start + 6..start + 8].copy_from_slice(&(header as u16).to_le_bytes());
    }

    /// How long the frame that begins with `bytes` is, once its prefix is there.
    ///
    /// # Errors
    /// If its prefix is none, or announces more than a header and `body_max` bytes.
    pub fn length(bytes: &[u8], body_max: usize) -> Result<Option<usize>, Malformed> {
        let Some(prefix) = bytes.first_chunk() else {
            return Ok(None);
        };
        let prefix = Prefix::read(prefix, body_max)?;
        Ok(Some(PREFIX_BYTES + prefix.header_bytes + prefix.body_bytes))
    }

    /// Reads one whole frame and its body. `Ok(None)`: a kind of a later version, to be skipped.
    ///
    /// # Errors
    /// If the bytes are no frame; the peer's fault.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, Malformed> {
        let (prefix, header, body) = Prefix::split(bytes)?;
        Ok(prefix.frame(header)?.map(|frame| (frame, body)))
    }
}

/// What stands before the header of a frame.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Prefix {
    kind: u8,
    /// Bytes of the header that follows.
    pub header_bytes: usize,
    /// Bytes of the body that follows the header.
    pub body_bytes: usize,
}

impl Prefix {
    /// Reads a prefix.
    ///
    /// # Errors
    /// If it is none, of another version, or announces more than a header and `body_max` bytes.
    pub fn read(bytes: &[u8; PREFIX_BYTES], body_max: usize) -> Result<Self, Malformed> {
        let [a, b, c, d, kind, version, low, high] = *bytes;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let header_bytes = usize::from(u16::from_le_bytes([low, high]));
        let body_bytes = length.checked_sub(PREFIX_BYTES - 4 + header_bytes).ok_or(Malformed::Truncated)?;
        if header_bytes > HEADER_BYTES_MAX || body_bytes > body_max {
            return Err(Malformed::TooLong);
        }
        Ok(Self { kind, header_bytes, body_bytes })
    }

    /// Parts one whole frame into its prefix, its header and its body.
    ///
    /// # Errors
    /// If it is no whole frame.
    #[inline]
    pub fn split(bytes: &[u8]) -> Result<(Self, &[u8], &[u8]), Malformed> {
        let (prefix, rest) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        let prefix = Self::read(prefix, rest.len())?;
        let (header, body) = rest.split_at_checked(prefix.header_bytes).ok_or(Malformed::Truncated)?;
        if body.len() == prefix.body_bytes { Ok((prefix, header, body)) } else { Err(Malformed::Truncated) }
    }

    /// Reads the header that follows. `Ok(None)`: a kind of a later version, to be skipped.
    ///
    /// # Errors
    /// If the bytes are no header; the peer's fault.
    #[inline]
    pub fn frame<'a>(&self, header: &'a [u8]) -> Result<Option<Frame<'a>>, Malformed> {
        Ok(Some(match self.kind {
            1 => Frame::Call(call_header(header)?),
            2 => codec::decode(header).map(|(seq, fence)| Frame::Ok { seq, fence })?,
            3 => codec::decode(header).map(|(seq, fence)| Frame::Executed { seq, fence })?,
            4 => refused(header)?,
            5 => codec::decode(header).map(|seq| Frame::Cancel { seq })?,
            6 => codec::decode(header).map(|sent| Frame::Clock { sent })?,
            7 => codec::decode(header).map(|(sent, clock)| Frame::ClockIs { sent, clock })?,
            8 => codec::decode(header).map(|()| Frame::Goodbye)?,
            9 => codec::decode(header).map(|seq| Frame::Begun { seq })?,
            10 => codec::decode(header).map(|()| Frame::Piece)?,
            _ => return Ok(None),
        }))
    }
}

fn put<T: Serialize>(kind: u8, header: &T, out: &mut Vec<u8>) -> u8 {
    codec::encode(header, out);
    kind
}

fn refused(bytes: &[u8]) -> Result<Frame<'static>, Malformed> {
    let (seq, why, owner, record): (_, _, _, Option<Blob>) = codec::decode(bytes)?;
    if record.as_ref().is_some_and(|record| record.0.len() > swimring_membership::RECORD_BYTES_MAX) {
        return Err(Malformed::OutOfRange("record"));
    }
    Ok(Frame::Refused { seq, why, owner, record })
}

fn call_header(bytes: &[u8]) -> Result<CallHeader<'_>, Malformed> {
    let header: CallHeader<'_> = codec::decode_borrowed(bytes)?;
    if header.service.len() > SERVICE_BYTES_MAX {
        return Err(Malformed::OutOfRange("service"));
    }
    if header.key.0.len() > swimring_ring::KEY_BYTES_MAX {
        return Err(Malformed::OutOfRange("key"));
    }
    if header.record.as_ref().is_some_and(|record| record.0.len() > swimring_membership::RECORD_BYTES_MAX) {
        return Err(Malformed::OutOfRange("record"));
    }
    if header.context.0.len() > CONTEXT_BYTES_MAX {
        return Err(Malformed::OutOfRange("context"));
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn frames() -> Vec<Frame<'static>> {
        vec![
            Frame::Call(CallHeader {
                seq: 1,
                floor: 1,
                life: 9,
                deadline: 5_000_000_000,
                error_us: 200,
                hop: 1,
                service: "kv",
                key: Slice(b"user:42"),
                record: Some(Slice(&[1, 2, 3])),
                scope: Scope::Owners(3),
                context: Slice(b"00-1-2-01"),
            }),
            Frame::Ok { seq: 1, fence: 3 },
            Frame::Executed { seq: 1, fence: 3 },
            Frame::Refused { seq: 1, why: Refusal::NotOwner, owner: Some(NodeId::MAX), record: None },
            Frame::Cancel { seq: 1 },
            Frame::Clock { sent: 7 },
            Frame::ClockIs { sent: 7, clock: 8 },
            Frame::Goodbye,
            Frame::Begun { seq: 1 },
            Frame::Piece,
        ]
    }

    #[test]
    fn frames_round_trip_with_their_bodies() {
        for frame in frames() {
            let mut bytes = Vec::new();
            frame.encode(b"body", &mut bytes);
            assert_eq!(Frame::length(&bytes, 100), Ok(Some(bytes.len())));
            assert_eq!(Frame::decode(&bytes), Ok(Some((frame, &b"body"[..]))));
        }
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_an_error_or_another_frame_but_no_panic() {
        for frame in frames() {
            let mut bytes = Vec::new();
            frame.encode(b"body", &mut bytes);
            for end in 0..bytes.len() {
                assert!(Frame::decode(&bytes[..end]).is_err());
            }
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut flipped = bytes.clone();
                    flipped[at] ^= 1 << bit;
                    let _ = Frame::decode(&flipped);
                    let _ = Frame::length(&flipped, 100);
                }
            }
        }
    }

    #[test]
    fn limits_hold_on_what_comes_in() {
        assert_eq!(Frame::length(&[255, 255, 255, 255, 1, VERSION, 0, 0], 1_000), Err(Malformed::TooLong));
        let Frame::Call(header) = frames().remove(0) else { unreachable!("the first one is a call") };
        let long = CallHeader { key: Slice(&[0; swimring_ring::KEY_BYTES_MAX + 1]), ..header };
        let mut bytes = Vec::new();
        Frame::Call(long).encode(b"", &mut bytes);
        assert_eq!(Frame::decode(&bytes), Err(Malformed::OutOfRange("key")));
    }

    #[test]
    fn an_unknown_kind_is_skipped_and_another_version_refused() {
        let mut bytes = Vec::new();
        Frame::Goodbye.encode(b"", &mut bytes);
        bytes[4] = 99;
        assert_eq!(Frame::decode(&bytes), Ok(None));
        bytes[5] = 2;
        assert_eq!(Frame::decode(&bytes), Err(Malformed::Version(2)));
    }
}
