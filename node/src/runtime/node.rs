//! The library's face: build a node, call keys, watch members, leave.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use swimring_forwarder::wire::Scope;
use swimring_membership::{Event, InvalidProfile, Member, Name, NodeId, Phase, Profile, State as MemberState};
use swimring_ring::KeyHash;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinSet;

use super::arcs::ArcEvents;
use super::bodies::{BodyReader, BodyWriter, DuplexCall};
use super::builder::Builder;
use super::calls::{Answered, Calls, Gone, Wish};
use super::gossip::{Ask, Gossip, Input};
use super::metrics;
use super::publisher::RingChange;
use crate::core::link::Payload;
use crate::core::view::View;

/// The default deadline of a call.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest deadline of a call.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// Most calls of one [`Swimring::call_each`] under way at once.
pub const CALLS_AT_ONCE_MAX: usize = 1_024;
/// How often seeds that were given as names are looked up again.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);

/// A running node. Clones are the same node.
#[derive(Clone)]
pub struct Swimring(pub(super) Arc<Parts>);

/// What a running node is made of.
pub(super) struct Parts {
    pub(super) cluster: Name,
    pub(super) name: Name,
    pub(super) gossip: Gossip,
    pub(super) calls: Arc<Calls>,
}

/// A call to make.
#[derive(Clone, Debug)]
pub struct CallRequest {
    pub(super) wish: Wish,
}

impl CallRequest {
    /// A call of `service` for `key`, which may not run twice and waits [`CALL_TIMEOUT`].
    pub fn new(service: impl Into<Cow<'static, str>>, key: impl Into<Bytes>, body: impl Into<Bytes>) -> Self {
        let scope = Scope::Owner;
        let (service, key, body, context) = (service.into(), key.into(), body.into(), Bytes::new());
        let payload = Payload { service, key, body, scope, context, duplex: false };
        Self { wish: Wish { payload, at: None, timeout: CALL_TIMEOUT, idempotent: false, duplex: None } }
    }

    /// How long to wait; at most [`CALL_TIMEOUT_MAX`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.wish.timeout = timeout.min(CALL_TIMEOUT_MAX);
        self
    }

    /// What goes with the call to its handler, beside key and body, for those who watch: a trace context, say. Nothing here
    /// looks at it. At most [`CONTEXT_BYTES_MAX`](swimring_forwarder::wire::CONTEXT_BYTES_MAX) bytes.
    #[must_use]
    pub fn context(mut self, context: impl Into<Bytes>) -> Self {
        self.wish.payload.context = context.into();
        self
    }

    /// More of the body follows while the call is under way, and more answers precede the last one, in pieces both ways and
    /// as fast as the reader at the other end reads: write and read while [`Swimring::call`] is waited for. The call's own
    /// body, of at most 64 KiB, opens it.
    ///
    /// The outcome comes behind everything that the handler wrote, once that was read here, or the reader was dropped. What
    /// follows the opening is with one handler only: once that has begun, a lost connection means `Unknown`, also where the
    /// call may run twice. Made once, also of several clones. At most [`DUPLEX_MAX`](super::DUPLEX_MAX) are under way from one node to
    /// another; more wait.
    #[must_use]
    pub fn duplex(mut self) -> (Self, BodyWriter, BodyReader) {
        let (call, writer, reader) = DuplexCall::new();
        self.wish.duplex = Some(call);
        self.wish.payload.duplex = true;
        (self, writer, reader)
    }

    /// The call may run more than once: it is repeated after a lost connection.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.wish.idempotent = true;
        self
    }
}

impl Swimring {
    /// A node with the identity in this directory.
    pub fn builder(identity: impl Into<PathBuf>) -> Builder {
        Builder::new(identity)
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &Name {
        &self.0.cluster
    }

    /// This node's name.
    pub fn name(&self) -> &Name {
        &self.0.name
    }

    /// Where this node listens for gossip: what others take as a seed.
    pub fn gossip_address(&self) -> SocketAddr {
        self.0.gossip.address
    }

    /// Where this node listens for calls.
    ///
    /// # Errors
    /// If the socket is gone.
    pub fn calls_address(&self) -> io::Result<SocketAddr> {
        self.0.calls.local_addr()
    }

    /// What this node knows now.
    pub fn view(&self) -> Arc<View> {
        self.0.calls.view()
    }

    /// Every member that this node lists, itself included.
    pub fn members(&self) -> Vec<Member> {
        self.view().members().cloned().collect()
    }

    /// A key's place on the ring.
    pub fn hash(&self, key: &[u8]) -> KeyHash {
        self.0.calls.hash(key)
    }

    /// Who owns `key`, in this node's view.
    ///
    /// # Errors
    /// If no member owns keys.
    pub fn owner(&self, key: &[u8]) -> Result<NodeId, swimring_ring::EmptyRing> {
        self.view().ring().owner(self.hash(key))
    }

    /// What becomes true of members, as it does. A listener that falls behind is told how much it missed.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.0.gossip.events.subscribe()
    }

