//! The owner's side: whether a call that another node sends runs here.
//!
//! Every rule that protects a caller is asked in one place and in one order. What was refused is remembered
//! too, so that no late double of it runs.

use alloc::collections::BTreeMap;

use swimring_membership::codec::Blob;
use swimring_membership::{Instance, Instant, NodeId};

use crate::call::HOPS_MAX;
use crate::pace::Pace;
use crate::window::Window;
use crate::wire::{CallHeader, Refusal};

/// How much a node takes on for others.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most calls of one peer under way.
    pub calls_of_peer_max: usize,
    /// Most calls under way.
    pub calls_max: usize,
    /// Most callers (processes) whose numbers are remembered.
    pub callers_max: usize,
    /// Longest body, in bytes.
    pub body_bytes_max: usize,
    /// Most bytes of bodies of one peer's calls under way.
    pub bytes_of_peer_max: usize,
    /// Most bytes of bodies under way.
    pub bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: usize = 1_024 * 1_024;
        Self {
            calls_of_peer_max: 4_096,
            calls_max: 65_536,
            callers_max: 65_536,
            body_bytes_max: 16 * MIB,
            bytes_of_peer_max: 128 * MIB,
            bytes_max: 1_024 * MIB,
        }
    }
}

/// What the receiver's own ring says of a call's key, for the members at which it may run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ownership {
    /// This node owns it, or is another one of those.
    Mine,
    /// Another one does, because of this record.
    Theirs(NodeId, Blob),
    /// Nobody does; or the call is for other members than the owner alone, and this is none of them.
    Nobody,
}

/// A call as it comes in.
#[derive(Copy, Clone, Debug)]
pub struct Incoming<'a> {
    /// Who sent it.
    pub caller: Instance,
    /// What it says.
    pub header: &'a CallHeader<'a>,
    /// Bytes of its body.
    pub body_bytes: usize,
}

/// A call that may run. Give it back with [`Admission::complete`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a permit that is not given back keeps its place for ever"]
pub struct Permit {
    caller: Instance,
    seq: u64,
    bytes: usize,
}

impl Permit {
    /// Who sent the call.
    pub fn caller(&self) -> Instance {
        self.caller
    }

    /// The attempt's number.
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

/// What to do with a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Run it.
    Run(Permit),
    /// Say no, with the owner and the record that decided so if there is one.
    Refuse(Refusal, Option<(NodeId, Blob)>),
    /// Say nothing: the number was seen before, and its answer is, or was, on its way; or nobody waits for one here.
    Ignore,
}

/// What was decided, since the start.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct AdmissionStats {
    /// Calls that ran.
    pub admitted: u64,
    /// Calls refused as another node's.
    pub not_owner: u64,
    /// Calls refused for the limits.
    pub overloaded: u64,
    /// Calls refused as too late.
    pub expired: u64,
    /// Calls refused because this process had stood still.
    pub unconfirmed: u64,
    /// Calls meant for an earlier process.
    pub wrong_process: u64,
    /// Doubles passed over.
    pub doubles: u64,
    /// Calls that break a limit.
    pub invalid: u64,
}

/// What is kept of callers.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Processes that have sent something and may send more.
    pub callers: usize,
    /// Runs of their numbers without a gap; each takes one entry.
    pub runs: usize,
}

#[derive(Clone, Debug, Default)]
struct Caller {
    window: Window,
    /// Calls of this process that run.
    running: usize,
}

/// Calls that run.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// How many.
    pub calls: usize,
    /// Bytes of their bodies.
    pub bytes: usize,
}

impl Running {
    fn add(&mut self, bytes: usize) {
        self.calls += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.calls -= 1;
        self.bytes -= bytes;
    }

    fn has_room(&self, bytes: usize, calls_max: usize, bytes_max: usize) -> bool {
        self.calls < calls_max && self.bytes + bytes <= bytes_max
    }
}

/// The calls that others send to this process.
#[derive(Clone, Debug)]
pub struct Admission {
    me: Instance,
    limits: Limits,
    callers: BTreeMap<Instance, Caller>,
    /// What the calls of each peer with a known caller take, whichever processes of it sent them: a peer can claim to be
    /// many.
    of_peers: BTreeMap<NodeId, Running>,
    running: Running,
    pace: Pace,
    leaving: bool,
    stats: AdmissionStats,
}

impl Admission {
    /// Nothing has been sent yet.
    pub fn new(me: Instance, limits: Limits) -> Self {
        Self {
            me,
            limits,
            callers: BTreeMap::new(),
            of_peers: BTreeMap::new(),
            running: Running::default(),
            pace: Pace::default(),
            leaving: false,
            stats: AdmissionStats::default(),
        }
    }

