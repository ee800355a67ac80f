//! One simulated machine: the process on it, its clock, its disk, and what it is suffering from.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use swimring::core::control::Control;
use swimring::core::hello::Class;
use swimring::core::peers::{ConnId, DialId, Peers, PeersConfig};
use swimring::core::publishing::Publishing;
use swimring::core::view::Rings;
use swimring::ring::Placement;
use swimring_membership::{Config, Instant, Name, NodeId, Peer, Profile, Rng, Settings, Start};

use crate::conns::Process;
use crate::flow::Packet;
use crate::plan::{Limits, Memory, WorldSpec};

/// Most inputs that wait for a paused process; the system drops what comes after.
const INBOX_MAX: usize = 4_096;
/// How long a process takes for one input when it is not slowed down.
const SERVICE: Duration = Duration::from_micros(10);

/// What a process is given.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A deadline may have passed.
    Wake,
    /// A packet on a connection.
    Packet { conn: u64, end: usize, packet: Packet },
    /// A message of a stranger.
    Message(ConnId, Vec<u8>),
    /// A dial's answer.
    Dialled(DialId, ConnId, swimring::core::hello::Hello),
    /// A dial's failure.
    DialFailed(DialId, String),
    /// A dial that reached the process itself.
    Oneself(DialId),
    /// A hello on a new connection that was judged.
    Accepted(ConnId, swimring::core::hello::Hello),
    /// A connection's end.
    Closed(ConnId),
    /// Something of the data plane.
    Call(Box<crate::calls::CallInput>),
}

impl Input {
    /// Whether nothing has to come in for it: a timer, or the end of something that runs here.
    pub(crate) fn is_of_time(&self) -> bool {
        matches!(self, Self::Wake) || matches!(self, Self::Call(input) if input.is_of_time())
    }

    /// The connection that its dialler knows from now on.
    pub(crate) fn dialled(&self) -> Option<ConnId> {
        match self {
            Self::Dialled(_, conn, _) => Some(*conn),
            Self::Call(input) => match **input {
                crate::calls::CallInput::Dialled(_, conn, ..) => Some(conn),
                _ => None,
            },
            _ => None,
        }
    }
}

/// What survives a process: its state directory.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The last boot that was stored.
    pub boot: u32,
    /// The highest fence that was minted.
    pub fence: u64,
    /// Contacts of the last life.
    pub contacts: Vec<Peer>,
}

/// One machine.
#[derive(Debug)]
pub struct Host {
    /// Its index.
    pub index: usize,
    /// Its node's name.
    pub name: Name,
    /// Its node's id.
    pub id: NodeId,
    /// Where it listens for gossip.
    pub address: SocketAddr,
    /// The running process's control plane, if one runs.
    pub control: Option<Control>,
    /// Its data plane.
    pub(crate) app: Option<crate::calls::App>,
    /// Counts its starts.
    pub life: u32,
    /// When the running process was started.
    pub started: Instant,
    /// When its last process ended, if one has.
    pub ended: Option<Instant>,
    /// When it last stood still or was slow, if ever.
    pub troubled: Option<Instant>,
    /// Since when it has stood still.
    pub(crate) still_since: Option<Instant>,
    /// It stood still for so long that others may have removed it, and has not been sent anything since.
    pub(crate) is_unsure: bool,
    /// Its share of the keys, relative to others.
    pub(crate) weight: u16,
    /// Its state directory, and an old copy of it.
    pub disk: Disk,
    stale_disk: Disk,
    /// Another machine has its address or its name: nothing runs here any more.
    pub retired: bool,
    /// For its process gave its name up to another one.
    pub gave_way: bool,
    /// Its cluster.
    pub home: Home,
    /// It runs a later release.
    pub upgraded: bool,
    /// Standing still.
    pub paused: bool,
    /// Standing before it sends and after it has received, while its timers go on.
    pub blocked: bool,
    /// On its way out.
    pub(crate) leaving: bool,
    /// Once it is out, it starts again.
    pub(crate) returns: bool,
    /// It has closed its connections, and wants no new ones.
    pub(crate) closed: bool,
    /// The connections that it closed then.
    pub(crate) closes: Vec<ConnId>,
    /// Inputs that wait for it.
    pub(crate) inbox: VecDeque<Input>,
    /// How many times slower than usual.
    pub slow: u32,
    /// When it is done with what it has.
    pub busy_until: Instant,
    /// For which moment a wake-up is scheduled.
    pub armed: Option<Instant>,
    clock: Clock,
    rng: Rng,
}

