//! The loops of a member: one that probes, one probe at a time, and one that gossips.

use std::time::Duration;

use swimring_membership::Instant;

use super::{Claim, Cluster, Event, Id, Kind, News, Packet};

/// The probe under way.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    seq: u32,
    target: Id,
    incarnation: u32,
    stage: Stage,
    timeout: Duration,
    ends: Instant,
    is_over: bool,
    nacks_due: usize,
    nacks: usize,
    tcp_answered: bool,
}

/// Where the loop stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// Before it sends the ping.
    Sending,
    /// It waits for an answer.
    Direct,
    /// Before it sends the requests to helpers.
    Asking,
    /// It waits for an answer, from wherever.
    Indirect,
}

/// Whom a helper helps.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    requester: Id,
    seq: u32,
    answered: bool,
}

/// The loop that gossips, if it stands before sending.
#[derive(Clone, Debug, Default)]
pub(super) struct Gossip {
    first: Option<(Id, Packet)>,
    rest: Vec<Id>,
}

impl Cluster {
    pub(super) fn on_probe_tick(&mut self, id: Id) {
        if self.members[id].probe.is_some() {
            self.members[id].tick_waits = true;
        } else {
            self.begin_probe(id);
        }
    }

    /// The next member of the round that is not dead; a pass ends with a shuffle, and forgets the long dead.
    fn next_target(&mut self, id: Id) -> Option<Id> {
        let (now, dead_for) = (self.now, Duration::from_secs(self.model.gossip_to_the_dead_s));
        for _ in 0..=self.members[id].order.len() {
            let member = &mut self.members[id];
            if member.next >= member.order.len() {
                let rows = &mut member.rows;
                member.order.retain(|other| {
                    let row = rows[*other].as_ref();
                    let gone = row.is_none_or(|row| row.claim == Claim::Dead && now.since(row.since) > dead_for);
                    if gone {
                        rows[*other] = None;
                    }
                    !gone
                });
                self.rng.shuffle(&mut member.order);
                member.next = 0;
            }
            let target = *member.order.get(member.next)?;
            member.next += 1;
            if member.rows[target].as_ref().is_some_and(|row| row.claim != Claim::Dead) {
                return Some(target);
            }
        }
        None
    }

    fn begin_probe(&mut self, id: Id) {
        let Some(target) = self.next_target(id) else { return };
        let scale = self.members[id].health + 1;
        let ends = self.now + self.model.interval() * scale;
        let timeout = Duration::from_millis(self.model.probe_timeout_ms) * scale;
        let member = &mut self.members[id];
        member.seq += 1;
        let seq = member.seq;
        let incarnation = member.rows[target].as_ref().map_or(0, |row| row.incarnation);
        member.probe = Some(Probe {
            seq,
            target,
            incarnation,
            stage: Stage::Sending,
            timeout,
            ends,
            is_over: false,
            nacks_due: 0,
            nacks: 0,
            tcp_answered: false,
        });
        self.events.push(ends, Event::ProbeEnd(id, seq));
        if !self.members[id].blocked {
            self.ping_target(id);
        }
    }

    fn ping_target(&mut self, id: Id) {
        let Some(probe) = &mut self.members[id].probe else { return };
        probe.stage = Stage::Direct;
        let (seq, target, timeout) = (probe.seq, probe.target, probe.timeout);
        self.ping(id, target, seq);
        self.after(timeout, Event::Direct(id, seq));
    }

    /// Pings; whom the sender suspects is told so, if they are buddies.
    fn ping(&mut self, id: Id, target: Id, seq: u32) {
        let mut packet = self.packet(id, Kind::Ping { seq });
        let row = self.members[id].rows[target].as_ref().filter(|row| self.model.buddy && !row.is_alive());
        if let Some(row) = row {
            packet.news.push(News { about: target, claim: Claim::Suspect, incarnation: row.incarnation, by: id });
        }
        self.send_packet(id, target, packet);
    }

    pub(super) fn on_direct_end(&mut self, id: Id, seq: u32) {
        let probe = self.members[id].probe.as_ref();
        if probe.is_some_and(|probe| probe.seq == seq && probe.stage == Stage::Direct) {
            self.ask_helpers(id);
        }
    }

    fn ask_helpers(&mut self, id: Id) {
        let blocked = self.members[id].blocked;
        let Some(probe) = &mut self.members[id].probe else { return };
        probe.stage = if blocked { Stage::Asking } else { Stage::Indirect };
        let (seq, target, ends) = (probe.seq, probe.target, probe.ends);
        if blocked {
            return;
        }
        let nack = self.model.lha_probe;
        let helpers = self.pick(id, self.model.indirect_checks, |other, row| other != target && row.is_alive());
        if let Some(probe) = &mut self.members[id].probe {
            probe.nacks_due = if nack { helpers.len() } else { 0 };
        }
        for helper in helpers {
            self.send(id, helper, Kind::PingReq { seq, target, nack });
        }
        if self.now < ends {
            self.send_packet(id, target, Packet { from: id, kind: Kind::TcpPing { seq }, news: Vec::new() });
        }
        if self.members[id].probe.as_ref().is_some_and(|probe| probe.is_over) {
            self.fail_probe(id);
        }
    }

