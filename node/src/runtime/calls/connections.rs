//! The connections of the data plane: dialling, greeting, adopting, forgetting.

use swimring_forwarder::Repeat;
use tokio::time::MissedTickBehavior;

use super::super::endpoint::{Established, GREETINGS_MAX, close_code};
use super::streams::{keep_lane, open_lanes, receive_large, send_large};
use super::*;
use crate::core::hello::{Answer, Class, Hello, Refusal as HelloRefusal};
use crate::core::peers::{Command, Goodbye, PeersEvent, Route, Target};

/// How often the clocks of connected processes are compared, and what is not needed any more is dropped.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

impl Calls {
    pub(super) fn connect(self: &Arc<Self>, to: Instance) {
        let view = self.view();
        let address = view.member(to.node).map(|member| (member.record.peer(), member.record.profile().calls));
        let Some((peer, calls)) = address else {
            return self.give_back(to, Unsent::Unreachable);
        };
        let route = {
            // Held until it is noted who waits: the dial may end at any moment.
            let mut waiting = self.waiting.lock();
            let route = self.lock_peers().route_to_process(self.clock.now(), peer, calls, to.life);
            if self.link(to).lock().is_connected() {
                return;
            }
            if route == Route::Dialling {
                let waiting = waiting.entry(peer).or_default();
                if !waiting.contains(&to) {
                    waiting.push(to);
                }
            }
            route
        };
        // With a connection, and the link not on it: it has said goodbye.
        if matches!(route, Route::Connected(_) | Route::Unreachable | Route::Refused) {
            self.give_back(to, Unsent::Unreachable);
        }
        self.settle();
    }

    pub(super) fn give_back(&self, to: Instance, why: Unsent) {
        let back = self.link(to).lock().give_back(why);
        for (token, proof) in back {
            let _ = token.send(Report::Unsent(proof));
        }
    }

    /// Does what the connections want.
    fn settle(self: &Arc<Self>) {
        loop {
            let command = self.lock_peers().poll_command();
            let Some(command) = command else { break };
            match command {
                Command::Dial { dial, address, expect } => {
                    let calls = Arc::clone(self);
                    // Held until it is noted: it may end at once.
                    let mut dials = self.dials.lock();
                    let task = self.tracker.spawn(async move { calls.dial(dial, address, expect).await });
                    dials.insert(dial, task.abort_handle());
                }
                Command::Abort { dial } => {
                    let task = self.dials.lock().remove(&dial);
                    if let Some(task) = task {
                        metrics::dial_failed(Class::Calls, "silent");
                        task.abort();
                    }
                }
                Command::Close { conn, why } => {
                    if let Some((_, (connection, _))) = self.conns.remove(&conn) {
                        connection.close(close_code(why), b"");
                    }
                }
            }
        }
        loop {
            let event = self.lock_peers().poll_event();
            let Some(event) = event else { break };
            match event {
                PeersEvent::Failed { target: Target::Peer(peer, _), why, wait } => {
                    tracing::debug!(address = %peer.address, why, ?wait, "cannot connect for calls");
                    self.end_wait(&peer, None, Unsent::Unreachable);
                }
                // What answered there may say that it is at another address.
                PeersEvent::Up { dialled: Some(Target::Peer(peer, _)), .. } => {
                    self.end_wait(&peer, None, Unsent::Replaced);
                }
                _ => {}
            }
        }
        self.timers.notify_one();
    }

    /// The dial of a peer has ended: whoever waits for another process than the one that is there waits in vain.
    fn end_wait(&self, peer: &Peer, there: Option<Instance>, why: Unsent) {
        let waiting = self.waiting.lock().remove(peer).unwrap_or_default();
        waiting.into_iter().filter(|to| Some(*to) != there && !self.link(*to).lock().is_connected()).for_each(|to| {
            self.give_back(to, why);
        });
    }

    fn hello(&self) -> Hello {
        let clock = self.clock.now().as_nanos();
        Hello {
            class: Class::Calls,
            peer: self.peer,
            life: self.me.life,
            fingerprint: self.fingerprint,
            clock,
            anew: false,
        }
    }