    /// From now on nothing more begins here, whoever it is for.
    pub fn leave(&mut self) {
        self.leaving = true;
    }

    /// Decides about a call. `confirmed`: this process knows that it is still the one that others mean.
    pub fn admit(
        &mut self,
        now: Instant,
        incoming: Incoming<'_>,
        confirmed: bool,
        ownership: impl FnOnce() -> Ownership,
    ) -> Verdict {
        let Incoming { caller, header, body_bytes } = incoming;
        if header.life != self.me.life {
            self.stats.wrong_process += 1;
            // Its caller has lost it with the connection to that process.
            return Verdict::Ignore;
        }
        let callers = self.callers.len();
        let known = self.callers.contains_key(&caller);
        if !known && callers >= self.limits.callers_max {
            self.stats.overloaded += 1;
            return Verdict::Ignore;
        }
        let held = self.callers.entry(caller).or_default();
        if !held.window.admit(header.seq, header.floor) {
            self.stats.doubles += 1;
            return Verdict::Ignore;
        }
        let of_peer = self.of_peers.get(&caller.node).copied().unwrap_or_default();
        if let Some(refusal) = self.refusal(now, &incoming, of_peer) {
            return Verdict::Refuse(refusal, None);
        }
        if let Err((why, owner)) = self.begin(now, header.latest(), confirmed, ownership) {
            return Verdict::Refuse(why, owner);
        }
        self.stats.admitted += 1;
        self.running.add(body_bytes);
        self.of_peers.entry(caller.node).or_default().add(body_bytes);
        if let Some(held) = self.callers.get_mut(&caller) {
            held.running += 1;
        }
        Verdict::Run(Permit { caller, seq: header.seq, bytes: body_bytes })
    }

    /// Asks, right before an admitted call begins, what may have changed since: its body can have taken a while.
    /// `latest` is the call's [`CallHeader::latest`].
    ///
    /// # Errors
    /// Why it must not begin any more, with the owner and the record that decided so if there is one.
    pub fn begin(
        &mut self,
        now: Instant,
        latest: Instant,
        confirmed: bool,
        ownership: impl FnOnce() -> Ownership,
    ) -> Result<(), (Refusal, Option<(NodeId, Blob)>)> {
        if now > latest {
            self.stats.expired += 1;
            return Err((Refusal::Expired, None));
        }
        if !confirmed {
            self.stats.unconfirmed += 1;
            return Err((Refusal::Unconfirmed, None));
        }
        let owner = match ownership() {
            Ownership::Mine if !self.leaving => return Ok(()),
            Ownership::Mine => None,
            Ownership::Theirs(owner, record) => Some((owner, record)),
            Ownership::Nobody => None,
        };
        self.stats.not_owner += 1;
        Err((Refusal::NotOwner, owner))
    }

    /// Whatever speaks against running it here, whoever owns its key.
    fn refusal(&mut self, now: Instant, incoming: &Incoming<'_>, of_peer: Running) -> Option<Refusal> {
        let header = incoming.header;
        if incoming.body_bytes > self.limits.body_bytes_max
            || header.hop == 0
            || header.hop > HOPS_MAX
            || header.key.0.is_empty()
        {
            self.stats.invalid += 1;
            Some(Refusal::Invalid)
        } else if !self.has_room(incoming.body_bytes, of_peer) {
            self.stats.overloaded += 1;
            Some(self.overloaded(now))
        } else {
            None
        }
    }

    /// The refusal of whoever finds no room: so soon a place becomes free of late.
    pub fn overloaded(&mut self, now: Instant) -> Refusal {
        Refusal::Overloaded { retry_after_ms: self.pace.refuse(now).as_millis() as u32 }
    }

    fn has_room(&self, bytes: usize, of_peer: Running) -> bool {
        let limits = &self.limits;
        of_peer.has_room(bytes, limits.calls_of_peer_max, limits.bytes_of_peer_max)
            && self.running.has_room(bytes, limits.calls_max, limits.bytes_max)
    }

    /// The caller does not wait any more for what it sent under this number: if that has not begun, it will not.
    pub fn cancel(&mut self, caller: Instance, seq: u64) {
        if self.callers.len() < self.limits.callers_max || self.callers.contains_key(&caller) {
            self.callers.entry(caller).or_default().window.admit(seq, 0);
        }
    }

    /// The handler has ended.
    pub fn complete(&mut self, now: Instant, permit: Permit) {
        self.running.remove(permit.bytes);
        self.pace.free(now);
        if let Some(of_peer) = self.of_peers.get_mut(&permit.caller.node) {
            of_peer.remove(permit.bytes);
        }
        if let Some(held) = self.callers.get_mut(&permit.caller) {
            held.running -= 1;
        }
    }

