//! The gossip thread: one driver that pumps [`Control`] over its own endpoint and publishes the view.
//!
//! It has a thread and a runtime of its own, so that an application that blocks its workers does not keep a
//! probe waiting. Decides nothing.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quinn::Connection;
use swimring_membership::codec::BODY_BYTES_MAX;
use swimring_membership::wire::ENVELOPE_BYTES;
use swimring_membership::{Delivery, Event, InvalidProfile, NodeId, Peer, Phase, Profile, State};
use swimring_ring::Placement;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use super::endpoint::{Established, GREETINGS_MAX, Port, TransportKeys, close_code};
use super::metrics;
use super::publisher::{self, Behind, Publication, Published};
use super::pulse::{BEAT_EVERY, Pulse};
use super::state::State as StateDirectory;
use super::system::{Clock, Socket, System};
use super::tls::{DATAGRAM_BYTES_MAX, Tls};
use crate::core::control::{Control, ControlEvent};
use crate::core::hello::{Answer, Class, Hello, Refusal};
use crate::core::peers::{Command, ConnId, DialId, PeersEvent, Target};
use crate::core::publishing::Publishing;
use crate::core::view::{Rings, View};

use self::tasks::{accept, dial_task, receive, send_stream};

mod tasks;

/// Most inputs of one turn before the outputs are taken: bounds how stale they get.
const TURN_MAX: usize = 64;
/// Most inputs that wait for the driver; senders then wait, and QUIC's flow control with them.
const INBOX: usize = 4_096;
/// Most messages on their way by stream on one connection: as many as the other end allows.
const STREAMS_MAX: usize = 16;
/// More bytes of datagrams than these do not wait on one connection: what cannot leave is no probe.
const DATAGRAM_BYTES_WAITING: usize = 16 << 10;
/// Most messages that wait on one connection for their turn to go by stream: a list of every member in parts.
const STREAMS_WAITING_MAX: usize = 1_536;
/// How long a message may take by stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(10);
/// How often what was said of failed dials is forgotten.
const WARN_AGAIN_EVERY: Duration = Duration::from_secs(600);
/// Most targets of whose failures something is said meanwhile, and how many different things of each; all are counted.
const WARNED_MAX: usize = 1_024;
const REASONS_MAX: usize = 4;
/// How often contacts are stored.
const STORE_EVERY: Duration = Duration::from_secs(10);
/// Most events that a slow listener may be behind.
const EVENTS: usize = 1_024;

/// What the driver is told.
pub(crate) enum Input {
    Message(ConnId, Vec<u8>),
    /// Somebody dialled, and takes a place among the greeted until it has its answer.
    Greeted(Box<Established>, NodeId, OwnedSemaphorePermit),
    Dialled(DialId, Box<Established>),
    DialFailed(DialId, String),
    Oneself(DialId),
    Closed(ConnId),
    StreamDone(ConnId),
    /// The application wants something.
    Ask(Ask),
}

/// What the application may want of the control plane.
pub(crate) enum Ask {
    /// A record that another node gave as its reason; answered once it is in the view.
    Merge(NodeId, Vec<u8>, oneshot::Sender<()>),
    /// Answered once the view has everything that is known now.
    Publish(oneshot::Sender<()>),
    Seeds(Vec<SocketAddr>),
    /// Take no keys any more; answered once the published view says so.
    Drain(oneshot::Sender<()>),
    Profile(Box<dyn FnOnce(&mut Profile) + Send>, oneshot::Sender<ProfileChanged>),
    /// Say goodbye; answered when it is on its way.
    Leave(oneshot::Sender<()>),
    /// End without a word.
    Close,
}

/// What came of a change of the profile, or the panic that it ended with.
pub(crate) type ProfileChanged = std::thread::Result<Result<(), InvalidProfile>>;

/// The application's side of the gossip thread.
pub(crate) struct Gossip {
    pub(crate) inbox: mpsc::Sender<Input>,
    pub(crate) published: Published,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) address: SocketAddr,
}

/// Everything that the thread starts with.
pub(crate) struct GossipStart {
    pub(crate) control: Control,
    pub(crate) state: StateDirectory,
    pub(crate) tls: Tls,
    pub(crate) system: Arc<dyn System>,
    pub(crate) socket: Socket,
    pub(crate) keys: TransportKeys,
    pub(crate) placement: Placement,
    pub(crate) address: SocketAddr,
}