    async fn dial(self: Arc<Self>, dial: DialId, address: SocketAddr, expect: Option<NodeId>) {
        let hello = Hello { anew: self.lock_peers().is_anew(dial), ..self.hello() };
        let result = self.port.dial(address, expect, hello).await;
        let now = self.clock.now();
        self.dials.lock().remove(&dial);
        match result {
            Ok(established) => {
                let certified = super::super::tls::certified(&established.connection).ok_or(HelloRefusal::Identity);
                let judged = certified
                    .and_then(|node| self.lock_peers().judge(now, &established.hello, node, &self.fingerprint));
                match judged {
                    Ok(()) => {
                        self.adopt(established, |peers, id, hello| peers.handle_dialled(now, dial, id, hello));
                    }
                    Err(refusal) => {
                        metrics::dial_refused(Class::Calls, refusal);
                        self.lock_peers().handle_dial_failed(now, dial, refusal.to_string());
                    }
                }
            }
            Err(problem) => {
                metrics::dial_failed(Class::Calls, metrics::dial_reason(&problem));
                self.lock_peers().handle_dial_failed(now, dial, problem.explain());
            }
        }
        self.settle();
    }

    /// A connection stands: its link writes and reads on it.
    fn adopt(self: &Arc<Self>, established: Established, register: impl FnOnce(&mut Peers, ConnId, &Hello)) {
        let Established { id, connection, send, recv, hello, asked } = established;
        let instance = Instance { node: hello.peer.id, life: hello.life };
        let link = self.link(instance);
        self.conns.insert(id, (connection.clone(), instance));
        let writers = Arc::new(Writers::default());
        link.writers.lock().push((id, Arc::clone(&writers)));
        let stands = {
            let mut peers = self.lock_peers();
            register(&mut peers, id, &hello);
            let mut held = link.lock();
            let stands = peers.peer(id).is_some();
            if stands {
                held.connected(self.clock.now(), id, asked, hello.clock());
            }
            held.prefer(peers.connection(hello.peer));
            stands
        };
        if !stands {
            // It is closed at once, and nothing on it is looked at.
            return link.writers.lock().retain(|(other, _)| *other != id);
        }
        link.wake();
        let peer = hello.peer;
        self.end_wait(&peer, Some(instance), Unsent::Replaced);
        let lane = Lane { calls: Arc::clone(self), link, conn: id, from: instance, writers, connection };
        self.spawn(send_large(lane.clone()));
        self.spawn(receive_large(lane.clone()));
        self.spawn(open_lanes(lane.clone(), asked.is_some()));
        let calls = Arc::clone(self);
        self.tracker.spawn(async move {
            tokio::select! {
                () = keep_lane(&lane, send, recv) => {}
                _ = lane.connection.closed() => {}
                () = calls.ending.cancelled() => {}
            }
            lane.connection.close(close_code(Goodbye::Gone), b"");
            calls.on_closed(id, peer, &lane.link);
        });
    }

    fn on_closed(self: &Arc<Self>, conn: ConnId, peer: Peer, link: &PeerLink) {
        self.conns.remove(&conn);
        link.writers.lock().retain(|(id, _)| *id != conn);
        let cut = {
            let mut peers = self.lock_peers();
            peers.handle_closed(conn);
            let mut held = link.lock();
            let cut = held.closed(self.clock.now(), conn, Unsent::Unreachable);
            // Of what is left, the one that the peer keeps as well.
            held.prefer(peers.connection(peer));
            cut
        };
        link.wake();
        link.room.notify_waiters();
        PeerLink::report(cut, || Report::Lost);
        self.settle();
    }

    /// Closes a connection on which nothing comes; what is under way on it is lost.
    pub(super) fn give_up(self: &Arc<Self>, link: &PeerLink, silent: ConnId) {
        if self.lock_peers().give_up(silent) {
            let node = link.lock().to().node;
            tracing::info!(%node, "gives a connection for calls up: nothing has come on it for long");
            metrics::given_up();
            self.settle();
        }
    }

    /// The processes that are connected here and gone by this view.
    pub(crate) fn gone(&self, view: &View) -> Vec<Gone> {
        let peers = self.lock_peers();
        let gone = peers.connections().filter_map(|(_, peer, life)| {
            let instance = Instance { node: peer.id, life };
            let member = view.member(instance.node)?;
            // A process that the view does not know yet may be the next one of its name.
            let over = !member.state.is_present() && member.record.life() == instance.life;
            over.then_some(Gone { peer, instance, state: member.state })
        });
        gone.collect()
    }

    /// A process is gone: so are its connections, and what waits for it.
    pub(crate) fn forget(self: &Arc<Self>, peer: Peer, life: u64) {
        self.lock_peers().forget(peer, life, Goodbye::Gone);
        self.settle();
    }

