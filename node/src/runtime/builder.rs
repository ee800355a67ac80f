//! What a node starts with, and its assembly: control plane, data plane, and what follows both.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use swimring_forwarder::{Admission, Limits};
use swimring_membership::{Config, InvalidConfig, InvalidProfile, Name, NodeId, Preset, Profile, Rng, Settings, Start};
use swimring_ring::{ARCS_LOG2_MAX, ARCS_LOG2_MIN, Hashing, KeyHasher, Placement};
use tower::Service;

use super::calls::{Calls, CallsStart};
use super::endpoint::{Port, TransportKeys};
use super::gossip::{self, GossipStart};
use super::identity::{Identity, IdentityError};
use super::metrics;
use super::node::{Parts, Swimring, discover, follow};
use super::service::{Entry, Request, ServiceError, Services};
use super::state::{Found, State};
use super::system::{Clock, OperatingSystem, Socket, System};
use super::tls::{IdleTimeouts, Tls, TlsError};
use crate::core::control::Control;
use crate::core::hello::Class;
use crate::core::peers::{Peers, PeersConfig};

/// The shortest time for which a connection may be silent: QUIC takes zero for ever, and asks whether anybody is there a few
/// times meanwhile.
const IDLE_MIN: Duration = Duration::from_secs(1);

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
    /// A setting is out of its range.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// A ring has 2^8 to 2^24 arcs.
    #[error("a ring cannot have 2^{0} arcs, only 2^{ARCS_LOG2_MIN} to 2^{ARCS_LOG2_MAX}")]
    Arcs(u32),
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
    settings: Settings,
    idle: IdleTimeouts,
    placement: Placement,
    hashing: Hashing,
    limits: Limits,
    services: BTreeMap<Arc<str>, Entry>,
    system: Arc<dyn System>,
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
            settings: Settings::preset(Preset::Lan),
            idle: IdleTimeouts::default(),
            placement: Placement::default(),
            hashing: Hashing::default(),
            limits: Limits::default(),
            services: BTreeMap::new(),
            system: Arc::new(OperatingSystem),
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
    pub fn preset(self, preset: Preset) -> Self {
        self.settings(Settings::preset(preset))
    }

    /// Every knob of membership, where no preset fits.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// How long a connection may be silent before it counts as lost: 10 min for gossip, which must be longer than
    /// the time between two probes of one member, and 2 min for calls, unless one value for both is given here: at least
    /// 1 s.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        let timeout = timeout.max(IDLE_MIN);
        self.idle = IdleTimeouts { gossip: timeout, calls: timeout };
        self
    }

    /// log2 of the arcs of the ring; the same for all nodes of the cluster, which refuse each other otherwise.
    pub fn arcs_log2(mut self, arcs_log2: u32) -> Self {
        self.placement = Placement { arcs_log2 };
        self
    }

    /// How keys are hashed; the same for all nodes of the cluster, which refuse each other otherwise.
    pub fn hashing(mut self, hashing: Hashing) -> Self {
        self.hashing = hashing;
        self
    }

    /// What runs the calls for the service `name`: each in a task of its own.
    pub fn service<S>(self, name: &str, service: S) -> Self
    where
        S: Service<Request, Response = Bytes, Error = ServiceError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.add(name, Entry::new(service))
    }

    /// The same for a service whose calls take microseconds, or wait: whoever reads a call from the network begins it, and
    /// only one that has to wait gets a task. That saves a good part of what a short call costs. Such a service must
    /// never block its thread, not even where tokio allows it (`block_in_place`): what comes behind it on the same
    /// connection waits meanwhile. One that takes more than 100 us to begin, more than a hundredth of the time, is given
    /// tasks for a while.
    pub fn quick_service<S>(self, name: &str, service: S) -> Self
    where
        S: Service<Request, Response = Bytes, Error = ServiceError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.add(name, Entry::quick(service))
    }

    /// A service whose calls are not for the owners of keys only, but also for those who come next, and for every member:
    /// [`Swimring::call_owners`] and [`Swimring::call_members`] reach it. [`Request::scope`] says which a call is for, and
    /// may be anything here.
    pub fn service_everywhere<S>(self, name: &str, service: S) -> Self
    where
        S: Service<Request, Response = Bytes, Error = ServiceError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.add(name, Entry::new(service).everywhere())
    }

    fn add(mut self, name: &str, entry: Entry) -> Self {
        self.services.insert(name.into(), entry);
        self
    }

    /// How much this node takes on for others. Past it a call is refused at once, and has not run.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Where the node gets its sockets, its time and its randomness from.
    pub fn system(mut self, system: Arc<dyn System>) -> Self {
        self.system = system;
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
        let config = Config::new(self.settings.clone())?;
        if !(ARCS_LOG2_MIN..=ARCS_LOG2_MAX).contains(&self.placement.arcs_log2) {
            return Err(StartError::Arcs(self.placement.arcs_log2));
        }
        let tls = Tls::new(&identity, self.idle)?;
        let (gossip_socket, calls_socket) = self.bind()?;
        let gossip_address = self.advertised(gossip_socket.local_addr())?;
        let calls_address = self.advertised(calls_socket.local_addr())?;
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
        self.assemble(identity, tls, (config, profile), state, (gossip_socket, calls_socket))
    }

    /// Composes the control plane, the data plane and what follows both.
    fn assemble(
        self,
        identity: Identity,
        tls: Tls,
        (config, profile): (Config, Profile),
        state: State,
        (gossip_socket, calls_socket): (Socket, Socket),
    ) -> Result<Swimring, StartError> {
        let gossip_address = profile.gossip;
        let system = self.system;
        let keys = |class| TransportKeys::of(class, identity.key.secret_der());
        let clock = Clock::new(Arc::clone(&system));
        let fingerprint = identity.fingerprint(self.placement, self.hashing);
        let start = Start {
            cluster: identity.cluster.clone(),
            profile,
            boot: state.boot(),
            life: system.seed(),
            seed: system.seed(),
        };
        let mut control = Control::new(clock.now(), config, PeersConfig::default(), start, fingerprint)?;
        control.command(clock.now(), |membership| {
            membership.remember_contacts(state.contacts());
            membership.remember_fence(state.fence());
        });
        let (me, peer) = (control.membership().record().instance(), control.membership().record().peer());
        let gossip = gossip::start(GossipStart {
            control,
            state,
            tls: tls.clone(),
            system: Arc::clone(&system),
            socket: gossip_socket,
            keys: keys(Class::Gossip),
            placement: self.placement,
            address: gossip_address,
        })?;
        let rng = Rng::new(system.seed());
        let port = Port::open(Class::Calls, calls_socket, &system, tls, keys(Class::Calls))?;
        let calls = Calls::start(CallsStart {
            me,
            peer,
            fingerprint,
            clock,
            hasher: KeyHasher::new(self.hashing, &identity.secret),
            view: Arc::clone(&gossip.published.view),
            behind: Arc::clone(&gossip.published.behind),
            pulse: Arc::clone(&gossip.pulse),
            control: gossip.inbox.clone(),
            services: Services::new(self.services),
            port,
            peers: Peers::new(Class::Calls, peer, me.life, PeersConfig::calls(), rng.fork(1)),
            admission: Admission::new(me, self.limits),
            rng: rng.fork(2),
        });
        let node = Swimring(Arc::new(Parts { cluster: identity.cluster, name: identity.name, gossip, calls }));
        tokio::spawn(follow(node.clone()));
        tokio::spawn(discover(node.clone(), self.seeds));
        Ok(node)
    }

    fn bind(&self) -> Result<(Socket, Socket), StartError> {
        let bind =
            |address: SocketAddr| self.system.bind(address).map_err(|source| StartError::Listen { address, source });
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
        metrics::finding("state_unusable");
        tracing::warn!(path = %directory.display(), why, "the state could not be used and was set aside; the cluster tells how far this name had come");
    }
    Ok(state)
}