    pub(super) fn on_probe_end(&mut self, id: Id, seq: u32) {
        let Some(probe) = self.members[id].probe.as_mut().filter(|probe| probe.seq == seq) else { return };
        probe.is_over = true;
        match probe.stage {
            Stage::Indirect => self.fail_probe(id),
            Stage::Direct => self.ask_helpers(id),
            Stage::Sending | Stage::Asking => {}
        }
    }

    /// The loop goes on where it stood.
    pub(super) fn go_on_probing(&mut self, id: Id) {
        match self.members[id].probe.as_ref().map(|probe| (probe.stage, probe.is_over)) {
            Some((Stage::Sending, is_over)) => {
                self.ping_target(id);
                if is_over {
                    self.ask_helpers(id);
                }
            }
            Some((Stage::Asking, _)) => self.ask_helpers(id),
            _ => {}
        }
    }

    pub(super) fn on_ack(&mut self, id: Id, seq: u32) {
        let member = &mut self.members[id];
        if let Some(relay) = member.relays.get_mut(&seq) {
            relay.answered = true;
            let (requester, seq) = (relay.requester, relay.seq);
            self.send(id, requester, Kind::Ack { seq });
        } else if member.probe.as_ref().is_some_and(|probe| probe.seq == seq && !probe.is_over) {
            self.judge_health(id, -1);
            self.end_probe(id);
        }
    }

    pub(super) fn on_nack(&mut self, id: Id, seq: u32) {
        if let Some(probe) = self.members[id].probe.as_mut().filter(|probe| probe.seq == seq) {
            probe.nacks += 1;
        }
    }

    pub(super) fn on_tcp_ack(&mut self, id: Id, seq: u32) {
        if let Some(probe) = self.members[id].probe.as_mut().filter(|probe| probe.seq == seq && !probe.is_over) {
            probe.tcp_answered = true;
        }
    }

    fn fail_probe(&mut self, id: Id) {
        let Some(probe) = self.members[id].probe.clone() else { return };
        if !probe.tcp_answered {
            self.judge_health(id, 1 + probe.nacks_due.saturating_sub(probe.nacks) as i64);
            let news = News { about: probe.target, claim: Claim::Suspect, incarnation: probe.incarnation, by: id };
            self.on_suspect(id, news);
        }
        self.end_probe(id);
    }

    fn end_probe(&mut self, id: Id) {
        self.members[id].probe = None;
        if std::mem::take(&mut self.members[id].tick_waits) {
            self.begin_probe(id);
        }
    }

    pub(super) fn on_ping_req(&mut self, id: Id, requester: Id, seq: u32, target: Id, nack: bool) {
        let timeout = Duration::from_millis(self.model.probe_timeout_ms);
        let member = &mut self.members[id];
        member.seq += 1;
        let own = member.seq;
        member.relays.insert(own, Relay { requester, seq, answered: false });
        self.ping(id, target, own);
        if nack {
            self.after(timeout * self.model.nack_percent as u32 / 100, Event::Nack(id, own));
        }
        self.after(timeout, Event::RelayEnd(id, own));
    }

    pub(super) fn on_nack_due(&mut self, id: Id, own: u32) {
        if let Some(relay) = self.members[id].relays.get(&own).filter(|relay| !relay.answered) {
            let (requester, seq) = (relay.requester, relay.seq);
            self.send(id, requester, Kind::Nack { seq });
        }
    }

    pub(super) fn on_gossip_tick(&mut self, id: Id) {
        if self.members[id].gossip.first.is_some() || self.members[id].broadcasts.is_empty() {
            return;
        }
        let (now, dead_for) = (self.now, Duration::from_secs(self.model.gossip_to_the_dead_s));
        let mut to = self
            .pick(id, self.model.gossip_nodes, |_, row| row.claim != Claim::Dead || now.since(row.since) <= dead_for);
        if self.members[id].blocked && !to.is_empty() {
            let first = to.remove(0);
            let packet = self.packet(id, Kind::Gossip);
            self.members[id].gossip = Gossip { first: Some((first, packet)), rest: to };
        } else {
            to.into_iter().for_each(|to| self.gossip(id, to));
        }
    }

    fn gossip(&mut self, id: Id, to: Id) {
        let packet = self.packet(id, Kind::Gossip);
        if !packet.news.is_empty() {
            self.put_on_wire(id, to, packet);
        }
    }

    pub(super) fn go_on_gossiping(&mut self, id: Id) {
        let Gossip { first, rest } = std::mem::take(&mut self.members[id].gossip);
        if let Some((to, packet)) = first {
            self.put_on_wire(id, to, packet);
        }
        rest.into_iter().for_each(|to| self.gossip(id, to));
    }
}
