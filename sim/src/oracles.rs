//! What must hold, one file a property. Fed by every event of the production telemetry and by what the world
//! knows; an oracle counts how often it checked, so that one that never does is seen.

use serde::{Deserialize, Serialize};
use swimring::core::control::ControlEvent;
use swimring_membership::Instant;
use swimring_membership::wire::{Header, Message};

use crate::host::Host;
use crate::network::Network;

mod boots_do_not_run_out;
mod clusters_stay_apart;
mod digests_tell_views_apart;
mod evidence_is_monotone;
mod heal_keeps_the_healthy;
mod incarnations_are_minted_by_their_subject;
mod incarnations_never_regress;
mod news_moves_up;
mod no_phantoms;
mod property;
mod records_are_immutable;
mod refutation_is_synchronous;
mod the_dead_stay_dead;
mod troubled_observers_accuse_few;

pub use property::{Counts, Property};

/// How far one claim of others may raise a boot.
const BOOT_LEAP_MAX: u32 = 1 << 12;

/// For how long what a process has said may still have effects.
const LATELY: std::time::Duration = std::time::Duration::from_secs(60);

/// What the world knows, for oracles to look at.
pub struct Facts<'a> {
    /// World time.
    pub now: Instant,
    /// Every machine.
    pub hosts: &'a [Host],
    /// The network.
    pub network: &'a Network,
    /// How many of the machines are seeds: the first ones.
    pub seeds: usize,
    /// Seeds are known by one address, behind which any of them answers.
    pub balanced: bool,
}

impl Facts<'_> {
    fn name(&self, host: usize) -> String {
        self.hosts[host].name.to_string()
    }

    fn seeds(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().take(self.seeds)
    }

    /// Those that run under this name, or did within a minute: one, as a rule.
    fn lately_with_id(&self, id: swimring_membership::NodeId) -> impl Iterator<Item = &Host> {
        let lately = |at: Instant| self.now.since(at) <= LATELY;
        self.with_id(id).filter(move |host| host.is_up() || host.ended.is_some_and(lately))
    }

    /// All machines that ever had this name.
    fn with_id(&self, id: swimring_membership::NodeId) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(move |host| host.id == id)
    }
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Which property.
    pub oracle: Property,
    /// When, in milliseconds of world time.
    pub at_ms: u64,
    /// Who was involved: the observer first.
    pub nodes: Vec<String>,
    /// What was seen.
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {} ms, {}: {}", self.oracle, self.at_ms, self.nodes.join(" "), self.message)
    }
}

/// Where oracles write.
#[derive(Debug, Default)]
pub struct Findings {
    /// Checks by oracle.
    pub checks: Counts,
    /// What was found, in order; the first hundred.
    pub violations: Vec<Violation>,
}

const VIOLATIONS_MAX: usize = 100;

impl Findings {
    /// Counts a check of `oracle`; what fails becomes a violation.
    pub fn check(
        &mut self,
        facts: &Facts<'_>,
        oracle: Property,
        nodes: &[usize],
        holds: bool,
        message: impl FnOnce() -> String,
    ) {
        self.checks.count(oracle);
        if !holds && self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation {
                oracle,
                at_ms: facts.now.as_millis(),
                nodes: nodes.iter().map(|host| facts.name(*host)).collect(),
                message: message(),
            });
        }
    }
}

/// One property.
pub trait Oracle: Send {
    /// A process started.
    fn on_start(&mut self, _facts: &Facts<'_>, _host: usize, _out: &mut Findings) {}

    /// A process reported an event.
    fn on_event(&mut self, _facts: &Facts<'_>, _host: usize, _event: &ControlEvent, _out: &mut Findings) {}

    /// A process has handled a message; this is what it said beside its purpose, if anything.
    fn after_message(&mut self, _facts: &Facts<'_>, _host: usize, _header: Option<&Header>, _out: &mut Findings) {}
}

/// What a message says beside its purpose, if it says anything.
pub(crate) fn header(bytes: &[u8]) -> Option<Header> {
    match Message::decode(bytes).ok()?? {
        Message::Ping { header, .. }
        | Message::Ack { header, .. }
        | Message::PingReq { header, .. }
        | Message::Reached { header, .. }
        | Message::Nack { header, .. }
        | Message::Rumours { header } => Some(header),
        _ => None,
    }
}

/// Every oracle of membership.
pub fn all() -> Vec<Box<dyn Oracle>> {
    vec![
        Box::new(incarnations_never_regress::Watch::default()),
        Box::new(news_moves_up::Watch),
        Box::new(incarnations_are_minted_by_their_subject::Watch::default()),
        Box::new(the_dead_stay_dead::Watch::default()),
        Box::new(evidence_is_monotone::Watch),
        Box::new(no_phantoms::Watch),
        Box::new(clusters_stay_apart::Watch),
        Box::new(boots_do_not_run_out::Watch::default()),
        Box::new(records_are_immutable::Watch::default()),
        Box::new(digests_tell_views_apart::Watch::default()),
        Box::new(refutation_is_synchronous::Watch),
        Box::new(heal_keeps_the_healthy::Watch),
        Box::new(troubled_observers_accuse_few::Watch::default()),
    ]
}