    /// Compares clocks, for they drift; and drops what belongs to processes that are gone for good.
    fn keep_house(self: &Arc<Self>) {
        let (now, view) = (self.clock.now(), self.view());
        let links: Vec<_> = self.links.iter().map(|link| (*link.key(), Arc::clone(link.value()))).collect();
        for (instance, link) in links {
            if link.lock().is_connected() {
                link.queue(|link| link.keep_clock(now));
                let due = link.lock().earliest();
                due.into_iter().for_each(|due| self.look_by(due.as_nanos()));
            }
            // Held by the table and by this loop alone: nothing runs for it, and no connection is about to be its.
            let unused = |_: &Instance, link: &Arc<PeerLink>| Arc::strong_count(link) <= 2 && link.lock().is_idle();
            if !view.may_return(instance) && self.links.remove_if(&instance, unused).is_some() {
                self.lock_admission().forget(instance);
            }
        }
        self.settle();
    }
}

/// Greets whoever dials.
pub(super) async fn accept(calls: Arc<Calls>) {
    let greetings = Arc::new(Semaphore::new(GREETINGS_MAX));
    while let Some((incoming, place)) = calls.port.accept(&greetings).await {
        let calls_here = Arc::clone(&calls);
        calls.spawn(async move {
            let _place = place;
            let address = incoming.remote_address();
            let (mut established, node) = match Port::greet(incoming).await {
                Ok(greeted) => greeted,
                Err(problem) => {
                    metrics::handshake_refused(Class::Calls, &problem);
                    if calls_here.port.is_new(address, &metrics::dial_reason(&problem)) {
                        tracing::warn!(%address, %problem, "refused a handshake for calls");
                    }
                    return;
                }
            };
            let now = calls_here.clock.now();
            let judged = calls_here.lock_peers().judge(now, &established.hello, node, &calls_here.fingerprint);
            if let Err(refusal) = judged {
                metrics::hello_refused(Class::Calls, refusal);
                if calls_here.port.is_new(address, &refusal) {
                    tracing::warn!(%address, %refusal, "refused a connection for calls");
                }
                return established.answer(&Answer::Refused(refusal)).await;
            }
            established.answer(&Answer::Welcome(calls_here.hello())).await;
            let now = calls_here.clock.now();
            calls_here.adopt(established, |peers, id, hello| peers.handle_accepted(now, id, hello));
            calls_here.settle();
        });
    }
}

/// Does what is due.
pub(super) async fn keep_time(calls: Arc<Calls>) {
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    let mut observe = tokio::time::interval(metrics::OBSERVE_EVERY);
    // Whoever stood still makes up for nothing.
    for ticks in [&mut housekeeping, &mut observe] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        let next = calls.lock_peers().poll_timeout();
        tokio::select! {
            _ = housekeeping.tick() => calls.keep_house(),
            () = calls.clock.wait_for(next) => {
                calls.lock_peers().handle_timeout(calls.clock.now());
                calls.settle();
            }
            () = calls.timers.notified() => {}
            _ = observe.tick() => {
                metrics::observe_success(calls.succeeded());
                let (stats, running, remembered) = {
                    let admission = calls.lock_admission();
                    (admission.stats(), admission.running(), admission.remembered())
                };
                metrics::observe_admission(&stats, running, remembered);
                metrics::observe_repeats_left(calls.lock_budget().left(Repeat::Trouble));
                metrics::observe_connections(Class::Calls, calls.lock_peers().len());
                let links: Vec<Arc<PeerLink>> = calls.links.iter().map(|link| Arc::clone(link.value())).collect();
                metrics::observe_breakers_open(links.iter().filter(|link| link.lock().is_broken()).count());
            }
        }
    }
}

/// Ends what is late.
pub(super) async fn keep_deadlines(calls: Arc<Calls>) {
    loop {
        let next = calls.earliest.load(Ordering::Acquire);
        tokio::select! {
            () = calls.clock.wait_for((next < u64::MAX).then_some(Instant::from_nanos(next))) => calls.expire(),
            () = calls.earlier.notified() => {}
        }
    }
}

/// What the tasks of a connection share.
#[derive(Clone)]
pub(super) struct Lane {
    pub(super) calls: Arc<Calls>,
    pub(super) link: Arc<PeerLink>,
    pub(super) conn: ConnId,
    /// Who is at the other end.
    pub(super) from: Instance,
    pub(super) writers: Arc<Writers>,
    pub(super) connection: Connection,
}
