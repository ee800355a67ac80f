//! The library's face: build a node, call keys, watch members, leave.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use swimring_forwarder::{Admission, Limits};
use swimring_membership::{
    Config, Event, InvalidProfile, Member, Name, NodeId, Phase, Preset, Profile, Rng, Settings, Start,
    State as MemberState,
};
use swimring_ring::{KeyHash, KeyHasher, Placement};
use tokio::sync::{broadcast, oneshot, watch};
use tower::Service;

use super::calls::{Answered, Calls, CallsStart, Wish};
use super::certs::random;
use super::clock::Clock;
use super::endpoint::{Io, Port};
use super::gossip::{self, Ask, Gossip, GossipStart, Input};
use super::identity::{Identity, IdentityError};
use super::service::{BoxedService, Request, ServiceError, Services};
use super::state::{Found, State};
use super::tls::{Tls, TlsError};
use crate::core::control::Control;
use crate::core::hello::Class;
use crate::core::peers::{Peers, PeersConfig};
use crate::core::view::View;

/// The default deadline of a call.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest deadline of a call.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// How often seeds that were given as names are looked up again.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);

/// Why a node could not start; the operator's fault, or the machine's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The identity directory.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is for another node.
    #[error("the certificate is for node {certified}, not {wanted}")]
    OtherNode {
        /// In the certificate.
        certified: Name,
        /// On the command line.
        wanted: Name,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error("{path}: {source}")]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A tag, the zone or the weight breaks its limit.
    #[error(transparent)]
    Profile(#[from] InvalidProfile),
    /// Advertised addresses must be such that others can reach them.
    #[error("{0} is no address that others can reach: say which with `advertise`")]
    Unspecified(SocketAddr),
    /// The system refused something else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a node starts with. [`start`](Self::start) it.
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    identity: PathBuf,
    name: Option<Name>,
    state: Option<PathBuf>,
    listen: SocketAddr,
    listen_calls: Option<SocketAddr>,
    advertise: Option<std::net::IpAddr>,
    seeds: Vec<String>,
    zone: Option<String>,
    weight: u16,
    tags: Vec<(String, String)>,
    preset: Preset,
    placement: Placement,
    limits: Limits,
    services: BTreeMap<Arc<str>, BoxedService>,
}

