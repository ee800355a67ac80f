//! What can come of a call, and the proof that it did not run.

use core::time::Duration;

use crate::wire::Refusal;

/// What came of a call. Exactly one, by the deadline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome<B> {
    /// The handler ran and answered.
    Ok(B),
    /// The handler ran and failed, with this error of its own.
    Executed(B),
    /// The call has not run and will not: repeating it is safe.
    NotExecuted(NotExecuted),
    /// The call may have run, or may run yet: repeating it is safe only if it may run twice.
    Unknown(Unknown),
}

/// The call has not run; carries the reason, and can be made only with a proof.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not executed: {why}")]
pub struct NotExecuted {
    why: Why,
}

/// Why a call did not run.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Why {
    /// Nobody owns keys.
    #[error("no member owns keys")]
    NoOwner,
    /// The node that it was for is no member.
    #[error("the node is no member")]
    Gone,
    /// The deadline came before the call could be handed over.
    #[error("the deadline passed before it could be sent")]
    Deadline,
    /// The last try ended before the transport took it.
    #[error(transparent)]
    Unsent(#[from] Unsent),
    /// The owner refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This node's own limits are reached.
    #[error("too many calls are under way here")]
    Overloaded,
    /// This node is leaving, or has lost its name.
    #[error("this node is going away")]
    Leaving,
    /// The key or the body breaks a limit; the caller's fault.
    #[error("{0}")]
    Invalid(&'static str),
}

impl Why {
    /// Whether the call found no owner because keys are moving: another try soon finds it.
    pub fn is_moving(self) -> bool {
        match self {
            Self::Refused(refusal) => matches!(refusal, Refusal::NotOwner | Refusal::Unconfirmed),
            Self::Unsent(unsent) => matches!(unsent, Unsent::Replaced | Unsent::Leaving),
            Self::NoOwner | Self::Gone | Self::Deadline | Self::Overloaded | Self::Leaving | Self::Invalid(_) => false,
        }
    }
}

/// Why an attempt ended before the transport took its first byte.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unsent {
    /// There is no connection to the owner, and none could be made in time.
    #[error("the owner cannot be reached")]
    Unreachable,
    /// The owner's process was replaced by another one.
    #[error("the owner was restarted")]
    Replaced,
    /// The owner's process is going away.
    #[error("the owner is going away")]
    Leaving,
    /// Too much waits for the owner already.
    #[error("too much waits for the owner")]
    Full,
    /// The owner has not answered anything for a while.
    #[error("the owner does not answer")]
    Silent,
    /// Its deadline came first.
    #[error("its deadline came first")]
    Late,
}

/// Proof that an attempt was never handed to the transport. Made by whoever holds the queue.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[must_use = "the call has to hear of it"]
pub struct NeverSent(pub(crate) Unsent);

impl NeverSent {
    /// Testifies that no byte of the attempt was handed to the transport, and that none will be.
    pub fn testify(why: Unsent) -> Self {
        Self(why)
    }
}

impl NotExecuted {
    pub(crate) fn never_sent(proof: NeverSent) -> Self {
        Self { why: Why::Unsent(proof.0) }
    }

    /// Nothing of the call has run, and nothing will.
    pub fn because(why: Why) -> Self {
        Self { why }
    }

    /// Why.
    pub fn why(&self) -> Why {
        self.why
    }

    /// How long to wait before another try, if the owner said so: it had no room.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.why {
            Why::Refused(Refusal::Overloaded { retry_after_ms }) => {
                Some(Duration::from_millis(u64::from(retry_after_ms)))
            }
            _ => None,
        }
    }
}

/// Why nobody knows whether the call ran.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unknown {
    /// The deadline passed without an answer.
    #[error("the deadline passed; the call may have run, or may run yet")]
    Deadline,
    /// The connection to the owner ended before its answer.
    #[error("the connection to the owner ended; the call may have run")]
    Lost,
}