/// A clock that starts anywhere and drifts.
#[derive(Copy, Clone, Debug)]
struct Clock {
    world: Instant,
    local: Instant,
    ppm: i32,
}

impl Clock {
    fn local(&self, world: Instant) -> Instant {
        if self.ppm == 0 {
            return self.local + world.since(self.world);
        }
        let passed = world.since(self.world).as_nanos() as i128;
        let local = passed + passed * i128::from(self.ppm) / 1_000_000;
        Instant::from_nanos(self.local.as_nanos() + local as u64)
    }

    /// The first world moment at which the clock shows `local` or more.
    fn world(&self, local: Instant) -> Instant {
        if self.ppm == 0 {
            return self.world + local.since(self.local);
        }
        let passed = local.since(self.local).as_nanos() as i128;
        let world = passed * 1_000_000 / (1_000_000 + i128::from(self.ppm));
        Instant::from_nanos(self.world.as_nanos() + world as u64 + 1)
    }
}

/// What a process allows. Where it is tight, connections grow old within a world's time, so that they are replaced in it.
pub(crate) fn peers_config(class: Class, limits: Limits) -> PeersConfig {
    let shipped = match class {
        Class::Gossip => PeersConfig::default(),
        Class::Calls => PeersConfig::calls(),
    };
    match limits {
        Limits::Tight => {
            PeersConfig { age_max: Duration::from_secs(150), connections_max: 512, dials_max: 24, ..shipped }
        }
        Limits::Shipped => shipped,
    }
}

/// The cluster of every world.
pub fn cluster() -> Name {
    Name::new("sim").expect("the name follows the rule")
}

/// Which cluster a machine belongs to.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Home {
    /// The world's.
    Here,
    /// Another one, on addresses that were this one's.
    Foreign,
}

impl Home {
    fn cluster(self) -> Name {
        match self {
            Self::Here => cluster(),
            Self::Foreign => crate::identities::elsewhere(),
        }
    }

    /// Of the cluster's secret and constants.
    pub(crate) fn fingerprint(self) -> [u8; 16] {
        match self {
            Self::Here => [7; 16],
            Self::Foreign => [9; 16],
        }
    }
}

impl Host {
    /// A machine on which nothing runs yet.
    pub fn new(index: usize, seed: u64) -> Self {
        let name = Name::new(&format!("n{}", index + 1)).expect("the name follows the rule");
        let mut rng = Rng::new(seed).fork(0x686f_7374).fork(index as u64);
        let origin = Instant::from_nanos(rng.below(1 << 50));
        Self {
            index,
            id: NodeId::of(&cluster(), &name),
            name,
            address: SocketAddr::from((
                [10, (index >> 14) as u8, (index >> 7 & 127) as u8, (index & 127) as u8 + 1],
                7_946,
            )),
            control: None,
            app: None,
            life: 0,
            started: Instant::ORIGIN,
            ended: None,
            troubled: None,
            still_since: None,
            is_unsure: false,
            weight: 1,
            disk: Disk::default(),
            stale_disk: Disk::default(),
            retired: false,
            gave_way: false,
            home: Home::Here,
            upgraded: false,
            paused: false,
            blocked: false,
            leaving: false,
            returns: false,
            closed: false,
            closes: Vec::new(),
            inbox: VecDeque::new(),
            slow: 1,
            busy_until: Instant::ORIGIN,
            armed: None,
            clock: Clock { world: Instant::ORIGIN, local: origin, ppm: 0 },
            rng,
        }
    }

    /// The machine is of this node, of that cluster.
    pub(crate) fn is_called(&mut self, name: Name, home: Home) {
        self.id = NodeId::of(&home.cluster(), &name);
        (self.name, self.home) = (name, home);
    }

    /// What a copy of the state directory of this machine holds, as much of it as `memory` leaves.
    pub(crate) fn copied_disk(&self, memory: Memory) -> Disk {
        match memory {
            Memory::Kept => self.disk.clone(),
            Memory::Lost => Disk::default(),
            Memory::Stale => self.stale_disk.clone(),
        }
    }

    /// The process that runs, or ran last.
    pub fn process(&self) -> Process {
        Process { host: self.index, life: self.life }
    }

    /// Whether it is in its cluster, or knows members from before: it needs no seed.
    pub(crate) fn finds_others(&self) -> bool {
        let joined = self.control.as_ref().is_some_and(|control| control.membership().is_joined());
        joined || !self.disk.contacts.is_empty()
    }

    /// Whether a process runs (perhaps standing still).
    pub fn is_up(&self) -> bool {
        self.control.is_some()
    }