    /// The version of the view, as it changes; [`view`](Self::view) has the view itself.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.gossip.published.changed.clone()
    }

    /// Every other ring that decides who owns what, as it takes over. A listener that falls behind is told how much
    /// it missed.
    pub fn ring_changes(&self) -> broadcast::Receiver<RingChange> {
        self.0.gossip.published.rings.subscribe()
    }

    /// The arcs that this node loses and wins, and those that it expects to, for whoever holds state by key.
    pub fn arc_events(&self) -> ArcEvents {
        ArcEvents::new(&self.0.gossip.published)
    }

    /// Runs the call at the owner of its key, here or there. Exactly one outcome, by the deadline.
    pub fn call(&self, request: CallRequest) -> impl Future<Output = Answered> + Send + '_ {
        self.0.calls.call(request.wish)
    }

    /// Runs several calls, each at the owner of its own key, as many as [`CALLS_AT_ONCE_MAX`] at a time. One outcome each, in
    /// the order of the requests, by its deadline, which counts from now: whoever has to wait for its turn has less time
    /// left. What some of them come to changes nothing for the others.
    pub async fn call_each(&self, requests: impl IntoIterator<Item = CallRequest>) -> Vec<Answered> {
        let begun = tokio::time::Instant::now();
        let calls = requests.into_iter().map(|CallRequest { wish }| async move {
            let timeout = wish.timeout.saturating_sub(begun.elapsed());
            self.0.calls.call(Wish { timeout, ..wish }).await
        });
        futures_util::stream::iter(calls).buffered(CALLS_AT_ONCE_MAX).collect().await
    }

    /// Whether this node is in its cluster and takes keys.
    pub fn is_ready(&self) -> bool {
        let view = self.view();
        self.0.calls.is_confirmed_now(&view)
            && view
                .member(view.me().node)
                .is_some_and(|own| own.record.phase() == Phase::Ready && own.state.is_present())
    }

    /// What was decided about the calls of others.
    pub fn admission_stats(&self) -> swimring_forwarder::AdmissionStats {
        self.0.calls.admission_stats()
    }

    /// States new tags, or a new zone or weight.
    ///
    /// `change` runs in the thread that gossips: it must not block.
    ///
    /// # Errors
    /// If a limit is broken; nothing changed.
    ///
    /// # Panics
    /// If `change` does; nothing changed.
    pub async fn update_profile(
        &self,
        change: impl FnOnce(&mut Profile) + Send + 'static,
    ) -> Result<(), InvalidProfile> {
        let (done, result) = oneshot::channel();
        self.ask(Ask::Profile(Box::new(change), done)).await;
        match result.await {
            Ok(Ok(changed)) => changed,
            Ok(Err(panic)) => resume_unwind(panic),
            // A node that has ended has nothing to state.
            Err(_) => Ok(()),
        }
    }

    async fn ask(&self, ask: Ask) {
        let _ = self.0.gossip.inbox.send(Input::Ask(ask)).await;
    }

    /// Leaves in an orderly way: gives up the keys, finishes what is under way, says goodbye, closes. What is under way
    /// has until `grace` is over but for the last 1.5 s, or quarter, of it; closing may take up to 4 s more if tasks or
    /// threads hang.
    pub async fn leave(&self, grace: Duration) {
        let grace = grace.min(GRACE_MAX);
        let end = tokio::time::Instant::now() + grace;
        // The goodbye has its time even if what is under way takes longer than it may.
        let last = end - GOODBYE_MAX.min(grace / 4);
        let (done, drained) = oneshot::channel();
        let draining = async {
            self.ask(Ask::Drain(done)).await;
            _ = drained.await;
        };
        let _ = tokio::time::timeout_at(last, draining).await;
        // Whoever has not heard yet still sends; it is served until everybody had time to hear.
        tokio::time::sleep(DRAIN.min(grace / 4)).await;
        self.0.calls.leave();
        wait_until(last, || self.0.calls.under_way() == 0).await;
        self.0.calls.say_goodbye();
        let (said, goodbye) = oneshot::channel();
        let leaving = async {
            self.ask(Ask::Leave(said)).await;
            _ = goodbye.await;
            tokio::time::sleep(GOODBYE).await;
        };
        let _ = tokio::time::timeout_at(end, leaving).await;
        wait_until(end, || self.0.calls.connections() == 0).await;
        self.close().await;
    }

    /// Waits until the node has ended: it was closed, or its thread is gone.
    pub async fn ended(&self) {
        self.0.gossip.inbox.closed().await;
    }

    /// Ends at once: others lose the connections, and find out the rest as after a crash.
    pub async fn close(&self) {
        self.0.calls.close().await;
        self.ask(Ask::Close).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), self.0.gossip.inbox.closed()).await;
    }
}