impl Builder {
    /// A node with the identity in this directory (`swimring certs issue` makes one).
    pub fn new(identity: impl Into<PathBuf>) -> Self {
        Self {
            identity: identity.into(),
            name: None,
            state: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 7_946)),
            listen_calls: None,
            advertise: None,
            seeds: Vec::new(),
            zone: None,
            weight: 1,
            tags: Vec::new(),
            preset: Preset::Lan,
            placement: Placement::default(),
            limits: Limits::default(),
            services: BTreeMap::new(),
        }
    }

    /// The name that the certificate must have.
    pub fn name(mut self, name: Name) -> Self {
        self.name = Some(name);
        self
    }

    /// Where the node keeps what it must not forget; beside the identity by default.
    pub fn state(mut self, directory: impl Into<PathBuf>) -> Self {
        self.state = Some(directory.into());
        self
    }

    /// Where to listen for gossip (UDP); port 0 lets the system choose. Calls take the next port.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Where to listen for calls (UDP).
    pub fn listen_calls(mut self, address: SocketAddr) -> Self {
        self.listen_calls = Some(address);
        self
    }

    /// Under which IP address others reach this node.
    pub fn advertise(mut self, address: std::net::IpAddr) -> Self {
        self.advertise = Some(address);
        self
    }

    /// A node of the cluster to ask: an address, or a name that is looked up again and again. Without seeds the
    /// node is a cluster of one, on purpose.
    pub fn seed(mut self, seed: impl Into<String>) -> Self {
        self.seeds.push(seed.into());
        self
    }

    /// The node's failure domain.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// The node's share of the keys, relative to others.
    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = weight;
        self
    }

    /// A word for the application.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.push((key.into(), value.into()));
        self
    }

    /// How patient the node is with others.
    pub fn preset(mut self, preset: Preset) -> Self {
        self.preset = preset;
        self
    }

    /// What runs the calls for the service `name`.
    pub fn service<S>(mut self, name: &str, service: S) -> Self
    where
        S: Service<Request, Response = Bytes, Error = ServiceError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.services.insert(name.into(), BoxedService::new(service));
        self
    }

    /// Starts the node: it listens, looks for its cluster, and owns keys once it is in.
    ///
    /// # Errors
    /// What is wrong with the identity, the addresses, the state directory or the profile.
    pub async fn start(mut self) -> Result<Swimring, StartError> {
        let identity = Identity::load(&self.identity)?;
        if let Some(wanted) = self.name.take().filter(|name| *name != identity.name) {
            return Err(StartError::OtherNode { certified: identity.name, wanted });
        }
        let tls = Tls::new(&identity)?;
        let (gossip_socket, calls_socket) = self.bind()?;
        let gossip_address = self.advertised(gossip_socket.local_addr()?)?;
        let calls_address = self.advertised(calls_socket.local_addr()?)?;
        let directory = self.state.clone().unwrap_or_else(|| self.identity.join("state"));
        let state = open_state(&directory, identity.id())?;
        self.tags.sort();
        let profile = Profile {
            name: identity.name.clone(),
            gossip: gossip_address,
            calls: calls_address,
            zone: self.zone.clone(),
            weight: self.weight,
            tags: std::mem::take(&mut self.tags),
        };
        profile.validate()?;
        self.assemble(identity, tls, profile, state, (gossip_socket, calls_socket))
    }

    /// Composes the control plane, the data plane and what follows both.
    fn assemble(
        self,
        identity: Identity,
        tls: Tls,
        profile: Profile,
        state: State,
        (gossip_socket, calls_socket): (UdpSocket, UdpSocket),
    ) -> Result<Swimring, StartError> {
        let gossip_address = profile.gossip;
        let clock = Clock;
        let fingerprint = identity.fingerprint(self.placement.arcs_log2);
        let start =
            Start { cluster: identity.cluster.clone(), profile, boot: state.boot(), life: seed(), seed: seed() };
        let config = Config::new(Settings::preset(self.preset)).expect("presets are valid");
        let mut control = Control::new(clock.now(), config, PeersConfig::default(), start, fingerprint)?;
        control.membership_mut().remember_contacts(state.contacts());
        let (me, peer) = (control.membership().record().instance(), control.membership().record().peer());
        let gossip = gossip::start(GossipStart {
            control,
            state,
            tls: tls.clone(),
            clock,
            io: Io::system(gossip_socket),
            secret: identity.secret,
            placement: self.placement,
            address: gossip_address,
        })?;
        let rng = Rng::new(seed());
        let port = Port::open(Class::Calls, Io::system(calls_socket), tls, clock, &identity.secret)?;
        let calls = Calls::start(CallsStart {
            me,
            peer,
            fingerprint,
            clock,
            hasher: KeyHasher::new(&identity.secret),
            view: Arc::clone(&gossip.view),
            control: gossip.inbox.clone(),
            services: Services::new(self.services),
            port,
            peers: Peers::new(Class::Calls, peer, me.life, PeersConfig::calls(), rng.fork(1)),
            admission: Admission::new(me, self.limits),
            rng: rng.fork(2),
        });
        let node = Swimring { cluster: identity.cluster, name: identity.name, gossip, calls };
        let events = node.events();
        tokio::spawn(follow(node.clone(), events));
        tokio::spawn(discover(node.clone(), self.seeds));
        Ok(node)
    }

    fn bind(&self) -> Result<(UdpSocket, UdpSocket), StartError> {
        let bind = |address: SocketAddr| {
            let socket = UdpSocket::bind(address).map_err(|source| StartError::Listen { address, source })?;
            socket.set_nonblocking(true).map_err(|source| StartError::Listen { address, source })?;
            Ok::<_, StartError>(socket)
        };
        if let Some(calls) = self.listen_calls {
            return Ok((bind(self.listen)?, bind(calls)?));
        }
        if self.listen.port() != 0 {
            let next = SocketAddr::new(self.listen.ip(), self.listen.port().wrapping_add(1));
            return Ok((bind(self.listen)?, bind(next)?));
        }
        // The system chooses: any two will do, for members tell each other both.
        Ok((bind(self.listen)?, bind(self.listen)?))
    }

    fn advertised(&self, local: SocketAddr) -> Result<SocketAddr, StartError> {
        let address = SocketAddr::new(self.advertise.unwrap_or(local.ip()), local.port());
        if address.ip().is_unspecified() { Err(StartError::Unspecified(address)) } else { Ok(address) }
    }
}

