//! What can be set, what it costs, and what is wrong with a setting.

use core::ops::Deref;
use core::time::Duration;

use crate::suspicion::{Window, log10_milli};

/// A starting point for the settings.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Preset {
    /// One data centre: round trips below 10 ms.
    #[default]
    Lan,
    /// Several regions: round trips up to 300 ms.
    Wan,
    /// One machine: loopback, quick to notice.
    Local,
}

/// Every knob of membership. Turn it into a [`Config`] to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Time between two probes that this node starts. Too short: traffic, and false suspicion on slow paths.
    /// Too long: deaths are noticed late. `lan` 1 s (500 ms below 32 members), as memberlist.
    pub probe_period: Duration,
    /// The period while there are fewer than [`small_cluster`](Self::small_cluster) members.
    pub probe_period_small: Duration,
    /// Below how many members the shorter period holds.
    pub small_cluster: usize,
    /// The least time an answer gets before the next step of a probe, however short the measured round trip.
    /// Too short: doubled pings when a process is briefly busy. Too long: fewer attempts in a period.
    pub probe_step_floor: Duration,
    /// How many others are asked to ping a member that does not answer. More: fewer false suspicions under
    /// loss, more traffic per failure. SWIM's k.
    pub helpers: usize,
    /// The least time to object, in periods times log10 of the members. Too small: slow nodes are removed. Too
    /// large: dead ones are kept. memberlist's SuspicionMult, which is 4 there: here everybody asks a suspect itself before
    /// it is removed, and with 2 no healthy member removed another one in the experiment of the Lifeguard paper.
    pub suspicion_multiplier: u32,
    /// The least time to object, however few the members are: longer than a process commonly stands still.
    pub suspicion_floor: Duration,
    /// The most time to object, as a multiple of what `suspicion_multiplier` makes; it shrinks with every confirmation.
    /// Too small: a node that hears nobody removes the others before it can hear them again. memberlist's
    /// SuspicionMaxTimeoutMult.
    pub suspicion_stretch: u32,
    /// How many independent confirmations bring the time to object down to the least.
    pub confirmations: u32,
    /// Up to how many members everybody asks everybody, over connections that stay open. More members: each is asked by ten
    /// fixed observers, and talks to twenty. Too high: connections and memory. Too low: nothing breaks.
    pub mesh_max: usize,
    /// Time between two rounds of rumours.
    pub rumour_period: Duration,
    /// To how many members a round goes.
    pub rumour_fanout: usize,
    /// How often a rumour is told, times log2 of the members.
    pub rumour_multiplier: u32,
    /// Most bytes of a datagram of ours. QUIC guarantees 1,200 on the path; this leaves room for its headers.
    pub datagram_bytes_max: usize,
    /// How long two views may differ before they are reconciled. Too short: reconciliation does the work of
    /// rumours. Too long: what rumours missed stays missed.
    pub reconcile_after: Duration,
    /// The first wait before a join is tried again; it doubles up to [`join_retry_max`](Self::join_retry_max).
    pub join_retry: Duration,
    /// The longest wait before a join is tried again.
    pub join_retry_max: Duration,
    /// Time between two attempts to reach a lost contact. Never stops.
    pub heal_period: Duration,
    /// How long down and left members are listed before a tombstone replaces them.
    pub reap_after: Duration,
    /// Most members, this node included: as many as a ring can index. What would be one more is refused and counted.
    pub members_max: usize,
    /// Most tombstones; beyond it the oldest goes.
    pub tombstones_max: usize,
    /// Most addresses of lost contacts that are remembered; beyond it the one lost first goes.
    pub contacts_max: usize,
    /// The worst value of the local health score: probes then take that many times longer, plus one.
    pub health_max: u32,
}

/// A setting outside its range; the caller's fault.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {problem}")]
pub struct InvalidConfig {
    /// Which.
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Settings {
    /// The settings of a preset.
    pub fn preset(preset: Preset) -> Self {
        let lan = Self {
            probe_period: Duration::from_secs(1),
            probe_period_small: Duration::from_millis(500),
            small_cluster: 32,
            probe_step_floor: Duration::from_millis(30),
            helpers: 3,
            suspicion_multiplier: 2,
            suspicion_floor: Duration::from_secs(2),
            suspicion_stretch: 12,
            confirmations: 2,
            mesh_max: 256,
            rumour_period: Duration::from_millis(200),
            rumour_fanout: 3,
            rumour_multiplier: 2,
            datagram_bytes_max: 1_100,
            reconcile_after: Duration::from_secs(1),
            join_retry: Duration::from_millis(500),
            join_retry_max: Duration::from_secs(5),
            heal_period: Duration::from_secs(2),
            reap_after: Duration::from_secs(60),
            members_max: 65_535,
            tombstones_max: 65_536,
            contacts_max: 1_024,
            health_max: 7,
        };
        match preset {
            Preset::Lan => lan,
            Preset::Wan => Self {
                probe_period: Duration::from_secs(3),
                probe_period_small: Duration::from_secs(3),
                probe_step_floor: Duration::from_millis(200),
                suspicion_multiplier: 6,
                suspicion_stretch: 6,
                rumour_period: Duration::from_millis(500),
                rumour_fanout: 4,
                reconcile_after: Duration::from_secs(5),
                reap_after: Duration::from_secs(300),
                ..lan
            },
            Preset::Local => Self {
                probe_period: Duration::from_millis(500),
                suspicion_multiplier: 3,
                suspicion_floor: Duration::from_secs(1),
                suspicion_stretch: 6,
                rumour_period: Duration::from_millis(100),
                reconcile_after: Duration::from_millis(600),
                heal_period: Duration::from_secs(1),
                reap_after: Duration::from_secs(30),
                ..lan
            },
        }
    }
}

/// Settings that were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config(Settings);

impl Deref for Config {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.0
    }
}