    /// The calls of others that run now.
    pub fn running(&self) -> Running {
        self.running
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// A caller's process is gone for good: no connection of it is left, and none will come.
    pub fn forget(&mut self, caller: Instance) {
        if self.callers.get(&caller).is_some_and(|held| held.running == 0) {
            self.callers.remove(&caller);
            let of_peer = Instance { life: 0, ..caller }..=Instance { life: u64::MAX, ..caller };
            if self.callers.range(of_peer).next().is_none() {
                self.of_peers.remove(&caller.node);
            }
        }
    }

    /// What is kept of callers, so that nothing of them runs twice.
    pub fn remembered(&self) -> Remembered {
        Remembered { callers: self.callers.len(), runs: self.callers.values().map(|held| held.window.runs()).sum() }
    }

    /// What was decided.
    pub fn stats(&self) -> AdmissionStats {
        self.stats
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use core::time::Duration;

    use swimring_membership::codec::Slice;

    use crate::wire::Scope;

    use super::*;

    const NOW: Instant = Instant::from_millis(1_000);
    const ME: Instance = Instance { node: NodeId::from_u128(1), life: 10 };
    const CALLER: Instance = Instance { node: NodeId::from_u128(2), life: 20 };

    fn header(seq: u64) -> CallHeader<'static> {
        CallHeader {
            seq,
            floor: 0,
            life: ME.life,
            deadline: NOW.as_nanos() + 1_000_000,
            error_us: 0,
            hop: 1,
            service: "kv",
            key: Slice(&[1]),
            record: None,
            scope: Scope::Owner,
            context: Slice(&[]),
        }
    }

    fn admission() -> Admission {
        let few = Limits { calls_of_peer_max: 2, calls_max: 3, callers_max: 8, ..Limits::default() };
        Admission::new(ME, Limits { body_bytes_max: 100, bytes_of_peer_max: 150, bytes_max: 200, ..few })
    }

    fn admit(admission: &mut Admission, header: &CallHeader<'_>) -> Verdict {
        let incoming = Incoming { caller: CALLER, header, body_bytes: 0 };
        admission.admit(NOW, incoming, true, || Ownership::Mine)
    }

    fn is_overloaded(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Refuse(Refusal::Overloaded { .. }, None))
    }

    fn refused(why: Refusal) -> Verdict {
        Verdict::Refuse(why, None)
    }

    #[test]
    fn a_number_runs_once_even_when_it_was_refused_the_first_time() {
        let mut admission = admission();
        assert!(matches!(admit(&mut admission, &header(1)), Verdict::Run(_)));
        assert_eq!(admit(&mut admission, &header(1)), Verdict::Ignore);
        let late = CallHeader { deadline: 0, ..header(2) };
        assert_eq!(admit(&mut admission, &late), refused(Refusal::Expired));
        assert_eq!(admit(&mut admission, &header(2)), Verdict::Ignore);
    }

    #[test]
    fn another_process_of_the_name_runs_nothing() {
        let mut admission = admission();
        assert_eq!(admit(&mut admission, &CallHeader { life: 9, ..header(1) }), Verdict::Ignore);
    }

    #[test]
    fn a_process_that_stood_still_runs_nothing_until_it_is_confirmed() {
        let mut admission = admission();
        let first = header(1);
        let incoming = Incoming { caller: CALLER, header: &first, body_bytes: 0 };
        let verdict = admission.admit(NOW, incoming, false, || Ownership::Mine);
        assert_eq!(verdict, refused(Refusal::Unconfirmed));
    }

    #[test]
    fn nothing_begins_after_the_deadline_and_the_error_of_the_clocks() {
        let mut admission = admission();
        let at = |seq, error_us| CallHeader { deadline: NOW.as_nanos() - 1_000, error_us, ..header(seq) };
        assert_eq!(admit(&mut admission, &at(1, 0)), refused(Refusal::Expired));
        assert!(matches!(admit(&mut admission, &at(2, 1)), Verdict::Run(_)));
    }

    #[test]
    fn whoever_is_not_the_owner_says_who_is_and_why() {
        let mut admission = admission();
        let (owner, record) = (NodeId::from_u128(7), Blob(vec![9]));
        let first = header(1);
        let incoming = Incoming { caller: CALLER, header: &first, body_bytes: 0 };
        let verdict = admission.admit(NOW, incoming, true, || Ownership::Theirs(owner, record.clone()));
        assert_eq!(verdict, Verdict::Refuse(Refusal::NotOwner, Some((owner, record))));
        let second = header(2);
        let incoming = Incoming { caller: CALLER, header: &second, body_bytes: 0 };
        assert_eq!(admission.admit(NOW, incoming, true, || Ownership::Nobody), refused(Refusal::NotOwner));
    }

