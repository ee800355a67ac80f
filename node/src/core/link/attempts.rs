//! What is sent to the other process, and what comes back.

use std::borrow::Cow;
use std::sync::Arc;

use swimring_forwarder::NeverSent;
use swimring_forwarder::wire::{CallHeader, Refusal, Scope};
use swimring_membership::codec::Blob;
use swimring_membership::{Instant, NodeId};

use crate::core::backlog::Large;

/// What is wanted: the same in every attempt of a call. `B` holds bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload<B> {
    /// Which service.
    pub service: Cow<'static, str>,
    /// Which key.
    pub key: B,
    /// What for.
    pub body: B,
    /// At which members it may run.
    pub scope: Scope,
    /// What goes with it for those who watch; at most [`CONTEXT_BYTES_MAX`](swimring_forwarder::wire::CONTEXT_BYTES_MAX).
    pub context: B,
    /// More of the body comes once the handler has begun, and more than one answer comes back.
    pub duplex: bool,
}

/// An attempt to send, before it has a number and a deadline in the other's time.
#[derive(Clone, Debug)]
pub struct Outbound<B> {
    /// What is wanted.
    pub payload: Arc<Payload<B>>,
    /// By when, on this process's clock.
    pub deadline: Instant,
    /// Whether it may run more than once.
    pub idempotent: bool,
    /// 1 or 2.
    pub hop: u8,
    /// The record that sent it here.
    pub record: Option<Blob>,
}

/// What a frame of the other process means here. `T` is the caller's token of an attempt, `P` holds the frame's body.
#[derive(Debug)]
pub enum Arrival<'a, T, P> {
    /// It wants something run.
    Call(CallHeader<'a>, P),
    /// It ran an attempt of ours: the answer, or the handler's error.
    Ran(T, Result<P, P>, u64),
    /// It refused an attempt of ours.
    Refused(T, Refusal, Option<NodeId>, Option<Blob>),
    /// It does not wait any more for what it sent under this number.
    Cancel(u64),
    /// It has begun an attempt of ours, for which more of the body waits.
    Begun(u64),
    /// It takes nothing new, and these go back.
    Goodbye(Vec<(T, NeverSent)>),
    /// Nothing that anybody has to hear of.
    Nothing,
}

/// Attempts that end without an answer, for their connection has ended or their deadline is here.
#[derive(Debug)]
pub struct CutOff<T> {
    /// They were handed over: nobody knows.
    pub lost: Vec<T>,
    /// They were not, and will not be.
    pub unsent: Vec<(T, NeverSent)>,
}

/// The beginning of an attempt that goes on: the shell writes it on a stream of its own.
#[derive(Debug)]
pub struct Opening<B> {
    /// The attempt.
    pub seq: u64,
    /// What stands before the body, and the body.
    pub frame: Large<B>,
}