    /// The connections of a class.
    pub(crate) fn peers(&self, class: Class) -> Option<&Peers> {
        match class {
            Class::Gossip => self.control.as_ref().map(Control::peers),
            Class::Calls => self.app.as_ref().map(|app| &app.peers),
        }
    }

    /// What is remembered of callers.
    pub(crate) fn remembered(&self) -> Option<swimring::forwarder::Remembered> {
        self.app.as_ref().map(crate::calls::App::remembered)
    }

    /// What the host's clock shows.
    pub fn local(&self, world: Instant) -> Instant {
        self.clock.local(world)
    }

    /// When the host's clock shows `local`.
    pub fn world(&self, local: Instant) -> Instant {
        self.clock.world(local)
    }

    /// From now on the clock drifts by so many millionths.
    pub fn drift(&mut self, now: Instant, ppm: i32) {
        self.clock = Clock { world: now, local: self.local(now), ppm };
    }

    /// Starts a process with what `memory` leaves of the state directory.
    pub fn start(
        &mut self,
        now: Instant,
        spec: &WorldSpec,
        zone: char,
        memory: Memory,
        seeds: &[SocketAddr],
        rings: &Arc<Rings>,
    ) {
        assert!(self.control.is_none(), "one process a machine");
        self.disk = self.copied_disk(memory);
        self.life += 1;
        self.started = now;
        self.disk.boot += 1;
        let start = Start {
            cluster: self.home.cluster(),
            profile: Profile {
                name: self.name.clone(),
                gossip: self.address,
                calls: SocketAddr::new(self.address.ip(), self.address.port() + 1),
                zone: (spec.zones > 1).then(|| zone.to_string()),
                weight: self.weight,
                tags: Vec::new(),
            },
            boot: self.disk.boot,
            life: self.rng.next_u64(),
            seed: self.rng.next_u64(),
        };
        let settings = Settings { mesh_max: spec.mesh, ..Settings::preset(spec.preset) };
        let config = Config::new(settings).expect("a preset is valid with any mesh that a plan can say");
        let local = self.local(now);
        let mut control =
            Control::new(local, config, peers_config(Class::Gossip, spec.limits), start, self.home.fingerprint())
                .expect("the profile keeps its limits");
        let disk = self.disk.clone();
        control.command(local, |membership| {
            membership.remember_contacts(disk.contacts);
            membership.remember_fence(disk.fence);
        });
        control.command(local, |membership| membership.join(local, seeds));
        let record = control.membership().record();
        let publishing = Publishing::new(self.id, Placement { arcs_log2: spec.arcs }, Arc::clone(rings));
        let rng = self.rng.fork(u64::from(self.life));
        let (me, peer) = (record.instance(), record.peer());
        self.app = Some(crate::calls::App::new(me, peer, self.home, publishing, spec.limits, rng));
        self.control = Some(control);
        (self.paused, self.blocked, self.slow, self.armed) = (false, false, 1, None);
        (self.leaving, self.returns, self.closed) = (false, false, false);
        (self.still_since, self.is_unsure) = (None, false);
        self.inbox.clear();
        self.busy_until = now;
    }

    /// The process ends without a word. Its state directory is as it was stored last.
    pub fn kill(&mut self) {
        if let Some(control) = self.control.take() {
            let contacts = control.membership().contacts().take(64).collect();
            let older = std::mem::replace(&mut self.disk.contacts, contacts);
            // The stale copy is what the directory held one life earlier.
            self.stale_disk = Disk { boot: self.disk.boot.saturating_sub(1), fence: 0, contacts: older };
        }
        self.app = None;
        (self.paused, self.blocked, self.armed) = (false, false, None);
        self.inbox.clear();
    }

    /// Whether it neither sends nor takes anything.
    pub fn stands_still(&self) -> bool {
        self.paused || self.blocked
    }

    /// Whether there is room for an input that has to wait: the system drops what is too much.
    pub(crate) fn has_room_for(&self, input: &Input) -> bool {
        self.inbox.len() < INBOX_MAX || !matches!(input, Input::Packet { .. } | Input::Message(..))
    }

    /// Keeps an input that cannot be handled now, if there is room.
    pub(crate) fn wait(&mut self, input: Input) {
        if self.has_room_for(&input) {
            self.inbox.push_back(input);
        }
    }

    /// Counts the work of one input.
    pub fn work(&mut self, now: Instant) {
        self.busy_until = self.busy_until.max(now) + SERVICE * self.slow;
    }
}