fn open_state(directory: &Path, id: NodeId) -> Result<State, StartError> {
    let (state, found) =
        State::open(directory, id).map_err(|source| StartError::State { path: directory.into(), source })?;
    if let Found::Unusable(why) = found {
        tracing::warn!(path = %directory.display(), why, "the state could not be used and was set aside; the cluster tells how far this name had come");
    }
    Ok(state)
}

fn seed() -> u64 {
    let mut bytes = [0; 8];
    random(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// A running node. Clones are the same node.
#[derive(Clone)]
pub struct Swimring {
    cluster: Name,
    name: Name,
    gossip: Gossip,
    calls: Arc<Calls>,
}

/// A call to make.
#[derive(Clone, Debug)]
pub struct CallRequest {
    wish: Wish,
}

impl CallRequest {
    /// A call of `service` for `key`, which may not run twice and waits [`CALL_TIMEOUT`].
    pub fn new(service: &str, key: impl Into<Bytes>, body: impl Into<Bytes>) -> Self {
        Self {
            wish: Wish {
                service: service.into(),
                key: key.into(),
                body: body.into(),
                timeout: CALL_TIMEOUT,
                idempotent: false,
            },
        }
    }

    /// How long to wait; at most [`CALL_TIMEOUT_MAX`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.wish.timeout = timeout.min(CALL_TIMEOUT_MAX);
        self
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
        &self.cluster
    }

    /// This node's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Where this node listens for gossip: what others take as a seed.
    pub fn gossip_address(&self) -> SocketAddr {
        self.gossip.address
    }

    /// Where this node listens for calls.
    ///
    /// # Errors
    /// If the socket is gone.
    pub fn calls_address(&self) -> io::Result<SocketAddr> {
        self.calls.local_addr()
    }

    /// What this node knows now.
    pub fn view(&self) -> Arc<View> {
        self.calls.view()
    }

    /// Every member that this node lists, itself included.
    pub fn members(&self) -> Vec<Member> {
        self.view().members().to_vec()
    }

    /// A key's place on the ring.
    pub fn hash(&self, key: &[u8]) -> KeyHash {
        self.calls.hash(key)
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
        self.gossip.events.subscribe()
    }

    /// The version of the view, as it changes; [`view`](Self::view) has the view itself.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.gossip.changed.clone()
    }

    /// Runs the call at the owner of its key, here or there. Exactly one outcome, by the deadline.
    pub async fn call(&self, request: CallRequest) -> Answered {
        self.calls.call(request.wish).await
    }

    /// Whether this node is in its cluster and takes keys.
    pub fn is_ready(&self) -> bool {
        let view = self.view();
        view.is_confirmed()
            && view
                .member(view.me().node)
                .is_some_and(|own| own.record.phase() == Phase::Ready && own.state.is_present())
    }

    /// What was decided about the calls of others.
    pub fn admission_stats(&self) -> swimring_forwarder::AdmissionStats {
        self.calls.admission_stats()
    }

    /// How many connections were refused, and dials failed, for gossip.
    pub fn refusals(&self) -> (u64, u64, u64) {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        let refusals = &self.gossip.refusals;
        (load(&refusals.incoming), load(&refusals.dials), load(&refusals.malformed))
    }

    /// States new tags, or a new zone or weight.
    ///
    /// # Errors
    /// If a limit is broken; nothing changed.
    pub async fn update_profile(
        &self,
        change: impl FnOnce(&mut Profile) + Send + 'static,
    ) -> Result<(), InvalidProfile> {
        let (done, result) = oneshot::channel();
        self.ask(Ask::Profile(Box::new(change), done)).await;
        // A node that has ended has nothing to state.
        result.await.unwrap_or(Ok(()))
    }

    async fn ask(&self, ask: Ask) {
        let _ = self.gossip.inbox.send(Input::Ask(ask)).await;
    }

    /// Leaves in an orderly way: gives up the keys, finishes what is under way, says goodbye, ends. Takes at most
    /// about `grace`.
    pub async fn leave(&self, grace: Duration) {
        self.ask(Ask::Phase(Phase::Draining)).await;
        // Whoever has not heard yet still sends; it is served until everybody had time to hear.
        tokio::time::sleep(DRAIN.min(grace / 4)).await;
        self.calls.leave();
        let finished = async {
            while self.calls.under_way() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(grace / 2, finished).await;
        let (said, goodbye) = oneshot::channel();
        self.ask(Ask::Leave(said)).await;
        let _ = tokio::time::timeout(grace / 4, goodbye).await;
        tokio::time::sleep(GOODBYE.min(grace / 4)).await;
        self.close().await;
    }

    /// Ends without a word, as a crash would.
    pub async fn close(&self) {
        self.calls.close().await;
        self.ask(Ask::Close).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), self.gossip.inbox.closed()).await;
    }
}

