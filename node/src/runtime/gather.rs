//! Calls to several nodes: the first owners of a key, with a quorum, and every member.

use std::time::Duration;

use futures_util::StreamExt;
use swimring_forwarder::Outcome;
use swimring_forwarder::wire::Scope;
use swimring_membership::{Member, NodeId, Phase};
use tokio::task::JoinSet;

use super::calls::{Answered, Wish};
use super::node::{CALLS_AT_ONCE_MAX, CallRequest, Swimring};

/// Most first owners of a key that one call is for.
pub const OWNERS_MAX: u8 = 16;

/// What became of a call to the first owners of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gathered {
    /// The owners in this node's view when the call began, in their order, each with what came of it there: none where it
    /// was still under way when the quorum was reached, or could not be any more.
    pub owners: Vec<(NodeId, Option<Answered>)>,
    /// How many had to answer.
    pub quorum: usize,
}

impl Gathered {
    /// How many have run it and answered.
    pub fn answered(&self) -> usize {
        self.owners.iter().flat_map(|(_, answered)| answered).filter(|answered| is_ok(answered)).count()
    }

    /// Whether as many as had to.
    pub fn is_reached(&self) -> bool {
        self.answered() >= self.quorum
    }
}

fn is_ok(answered: &Answered) -> bool {
    matches!(answered.outcome, Outcome::Ok(_))
}

impl CallRequest {
    /// The same call for one node.
    fn at(&self, node: NodeId, scope: Scope) -> Wish {
        let mut wish = self.wish.clone();
        wish.payload.scope = scope;
        Wish { at: Some(node), ..wish }
    }
}

impl Swimring {
    /// Runs the call at each of the first `count` (at most [`OWNERS_MAX`]) owners of its key at once, and waits until
    /// `quorum` of them have answered, or cannot any more, or the deadline. Which nodes these are is decided here and now;
    /// each of them runs it only if it is among them by its own ring. Where the call is still under way then, it goes on
    /// to its end; if this future is dropped, it is cancelled. For services of
    /// [`service_everywhere`](super::builder::Builder::service_everywhere).
    ///
    /// With fewer members that own keys than `quorum` nothing runs anywhere.
    pub async fn call_owners(&self, request: CallRequest, count: u8, quorum: usize) -> Gathered {
        let count = count.min(OWNERS_MAX);
        let view = self.view();
        let nodes = view.ring().owners(self.hash(&request.wish.payload.key), usize::from(count));
        let owners = nodes.iter().map(|owner| (owner.id, None)).collect::<Vec<_>>();
        let mut gathered = Gathered { owners, quorum };
        if gathered.owners.len() < quorum {
            return gathered;
        }
        let mut under_way = JoinSet::new();
        for (place, (node, _)) in gathered.owners.iter().enumerate() {
            let (calls, wish) = (std::sync::Arc::clone(&self.0.calls), request.at(*node, Scope::Owners(count)));
            under_way.spawn(async move { (place, calls.call(wish).await) });
        }
        let (mut ok, mut failed) = (0, 0);
        while ok < quorum
            && gathered.owners.len() - failed >= quorum
            && let Some(ended) = under_way.join_next().await
        {
            let Ok((place, answered)) = ended else { continue };
            if is_ok(&answered) {
                ok += 1
            } else {
                failed += 1
            }
            gathered.owners[place].1 = Some(answered);
        }
        under_way.detach_all();
        gathered
    }

    /// Runs the call at every member that is present in this node's view and not on its way out, this node included,
    /// [`CALLS_AT_ONCE_MAX`] at a time, and waits for all. The key decides nothing. One outcome each, by the deadline, which counts from now. For
    /// services of [`service_everywhere`](super::builder::Builder::service_everywhere).
    pub async fn call_members(&self, request: CallRequest) -> Vec<(NodeId, Answered)> {
        let begun = tokio::time::Instant::now();
        let view = self.view();
        let stays = |member: &&Member| member.state.is_present() && member.record.phase() != Phase::Draining;
        let present = view.members().filter(stays);
        let calls = present.map(|member| member.record.id()).map(|node| {
            let wish = request.at(node, Scope::Members);
            async move {
                let timeout: Duration = wish.timeout.saturating_sub(begun.elapsed());
                (node, self.0.calls.call(Wish { timeout, ..wish }).await)
            }
        });
        let calls: Vec<_> = calls.collect();
        futures_util::stream::iter(calls).buffered(CALLS_AT_ONCE_MAX).collect().await
    }
}