impl Config {
    /// Checks every setting against its range.
    pub fn new(settings: Settings) -> Result<Self, InvalidConfig> {
        let fails = |setting, problem| Err(InvalidConfig { setting, problem });
        let s = &settings;
        let shortest = s.probe_period.min(s.probe_period_small);
        if shortest < Duration::from_millis(10) {
            return fails("probe_period", "is below 10 ms");
        }
        if s.probe_step_floor < Duration::from_millis(1) || s.probe_step_floor * 8 > shortest {
            return fails(
                "probe_step_floor",
                "is below 1 ms or above an eighth of the probe period, so that a probe has no time for its steps",
            );
        }
        if s.suspicion_multiplier == 0 || s.suspicion_stretch == 0 {
            return fails("suspicion_multiplier", "leaves a suspect no time to object");
        }
        if s.mesh_max < 4 {
            return fails("mesh_max", "is below 4, so that nobody could be asked by two others");
        }
        if s.rumour_period.is_zero() || s.rumour_fanout == 0 || s.rumour_multiplier == 0 {
            return fails("rumour_period", "or fanout or multiplier is zero, so that no news spreads");
        }
        if !(512..=16_384).contains(&s.datagram_bytes_max) {
            return fails("datagram_bytes_max", "is not within 512 to 16,384");
        }
        if s.join_retry.is_zero() || s.join_retry > s.join_retry_max || s.heal_period < Duration::from_millis(100) {
            return fails("join_retry", "or heal_period is too short, so that absent seeds are flooded");
        }
        if s.members_max == 0 || s.members_max > 65_535 || s.contacts_max == 0 {
            return fails("members_max", "is not within 1 to 65,535, or no contact is remembered");
        }
        Ok(Self(settings))
    }

    /// A preset, which is valid.
    pub fn preset(preset: Preset) -> Self {
        Self::new(Settings::preset(preset)).expect("presets are valid, a test holds that")
    }

    /// Time between two probes among `members`.
    pub fn period(&self, members: usize) -> Duration {
        if members < self.small_cluster { self.probe_period_small } else { self.probe_period }
    }

    /// How long one of `members` may object to a suspicion.
    pub(crate) fn suspicion(&self, members: usize) -> Window {
        let scale = log10_milli(u32::try_from(members).unwrap_or(u32::MAX)).max(1_000);
        let scaled = self.period(members) * self.suspicion_multiplier / 1_000 * scale;
        let min = scaled.max(self.suspicion_floor);
        // With too few others to confirm anything, nobody waits for confirmations.
        let others = members.saturating_sub(2);
        let confirmations = if others < self.confirmations as usize { 0 } else { self.confirmations };
        Window { min, max: min.max(scaled * self.suspicion_stretch), confirmations }
    }

    /// How often a rumour is told among `members`.
    pub(crate) fn rumour_sends(&self, members: usize) -> u32 {
        self.rumour_multiplier * log2_ceil(members + 1).max(1)
    }

    /// How long a rumour takes to reach all of `members`, generously.
    pub(crate) fn dissemination(&self, members: usize) -> Duration {
        self.rumour_period * (log2_ceil(members + 1) + 2)
    }
}

/// The binary logarithm of `value`, rounded up; `value` is not 0.
const fn log2_ceil(value: usize) -> u32 {
    usize::BITS - (value - 1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid() {
        for preset in [Preset::Lan, Preset::Wan, Preset::Local] {
            assert!(Config::new(Settings::preset(preset)).is_ok(), "{preset:?}");
        }
    }

    #[test]
    fn the_time_to_object_grows_with_the_logarithm_of_the_members() {
        let config = Config::preset(Preset::Lan);
        let min = |members| config.suspicion(members).min.as_millis();
        assert_eq!((min(3), min(10)), (2_000, 2_000));
        assert!((3_990..=4_000).contains(&min(100)), "{}", min(100));
        assert_eq!(config.suspicion(3).confirmations, 0, "one other cannot confirm twice");
        assert_eq!(config.suspicion(4).confirmations, 2);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let mut settings = Settings::preset(Preset::Lan);
        settings.datagram_bytes_max = 100;
        assert_eq!(Config::new(settings).unwrap_err().setting, "datagram_bytes_max");
    }
}