/// How long a draining node still takes what others send before they have heard.
const DRAIN: Duration = Duration::from_millis(500);
/// How long a goodbye may take to go out.
const GOODBYE: Duration = Duration::from_millis(200);

/// Follows the control plane: takes keys once it is in, forgets who is gone.
async fn follow(node: Swimring, mut events: broadcast::Receiver<Event>) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = node.gossip.inbox.closed() => return,
        };
        match event {
            Ok(Event::Joined) if !node.calls.is_leaving() => node.ask(Ask::Phase(Phase::Ready)).await,
            Ok(Event::Changed { id, state, incarnation, .. }) if !state.is_present() => {
                let view = node.view();
                // The view may be older than the event, or much newer: then a new life of the member is meant.
                let gone = view.member(id).filter(|member| member.incarnation <= incarnation);
                if let Some(peer) = gone.map(|member| member.record.peer()) {
                    // What a leaver still has to say may be on its way; whoever is down says nothing.
                    let patience = if state == MemberState::Left { LAST_WORDS } else { Duration::ZERO };
                    let calls = Arc::clone(&node.calls);
                    tokio::spawn(async move {
                        tokio::time::sleep(patience).await;
                        calls.forget(peer);
                    });
                }
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// How long the connection to a member that has left is kept for its last answers.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Looks the seeds up, and again for as long as the node runs: discovery's live answer counts.
async fn discover(node: Swimring, seeds: Vec<String>) {
    let mut last: Option<Vec<SocketAddr>> = None;
    loop {
        let mut found = Vec::new();
        for seed in &seeds {
            match tokio::net::lookup_host(seed.as_str()).await {
                Ok(addresses) => found.extend(addresses),
                Err(problem) => {
                    tracing::warn!(seed, %problem, "cannot look the seed up; trying again")
                }
            }
        }
        found.sort();
        found.dedup();
        if last.as_ref() != Some(&found) && (seeds.is_empty() || !found.is_empty()) {
            node.ask(Ask::Seeds(found.clone())).await;
            last = Some(found);
        }
        if seeds.is_empty() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(RESOLVE_EVERY) => {}
            () = node.gossip.inbox.closed() => return,
        }
    }
}
