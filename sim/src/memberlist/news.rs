//! What members believe of each other, and when they change their minds.

use std::time::Duration;

use swimring_membership::Instant;

use super::{Claim, Cluster, Event, Failure, Id, Kind, News};

/// What a member believes of another.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) claim: Claim,
    pub(super) incarnation: u32,
    pub(super) since: Instant,
    suspicion: Option<Suspicion>,
}

#[derive(Clone, Debug)]
struct Suspicion {
    began: Instant,
    /// Who suspects, by its bit; the one that began it included.
    by: Vec<Id>,
    confirmations: u32,
    min: Duration,
    max: Duration,
}

impl Default for Row {
    fn default() -> Self {
        Self { claim: Claim::Alive, incarnation: 1, since: Instant::ORIGIN, suspicion: None }
    }
}

impl Row {
    pub(super) fn is_alive(&self) -> bool {
        self.claim == Claim::Alive
    }
}

impl Suspicion {
    /// When the time to object is over. ln(c+1)/ln(k+1) in thousandths, for k up to 3.
    fn deadline(&self) -> Instant {
        const SHARES: [&[u64]; 4] = [&[1_000], &[0, 1_000], &[0, 631, 1_000], &[0, 500, 792, 1_000]];
        let shares = SHARES[self.confirmations.min(3) as usize];
        let confirmed = (self.by.len() - 1).min(shares.len() - 1);
        let shrunk = (self.max - self.min) * shares[confirmed] as u32 / 1_000;
        self.began + (self.max - shrunk).max(self.min)
    }

    /// Whether `by` is new, and still wanted.
    fn confirm(&mut self, by: Id) -> bool {
        let new = self.by.len() <= self.confirmations as usize && !self.by.contains(&by);
        if new {
            self.by.push(by);
        }
        new
    }
}

impl Cluster {
    pub(super) fn on_news(&mut self, id: Id, news: News) {
        match news.claim {
            Claim::Alive => self.on_alive(id, news),
            Claim::Suspect => self.on_suspect(id, news),
            Claim::Dead => self.on_dead(id, news),
        }
    }

    fn on_alive(&mut self, id: Id, news: News) {
        let (now, member) = (self.now, &mut self.members[id]);
        if news.about == id || member.rows[news.about].as_ref().is_some_and(|row| news.incarnation <= row.incarnation) {
            return;
        }
        let row = Row { claim: Claim::Alive, incarnation: news.incarnation, since: now, suspicion: None };
        let known = member.rows[news.about].replace(row).is_some();
        if !known {
            let place = self.rng.index(member.order.len() + 1);
            member.order.insert(place, news.about);
        }
        member.broadcasts.push(news);
    }

    /// Whoever is accused says that it lives, above the accusation; and that it may be slow.
    fn refute(&mut self, id: Id, accused: u32) {
        let member = &mut self.members[id];
        member.incarnation = (member.incarnation + 1).max(accused + 1);
        member.broadcasts.push(News { about: id, claim: Claim::Alive, incarnation: member.incarnation, by: id });
        self.judge_health(id, 1);
    }

    pub(super) fn judge_health(&mut self, id: Id, change: i64) {
        if self.model.lha_probe {
            let health = i64::from(self.members[id].health) + change;
            self.members[id].health = health.clamp(0, i64::from(self.model.health_max)) as u32;
        }
    }

    pub(super) fn on_suspect(&mut self, id: Id, news: News) {
        if news.about == id {
            if news.incarnation >= self.members[id].incarnation {
                self.refute(id, news.incarnation);
            }
            return;
        }
        let (now, about) = (self.now, news.about);
        let (min, lha) = (self.model.suspicion_min(), self.model.lha_suspicion);
        let max = if lha { min * self.model.beta } else { min };
        let confirmations = if lha { self.model.confirmations } else { 0 };
        let member = &mut self.members[id];
        let Some(row) = member.rows[about].as_mut().filter(|row| news.incarnation >= row.incarnation) else { return };
        if let Some(suspicion) = &mut row.suspicion {
            if suspicion.confirm(news.by) {
                let due = suspicion.deadline().max(now);
                member.broadcasts.push(news);
                self.after_waking(due, Event::Suspicion { at: id, about });
            }
            return;
        }
        if row.claim != Claim::Alive {
            return;
        }
        let suspicion = Suspicion { began: now, by: vec![news.by], confirmations, min, max };
        let due = suspicion.deadline();
        *row = Row { claim: Claim::Suspect, incarnation: news.incarnation, since: now, suspicion: Some(suspicion) };
        member.broadcasts.push(news);
        self.after_waking(due, Event::Suspicion { at: id, about });
    }

    pub(super) fn on_suspicion_due(&mut self, id: Id, about: Id) {
        let Some(row) = &self.members[id].rows[about] else { return };
        if row.suspicion.as_ref().is_some_and(|suspicion| suspicion.deadline() <= self.now) {
            let incarnation = row.incarnation;
            self.on_dead(id, News { about, claim: Claim::Dead, incarnation, by: id });
        }
    }

    fn on_dead(&mut self, id: Id, news: News) {
        if news.about == id {
            if news.incarnation >= self.members[id].incarnation {
                self.refute(id, news.incarnation);
            }
            return;
        }
        let now = self.now;
        let member = &mut self.members[id];
        let row = member.rows[news.about].as_mut();
        let Some(row) = row.filter(|row| news.incarnation >= row.incarnation && row.claim != Claim::Dead) else {
            return;
        };
        *row = Row { claim: Claim::Dead, incarnation: news.incarnation, since: now, suspicion: None };
        member.broadcasts.push(news);
        self.failures.push(Failure { at: now, observer: id, subject: news.about });
    }

    // Full states.

    pub(super) fn on_push_pull_tick(&mut self, id: Id) {
        if self.members[id].push_pull.is_none()
            && let Some(other) = self.pick(id, 1, |_, row| row.is_alive()).first().copied()
        {
            if self.members[id].blocked {
                self.members[id].push_pull = Some(other);
            } else {
                self.push_pull(id, other);
            }
        }
    }

    pub(super) fn push_pull(&mut self, id: Id, other: Id) {
        let kind = Kind::State { rows: self.state(id), asked_at: self.now, is_reply: false };
        self.send_packet(id, other, super::Packet { from: id, kind, news: Vec::new() });
    }

    fn state(&self, id: Id) -> Vec<News> {
        let member = &self.members[id];
        let known = member.rows.iter().enumerate().filter_map(|(about, row)| Some((about, row.as_ref()?)));
        let told = known.map(|(about, row)| match about == id {
            true => News { about, claim: Claim::Alive, incarnation: member.incarnation, by: id },
            false => News { about, claim: row.claim, incarnation: row.incarnation, by: id },
        });
        told.collect()
    }

    pub(super) fn on_state(&mut self, id: Id, from: Id, rows: Vec<News>, asked_at: Instant, is_reply: bool) {
        if self.now.since(asked_at) > Duration::from_secs(self.model.tcp_timeout_s) {
            return;
        }
        if !is_reply {
            let kind = Kind::State { rows: self.state(id), asked_at, is_reply: true };
            self.send_packet(id, from, super::Packet { from: id, kind, news: Vec::new() });
        }
        for row in rows {
            match row.claim {
                Claim::Alive => self.on_alive(id, row),
                // Whom the other holds dead is suspected first.
                Claim::Suspect | Claim::Dead => self.on_suspect(id, News { claim: Claim::Suspect, by: id, ..row }),
            }
        }
    }
}