/// Starts the thread.
pub(crate) fn start(start: GossipStart) -> io::Result<Gossip> {
    let rings = Arc::new(Rings::default());
    let membership = start.control.membership();
    let first = View::of(membership, start.placement, &rings);
    let publishing = Publishing::new(membership.id(), start.placement, rings);
    let (publisher, published) = publisher::start(first)?;
    let (inbox, inputs) = mpsc::channel(INBOX);
    let pulse = Arc::new(Pulse::default());
    let (events, _) = broadcast::channel(EVENTS);
    let behind = Arc::clone(&published.behind);
    let gossip = Gossip {
        inbox: inbox.clone(),
        published,
        pulse: Arc::clone(&pulse),
        events: events.clone(),
        address: start.address,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let port = {
        let _within = runtime.enter();
        Port::open(Class::Gossip, start.socket, &start.system, start.tls, start.keys)?
    };
    let driver = Driver {
        control: start.control,
        state: start.state,
        clock: Clock::new(start.system),
        port,
        inbox: inbox.downgrade(),
        conns: HashMap::new(),
        dials: HashMap::new(),
        publishing,
        publisher,
        behind,
        merged: Vec::new(),
        pulse,
        draining: false,
        events,
        warned: HashMap::new(),
    };
    std::thread::Builder::new().name("swimring-gossip".into()).spawn(move || runtime.block_on(driver.run(inputs)))?;
    Ok(gossip)
}

/// A connection, and what goes out on it by stream.
struct Conn {
    connection: Connection,
    task: AbortHandle,
    streams: usize,
    waiting: VecDeque<Vec<u8>>,
}

struct Driver {
    control: Control,
    state: StateDirectory,
    clock: Clock,
    port: Port,
    /// Its own: it must not keep itself alive.
    inbox: mpsc::WeakSender<Input>,
    conns: HashMap<ConnId, Conn>,
    dials: HashMap<DialId, AbortHandle>,
    publishing: Publishing,
    publisher: std::sync::mpsc::Sender<Publication>,
    behind: Behind,
    /// Who waits for a record to be in the published view.
    merged: Vec<oneshot::Sender<()>>,
    pulse: Arc<Pulse>,
    /// The application wants to leave: being in the cluster is no reason to take keys.
    draining: bool,
    events: broadcast::Sender<Event>,
    /// What was said of targets, so that it is said once; forgotten now and then.
    warned: HashMap<Target, Vec<String>>,
}

impl Driver {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let accepting = tokio::spawn(accept(self.port.clone(), self.inbox.clone()));
        let mut store = tokio::time::interval(STORE_EVERY);
        let mut forget = tokio::time::interval(WARN_AGAIN_EVERY);
        let mut observe = tokio::time::interval(metrics::OBSERVE_EVERY);
        let mut beat = tokio::time::interval(BEAT_EVERY);
        // Whoever stood still makes up for nothing.
        for ticks in [&mut observe, &mut beat] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        self.settle();
        loop {
            let deadline = self.control.poll_timeout();
            let going = tokio::select! {
                biased;
                () = self.clock.wait_for(deadline) => {
                    self.control.handle_timeout(self.clock.now());
                    true
                }
                input = inputs.recv() => self.turn(input, &mut inputs),
                _ = store.tick() => {
                    self.store_contacts();
                    true
                }
                _ = beat.tick() => true,
                _ = forget.tick() => {
                    self.warned.clear();
                    true
                }
                _ = observe.tick() => {
                    let membership = self.control.membership();
                    metrics::observe_membership(&membership.stats(), membership.roster());
                    metrics::observe_waiting(self.control.waiting().map(|(_, messages)| messages).sum());
                    metrics::observe_connections(Class::Gossip, self.control.peers().len());
                    true
                }
            };
            self.settle();
            if !going {
                break;
            }
        }
        accepting.abort();
        self.store_contacts();
        self.control.close();
        self.settle();
        self.port.close().await;
        // Whoever waits for the end finds everything stored.
        drop(self);
        drop(inputs);
    }

    /// Handles an input and what else waits, but not for too long. False: it is over.
    fn turn(&mut self, first: Option<Input>, inputs: &mut mpsc::Receiver<Input>) -> bool {
        let Some(mut input) = first else { return false };
        for _ in 0..TURN_MAX {
            if !self.handle(input) {
                return false;
            }
            match inputs.try_recv() {
                Ok(next) => input = next,
                Err(_) => break,
            }
        }
        true
    }

    fn handle(&mut self, input: Input) -> bool {
        let now = self.clock.now();
        match input {
            Input::Message(conn, bytes) => {
                if let Err(problem) = self.control.handle_message(now, conn, &bytes) {
                    metrics::malformed(Class::Gossip);
                    let address = self.conns.get(&conn).map(|conn| conn.connection.remote_address());
                    if let Some(address) = address.filter(|address| self.port.is_new(*address, &problem)) {
                        tracing::warn!(%address, %problem, "closed a connection whose bytes are no message");
                    }
                }
            }
            Input::Greeted(established, node, place) => self.on_greeted(*established, node, place),
            Input::Dialled(dial, established) => self.on_dialled(dial, *established),
            Input::DialFailed(dial, why) => {
                self.dials.remove(&dial);
                self.control.handle_dial_failed(now, dial, why);
            }
            Input::Oneself(dial) => {
                self.dials.remove(&dial);
                self.control.handle_oneself(now, dial);
            }
            Input::Closed(conn) => {
                self.conns.remove(&conn);
                self.control.handle_closed(now, conn);
            }
            Input::StreamDone(id) => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.streams -= 1;
                }
                self.start_streams(id);
            }
            Input::Ask(ask) => return self.on_ask(ask),
        }
        true
    }

    fn on_ask(&mut self, ask: Ask) -> bool {
        let now = self.clock.now();
        match ask {
            Ask::Merge(from, record, done) => {
                if let Err(problem) =
                    self.control.command(now, |membership| membership.merge_record(now, from, &record))
                {
                    metrics::malformed_record();
                    if self.port.is_news(&from, &problem) {
                        tracing::warn!(%problem, node = %from, "a node gave as its reason what is no member record");
                    }
                }
                self.merged.push(done);
            }
            Ask::Publish(done) => self.merged.push(done),
            Ask::Seeds(seeds) => self.control.command(now, |membership| membership.join(now, &seeds)),
            Ask::Drain(done) => {
                self.draining = true;
                self.control.command(now, |membership| membership.set_phase(now, Phase::Draining));
                self.merged.push(done);
            }
            Ask::Profile(change, done) => {
                // What an application gives may panic: nothing has changed then, and the node goes on.
                let state = || self.control.command(now, |membership| membership.update_profile(now, change));
                let _ = done.send(catch_unwind(AssertUnwindSafe(state)));
            }
            Ask::Leave(done) => {
                self.control.command(now, |membership| membership.leave(now));
                self.settle();
                let _ = done.send(());
            }
            Ask::Close => return false,
        }
        true
    }

    fn on_greeted(&mut self, established: Established, node: NodeId, place: OwnedSemaphorePermit) {
        let now = self.clock.now();
        if let Err(refusal) = self.control.judge(self.clock.now(), &established.hello, node) {
            metrics::hello_refused(Class::Gossip, refusal);
            let address = established.connection.remote_address();
            if refusal != Refusal::Oneself && self.port.is_new(address, &refusal) {
                tracing::warn!(%address, %refusal, "refused a connection");
            }
            tokio::spawn(async move {
                let _place = place;
                let mut established = established;
                established.answer(&Answer::Refused(refusal)).await;
            });
            return;
        }
        let hello = established.hello;
        let id = established.id;
        let welcome = Answer::Welcome(self.control.hello(now));
        self.adopt(established, Some(welcome));
        self.control.handle_accepted(now, id, &hello);
    }

    fn on_dialled(&mut self, dial: DialId, established: Established) {
        let now = self.clock.now();
        self.dials.remove(&dial);
        let certified = super::tls::certified(&established.connection);
        let judged =
            certified.ok_or(Refusal::Identity).and_then(|node| self.control.judge(now, &established.hello, node));
        match judged {
            Ok(()) => {
                let (hello, id) = (established.hello, established.id);
                self.adopt(established, None);
                self.control.handle_dialled(now, dial, id, &hello);
            }
            Err(Refusal::Oneself) => self.control.handle_oneself(now, dial),
            Err(refusal) => {
                metrics::dial_refused(Class::Gossip, refusal);
                self.control.handle_dial_failed(now, dial, refusal.to_string());
            }
        }
    }

    fn adopt(&mut self, established: Established, answer: Option<Answer>) {
        let (id, connection) = (established.id, established.connection.clone());
        let task = tokio::spawn(receive(established, answer, self.inbox.clone()));
        let task = task.abort_handle();
        self.conns.insert(id, Conn { connection, task, streams: 0, waiting: VecDeque::new() });
    }

    /// Does everything that is due and that the control plane wants, and publishes what changed.
    fn settle(&mut self) {
        // Whatever woke this thread, it may have stood still before: that is noticed first, and by the same moment
        // that is said to hold.
        let now = self.clock.now();
        self.control.handle_timeout(now);
        // What others are about to hear of this node, its own calls go by already.
        self.take_events();
        self.publish();
        loop {
            let mut idle = true;
            while let Some(command) = self.control.poll_command() {
                idle = false;
                self.command(command);
            }
            idle &= !self.transmit();
            idle &= !self.take_events();
            if idle {
                break;
            }
        }
        let membership = self.control.membership();
        let confirmed_for = membership.is_confirmed().then(|| membership.stall_limit());
        self.pulse.beat(now, confirmed_for);
        self.publish();
    }

    /// Handles what became true; false if nothing did.
    fn take_events(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.control.poll_event() {
            any = true;
            self.on_event(event);
        }
        any
    }

    fn publish(&mut self) {
        let waiting = std::mem::take(&mut self.merged);
        let edition = self.publishing.next(self.clock.now(), &mut self.control);
        // What is stored is ahead of it: the next life begins above every fence of this one.
        self.state.store_fence(self.control.membership().fence());
        if edition.is_some() {
            self.behind.fetch_add(1, Ordering::AcqRel);
        }
        let has_news = edition.is_some() || !waiting.is_empty();
        if has_news && self.publisher.send(Publication { edition, waiting }).is_err() {
            tracing::error!("the thread that publishes views has ended: this node goes by an old view");
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Dial { dial, address, expect } => {
                let (port, inbox, anew) = (self.port.clone(), self.inbox.clone(), self.control.peers().is_anew(dial));
                let hello = Hello { anew, ..self.control.hello(self.clock.now()) };
                let task = tokio::spawn(dial_task(port, inbox, dial, address, expect, hello));
                self.dials.insert(dial, task.abort_handle());
            }
            Command::Abort { dial } => {
                if let Some(task) = self.dials.remove(&dial) {
                    if !self.control.peers().is_closing() {
                        metrics::dial_failed(Class::Gossip, "silent");
                    }
                    task.abort();
                }
            }
            Command::Close { conn, why } => {
                if let Some(conn) = self.conns.remove(&conn) {
                    conn.connection.close(close_code(why), b"");
                    conn.task.abort();
                }
            }
        }
    }

    /// Sends one message; false if there was none.
    fn transmit(&mut self) -> bool {
        let mut bytes = Vec::new();
        let Some(sending) = self.control.poll_transmit(self.clock.now(), &mut bytes) else {
            return false;
        };
        let sent = match (self.conns.get_mut(&sending.conn), sending.delivery) {
            (Some(conn), Delivery::Datagram) => {
                let waiting = DATAGRAM_BYTES_MAX.saturating_sub(conn.connection.datagram_send_buffer_space());
                waiting <= DATAGRAM_BYTES_WAITING && conn.connection.send_datagram(bytes.into()).is_ok()
            }
            (Some(conn), Delivery::Stream) if conn.waiting.len() < STREAMS_WAITING_MAX => {
                conn.waiting.push_back(bytes);
                self.start_streams(sending.conn);
                true
            }
            _ => false,
        };
        if !sent {
            self.control.handle_unsent(&sending);
        }
        true
    }

    /// Messages that go by stream have as many of them on a connection as its other end allows: whoever allows none
    /// holds up only its own.
    fn start_streams(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        while conn.streams < STREAMS_MAX
            && let Some(bytes) = conn.waiting.pop_front()
        {
            conn.streams += 1;
            tokio::spawn(send_stream(conn.connection.clone(), id, bytes, self.inbox.clone()));
        }
    }

    fn on_event(&mut self, event: ControlEvent) {
        match event {
            ControlEvent::Membership(event) => {
                self.publishing.note(self.control.membership(), &event);
                self.on_membership_event(&event);
                let _ = self.events.send(event);
            }
            ControlEvent::Peers(PeersEvent::Failed { target, why, .. }) => self.warn_once(target, why),
            ControlEvent::Peers(PeersEvent::Oneself { address }) => {
                metrics::finding("seed_is_oneself");
                if self.port.is_new(address, &"oneself") {
                    tracing::warn!(%address, "this seed is the node itself");
                }
            }
            ControlEvent::Peers(PeersEvent::Up { dialled, .. }) => {
                if let Some(target) = dialled {
                    self.warned.remove(&target);
                }
            }
            ControlEvent::Peers(PeersEvent::Down { .. }) => {}
        }
    }

    fn on_membership_event(&mut self, event: &Event) {
        match event {
            Event::Changed { id, before, state, .. } => {
                self.say_changed(*id, before.map(|(state, _)| state), *state);
            }
            Event::Rebooted { boot } => {
                metrics::finding("boot_raised");
                if self.port.is_news(&"this node", &"boot") {
                    tracing::warn!(
                        boot,
                        "the cluster remembers more lives of this name than the state directory: the boot was raised"
                    );
                }
                self.state.store_boot(*boot);
            }
            Event::JoinRetrying { attempts, wait } => {
                tracing::warn!(attempts, wait_ms = wait.as_millis() as u64, "no seed has answered; trying again");
            }
            Event::Stalled { stall } => {
                tracing::warn!(
                    stall_ms = stall.as_millis() as u64,
                    "this process stood still; it runs no call of others until it is confirmed"
                );
            }
            Event::Confirmed => tracing::info!("a peer has confirmed this process"),
            Event::NameTaken { holder } => {
                tracing::error!(holder = %holder.address, "another live process has this name")
            }
            Event::Superseded { by } => {
                tracing::error!(%by, "a newer process has this name: giving up the keys")
            }
            Event::Joined => {
                tracing::info!("joined");
                if !self.draining {
                    let now = self.clock.now();
                    self.control.command(now, |membership| membership.set_phase(now, Phase::Ready));
                }
            }
            other => tracing::debug!(event = ?other),
        }
    }

    /// Who comes and who goes is what an operator looks for first.
    fn say_changed(&self, id: NodeId, before: Option<State>, state: State) {
        let membership = self.control.membership();
        // A newcomer learns of everybody at once, which is no news.
        let Some(member) = membership.member(id).filter(|_| membership.is_joined()) else { return };
        let (name, address) = (&member.record.profile().name, member.record.profile().gossip);
        let was_present = before.is_some_and(State::is_present);
        match state {
            State::Alive if !was_present => tracing::info!(%name, %address, "a member is here"),
            State::Down => tracing::warn!(%name, %address, "a member is down"),
            State::Left => tracing::info!(%name, %address, "a member has left"),
            State::Alive | State::Suspect => tracing::debug!(%name, ?state, "news of a member"),
        }
    }

    fn warn_once(&mut self, target: Target, why: String) {
        let address = match target {
            Target::Peer(peer, _) => peer.address,
            Target::Seed(address) => address,
        };
        if self.warned.len() >= WARNED_MAX && !self.warned.contains_key(&target) {
            return;
        }
        // The other end chooses some of the words.
        let said = self.warned.entry(target).or_default();
        if said.len() < REASONS_MAX && !said.contains(&why) {
            tracing::warn!(%address, why, "cannot connect; trying again");
            said.push(why);
        }
    }

    fn store_contacts(&mut self) {
        let contacts: Vec<Peer> = self.control.membership().contacts().collect();
        self.state.store_contacts(contacts.into_iter());
    }
}