    #[test]
    fn limits_hold_for_a_peer_and_for_the_node_and_places_come_back() {
        let mut admission = admission();
        let Verdict::Run(first) = admit(&mut admission, &header(1)) else { panic!("there is room") };
        let Verdict::Run(second) = admit(&mut admission, &header(2)) else { panic!("there is room") };
        assert!(is_overloaded(&admit(&mut admission, &header(3))));
        admission.complete(NOW, first);
        assert!(matches!(admit(&mut admission, &header(4)), Verdict::Run(_)));
        let fifth = header(5);
        let from = |caller| Incoming { caller, header: &fifth, body_bytes: 0 };
        let (next, other) = (Instance { life: 21, ..CALLER }, Instance { node: NodeId::from_u128(3), ..CALLER });
        let verdict = admission.admit(NOW, from(next), true, || Ownership::Mine);
        assert!(is_overloaded(&verdict), "another process of it is the same peer");
        assert!(matches!(admission.admit(NOW, from(other), true, || Ownership::Mine), Verdict::Run(_)));
        admission.complete(NOW, second);
        assert_eq!(admission.running().calls, 2);
    }

    #[test]
    fn a_peer_is_forgotten_with_its_last_process() {
        let mut admission = admission();
        let Verdict::Run(running) = admit(&mut admission, &header(1)) else { panic!("there is room") };
        let next = Instance { life: 21, ..CALLER };
        admission.cancel(next, 1);
        admission.forget(CALLER);
        admission.forget(next);
        assert_eq!((admission.remembered().callers, admission.of_peers.len()), (1, 1), "a call of it runs");
        admission.complete(NOW, running);
        admission.forget(CALLER);
        assert!(admission.callers.is_empty() && admission.of_peers.is_empty());
    }

    #[test]
    fn bytes_are_limited_for_a_peer_and_for_the_node_and_come_back() {
        let mut admission = admission();
        let sends = |admission: &mut Admission, node, seq| {
            let header = header(seq);
            let caller = Instance { node: NodeId::from_u128(node), life: 20 };
            let incoming = Incoming { caller, header: &header, body_bytes: 80 };
            admission.admit(NOW, incoming, true, || Ownership::Mine)
        };
        let Verdict::Run(first) = sends(&mut admission, 20, 1) else { panic!("there is room") };
        assert!(is_overloaded(&sends(&mut admission, 20, 2)), "of one peer");
        assert!(matches!(sends(&mut admission, 21, 1), Verdict::Run(_)));
        assert!(is_overloaded(&sends(&mut admission, 22, 1)), "of all");
        admission.complete(NOW, first);
        assert!(matches!(sends(&mut admission, 22, 2), Verdict::Run(_)));
    }

    #[test]
    fn what_changed_while_its_body_came_in_is_asked_again() {
        let mut admission = admission();
        let first = header(1);
        let Verdict::Run(_) = admit(&mut admission, &first) else { panic!("there is room") };
        let (owner, record) = (NodeId::from_u128(7), Blob(vec![9]));
        let late = NOW + Duration::from_secs(1);
        assert_eq!(admission.begin(NOW, first.latest(), true, || Ownership::Mine), Ok(()));
        assert_eq!(admission.begin(late, first.latest(), true, || Ownership::Mine), Err((Refusal::Expired, None)));
        assert_eq!(admission.begin(NOW, first.latest(), false, || Ownership::Mine), Err((Refusal::Unconfirmed, None)));
        let theirs = || Ownership::Theirs(owner, record.clone());
        let moved = Err((Refusal::NotOwner, Some((owner, record.clone()))));
        assert_eq!(admission.begin(NOW, first.latest(), true, theirs), moved);
    }

    #[test]
    fn what_was_cancelled_before_it_came_does_not_run() {
        let mut admission = admission();
        admission.cancel(CALLER, 1);
        assert_eq!(admit(&mut admission, &header(1)), Verdict::Ignore);
    }

    #[test]
    fn what_breaks_a_limit_is_refused() {
        let mut admission = admission();
        for (seq, bad) in
            [CallHeader { hop: 3, ..header(1) }, CallHeader { key: Slice(&[]), ..header(2) }].iter().enumerate()
        {
            assert_eq!(admit(&mut admission, bad), refused(Refusal::Invalid), "{seq}");
        }
        let big = header(3);
        let incoming = Incoming { caller: CALLER, header: &big, body_bytes: 101 };
        assert_eq!(admission.admit(NOW, incoming, true, || Ownership::Mine), refused(Refusal::Invalid));
    }
}