/// Waits until `holds`, or the end.
async fn wait_until(end: tokio::time::Instant, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = tokio::time::timeout_at(end, waiting).await;
}

/// How long a draining node still takes what others send before they have heard.
const DRAIN: Duration = Duration::from_millis(500);
/// The longest that leaving may take.
const GRACE_MAX: Duration = Duration::from_secs(86_400);
/// How long a goodbye may take to go out.
const GOODBYE: Duration = Duration::from_millis(200);
/// How long a goodbye, and the answer of others to it, may take in all.
const GOODBYE_MAX: Duration = Duration::from_millis(1_500);

/// Follows the view: forgets the processes that are gone by it. Not by the events, which come before the view that
/// the calls go by: what is cut off then would be sent to the dead once more.
pub(super) async fn follow(node: Swimring) {
    let mut changes = node.changes();
    let mut leaving = BTreeSet::new();
    while changes.changed().await.is_ok() {
        let gone = node.0.calls.gone(&node.view());
        leaving.retain(|left| gone.iter().any(|gone| gone.instance == *left));
        for Gone { peer, instance, state } in gone {
            let calls = Arc::clone(&node.0.calls);
            if state != MemberState::Left {
                calls.forget(peer, instance.life);
            } else if leaving.insert(instance) {
                // What a leaver still has to say may be on its way; whoever is down says nothing.
                tokio::spawn(async move {
                    tokio::time::sleep(LAST_WORDS).await;
                    calls.forget(peer, instance.life);
                });
            }
        }
    }
}

/// How long the connection to a member that has left is kept for its last answers.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long the seeds that are known wait for the names that are still looked up.
const SLOW_NAME: Duration = Duration::from_secs(1);

/// Looks the seeds up, and again for as long as the node runs: discovery's live answer counts.
pub(super) async fn discover(node: Swimring, seeds: Vec<String>) {
    if seeds.is_empty() {
        return node.ask(Ask::Seeds(Vec::new())).await;
    }
    // The last good answer of each, and what was last said of one that cannot be looked up, so that it is said once.
    let mut known: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    let mut last = Vec::new();
    loop {
        // One name that takes long holds up no other.
        let mut lookups = JoinSet::new();
        for seed in seeds.clone() {
            lookups.spawn(async move {
                let found = tokio::net::lookup_host(&seed).await.map(Iterator::collect::<Vec<_>>);
                (seed, found)
            });
        }
        loop {
            let over = match tokio::time::timeout(SLOW_NAME, lookups.join_next()).await {
                Ok(Some(Ok((seed, Ok(addresses))))) => {
                    said.remove(&seed);
                    known.insert(seed, addresses);
                    continue;
                }
                Ok(Some(Ok((seed, Err(problem))))) => {
                    metrics::finding("seed_unknown");
                    let problem = problem.to_string();
                    if said.get(&seed) != Some(&problem) {
                        tracing::warn!(seed, problem, "cannot look the seed up; trying again");
                        said.insert(seed, problem);
                    }
                    continue;
                }
                Ok(Some(Err(_))) => continue,
                Ok(None) => true,
                Err(_) => false,
            };
            let mut found: Vec<SocketAddr> = known.values().flatten().copied().collect();
            found.sort();
            found.dedup();
            if found != last {
                node.ask(Ask::Seeds(found.clone())).await;
                last = found;
            }
            if over {
                break;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RESOLVE_EVERY) => {}
            () = node.0.gossip.inbox.closed() => return,
        }
    }
}
