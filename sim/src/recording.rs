//! What happened in a run, for a report or other tools: a file with one JSON object a line.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use swimring_membership::{Instant, NodeId, State};

use crate::host::Home;
use crate::oracles::{Counts, Violation};
use crate::world::World;

/// Deliveries that are kept for the past of a violation.
const DELIVERIES_MAX: usize = 20_000;
/// Violations whose past is kept.
const PASTS_MAX: usize = 10;
/// Steps of a past.
const STEPS_MAX: usize = 200;
/// Calls that are kept: the first ones.
pub(crate) const CALLS_MAX: u64 = 20_000;
/// Events that are kept: the first ones, and every violation.
const EVENTS_MAX: usize = 4_000_000;
/// Packets on their way whose sending is known; those of which most will never be read are forgotten first.
const SENT_MAX: usize = 200_000;
/// How often in a run it is seen who owns what.
const LOOKS: u32 = 240;
/// Arcs of which it is seen.
pub(crate) const ARCS: u32 = 96;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A process began.
    Up { node: usize },
    /// A process ended.
    Down { node: usize },
    /// A fault began; to these nodes, or to everything.
    Fault { kind: String, text: String, until_ms: u64, nodes: Vec<usize> },
    /// `by` believes something else of `of`.
    Belief { by: usize, of: usize, state: Believed },
    /// So many different views are held.
    Views { count: usize },
    /// Who holds itself the owner of each of some arcs.
    Owners { claims: Vec<Vec<usize>> },
    /// A call begins.
    Call { call: u64, key: String, node: usize },
    /// A call runs.
    Run { call: u64, node: usize },
    /// A call is refused.
    Refused { call: u64, node: usize, why: String },
    /// A call ends.
    Outcome { call: u64, outcome: String, hops: u8 },
    /// Chaos is over; this is the core.
    Quiet { core: Vec<usize> },
    /// A property is broken, and this came before.
    Violation { violation: Violation, past: Vec<Step> },
}

/// What a node believes of another.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Believed {
    Unknown,
    Alive,
    Suspect,
    Down,
    Left,
}

impl From<State> for Believed {
    fn from(state: State) -> Self {
        match state {
            State::Alive => Self::Alive,
            State::Suspect => Self::Suspect,
            State::Down => Self::Down,
            State::Left => Self::Left,
        }
    }
}

/// A step on the way to a violation: something at a node, perhaps because of what another one sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) at_ms: f64,
    pub(crate) node: usize,
    pub(crate) what: String,
    /// Who sent it, and when.
    pub(crate) from: Option<(usize, f64)>,
}

/// The first line: what was run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) plan: String,
    pub(crate) seed: u64,
}

/// The last line: what it came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tail {
    pub(crate) verdict: String,
    pub(crate) hash: String,
    pub(crate) end_ms: u64,
    pub(crate) zones: Vec<char>,
    pub(crate) events: u64,
    /// Calls that were made, whether kept or not.
    pub(crate) calls: u64,
    /// Events for which there was no room.
    pub(crate) not_kept: u64,
    pub(crate) node_seconds: f64,
    pub(crate) converged_ms: Option<u64>,
    pub(crate) checks: Counts,
    pub(crate) faults: BTreeMap<String, u64>,
}

/// What happened in a run.
#[derive(Clone, Debug)]
pub struct Recording {
    pub(crate) head: Head,
    pub(crate) events: Vec<(f64, Event)>,
    pub(crate) tail: Tail,
}

/// Why a recording cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file.
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, std::io::Error),
    /// A line is not what belongs there.
    #[error("{}: line {}: {}", .0.display(), .1, .2)]
    Line(PathBuf, usize, String),
}

#[derive(Serialize, Deserialize)]
struct At {
    at_ms: f64,
    #[serde(flatten)]
    event: Event,
}

impl Recording {
    /// Writes it, a line each.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), RecordingError> {
        let failed = |error| RecordingError::File(path.into(), error);
        let mut file = BufWriter::new(std::fs::File::create(path).map_err(failed)?);
        writeln!(file, "{}", text(&self.head)).map_err(failed)?;
        for (at_ms, event) in &self.events {
            writeln!(file, "{}", text(&At { at_ms: *at_ms, event: event.clone() })).map_err(failed)?;
        }
        writeln!(file, "{}", text(&self.tail)).map_err(failed)?;
        file.flush().map_err(failed)
    }

    /// Reads what was written.
    ///
    /// # Errors
    /// If the file cannot be read, or is no recording.
    pub fn read(path: &Path) -> Result<Self, RecordingError> {
        let failed = |error| RecordingError::File(path.into(), error);
        let file = std::io::BufReader::new(std::fs::File::open(path).map_err(failed)?);
        let lines: Vec<String> = file.lines().collect::<Result<_, _>>().map_err(failed)?;
        let strange =
            |index: usize, error: serde_json::Error| RecordingError::Line(path.into(), index + 1, error.to_string());
        let [first, between @ .., last] = lines.as_slice() else {
            return Err(RecordingError::Line(path.into(), lines.len(), "a recording has at least two lines".into()));
        };
        let head = serde_json::from_str(first).map_err(|error| strange(0, error))?;
        let tail = serde_json::from_str(last).map_err(|error| strange(lines.len() - 1, error))?;
        let events = between.iter().enumerate().map(|(index, line)| {
            let At { at_ms, event } = serde_json::from_str(line).map_err(|error| strange(index + 1, error))?;
            Ok((at_ms, event))
        });
        Ok(Self { head, events: events.collect::<Result<_, RecordingError>>()?, tail })
    }
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a recording has only text keys")
}

/// Records a run while it goes on.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    events: Vec<(f64, Event)>,
    not_kept: u64,
    /// How many hold each view, and who holds which.
    views: BTreeMap<u128, usize>,
    held: BTreeMap<usize, u128>,
    by_id: BTreeMap<NodeId, usize>,
    /// When packets on their way were sent: by connection, end and number.
    sent: BTreeMap<(u64, usize, u64), Instant>,
    /// The packet that is being read: who reads it, who sent it, and when.
    reading: Option<(usize, usize, Instant)>,
    steps: VecDeque<Step>,
    violations: usize,
}

/// Longer than a packet is on its way, a process that stands still included.
const LONGEST_WAY: Duration = Duration::from_secs(30);

fn ms(at: Instant) -> f64 {
    (at.as_nanos() / 1_000) as f64 / 1_000.0
}

impl World {
    /// From now on keeps what happens.
    pub fn record(&mut self) {
        self.recorder = Some(Box::default());
        let end = self.plan.end() + crate::quiet::SERVED;
        for look in 1..=LOOKS {
            self.schedule(Instant::ORIGIN + end * look / LOOKS, crate::world::Happening::SeeOwners);
        }
    }

    /// What happened, if it was kept.
    pub fn recording(&mut self) -> Option<Recording> {
        let recorder = self.recorder.take()?;
        let tail = Tail {
            verdict: self.verdict().name().into(),
            hash: self.trace.hash(),
            end_ms: self.now.as_millis(),
            zones: (0..self.hosts.len()).map(|host| self.network.zone(host)).collect(),
            events: self.trace.events,
            calls: self.ledger.calls(),
            not_kept: recorder.not_kept,
            node_seconds: self.node_seconds(),
            converged_ms: self.converged_after.map(|after| after.as_millis() as u64),
            checks: self.findings.checks.clone(),
            faults: self.faults.iter().map(|(kind, count)| ((*kind).into(), *count)).collect(),
        };
        let head = Head { plan: self.plan.to_string(), seed: self.seed };
        Some(Recording { head, events: recorder.events, tail })
    }

    pub(crate) fn note(&mut self, event: impl FnOnce() -> Event) {
        if let Some(recorder) = &mut self.recorder {
            recorder.keep(self.now, event());
        }
    }

    /// `by` changed its mind about a node.
    pub(crate) fn note_belief(&mut self, by: usize, id: NodeId, state: Believed) {
        if self.recorder.is_none() || self.hosts[by].home == Home::Foreign {
            return;
        }
        let hosts = &self.hosts;
        let Some(recorder) = &mut self.recorder else { return };
        let of = recorder.by_id.get(&id).copied().or_else(|| hosts.iter().position(|host| host.id == id));
        let Some(of) = of else { return };
        recorder.by_id.insert(id, of);
        let what = format!("believes n{} to be {state:?}", of + 1).to_lowercase();
        recorder.step(self.now, by, what);
        recorder.keep(self.now, Event::Belief { by, of, state });
    }

    /// A process may hold another view than before; or none, for it is gone.
    pub(crate) fn note_view(&mut self, host: usize) {
        if self.hosts[host].home == Home::Foreign {
            // What another cluster sees is another matter.
            return;
        }
        let control = self.hosts[host].control.as_ref().filter(|control| control.membership().is_joined());
        let digest = control.map(|control| control.membership().roster().digest());
        let Some(recorder) = &mut self.recorder else { return };
        let before = match digest {
            Some(digest) => recorder.held.insert(host, digest),
            None => recorder.held.remove(&host),
        };
        if before == digest {
            return;
        }
        let count = recorder.views.len();
        if let Some(digest) = digest {
            *recorder.views.entry(digest).or_insert(0) += 1;
        }
        if let Some(before) = before {
            let held = recorder.views.entry(before).or_insert(1);
            *held -= 1;
            if *held == 0 {
                recorder.views.remove(&before);
            }
        }
        let now = recorder.views.len();
        if now != count {
            recorder.keep(self.now, Event::Views { count: now });
        }
    }

    pub(crate) fn see_owners(&mut self) {
        let arcs = 1_u64 << self.plan.world.arcs;
        let mut claims = vec![Vec::new(); ARCS as usize];
        for (index, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.home == Home::Here) {
            let Some(view) = host.app.as_ref().and_then(crate::calls::App::view) else { continue };
            for (place, owners) in claims.iter_mut().enumerate() {
                let arc = swimring::ring::Arc((place as u64 * arcs / u64::from(ARCS)) as u32);
                if view.ring().owner_of_arc(arc) == Some(host.id) {
                    owners.push(index);
                }
            }
        }
        self.note(|| Event::Owners { claims });
    }

    /// A packet leaves.
    pub(crate) fn note_sent(&mut self, conn: u64, end: usize, number: u64) {
        let now = self.now;
        if let Some(recorder) = &mut self.recorder {
            recorder.sent.insert((conn, end, number), now);
            if recorder.sent.len() > SENT_MAX {
                // What was lost is never read. What has been on its way for longer than any path takes is.
                recorder.sent.retain(|_, sent| now.since(*sent) < LONGEST_WAY);
            }
        }
    }

    /// A packet that `from` has sent is read by `to`.
    pub(crate) fn note_reading(&mut self, conn: u64, end: usize, number: u64, [from, to]: [usize; 2]) {
        if let Some(recorder) = &mut self.recorder {
            recorder.reading = recorder.sent.remove(&(conn, end, number)).map(|sent| (to, from, sent));
        }
    }

    /// A message is read.
    pub(crate) fn note_message(&mut self, host: usize, kind: impl FnOnce() -> String) {
        if let Some(recorder) = &mut self.recorder {
            recorder.step(self.now, host, kind());
        }
    }

    /// Something has happened, with all that follows from it at once: keeps the past of what was found in it.
    pub(crate) fn note_violations(&mut self) {
        let Some(recorder) = &mut self.recorder else { return };
        recorder.reading = None;
        while let Some(violation) = self.findings.violations.get(recorder.violations).cloned() {
            recorder.violations += 1;
            let nodes = violation.nodes.iter().filter_map(|name| name.strip_prefix('n')?.parse::<usize>().ok());
            let past = if recorder.violations <= PASTS_MAX {
                recorder.past(&nodes.map(|node| node - 1).collect::<Vec<_>>(), ms(self.now))
            } else {
                Vec::new()
            };
            recorder.events.push((ms(self.now), Event::Violation { violation, past }));
        }
    }
}

impl Recorder {
    fn keep(&mut self, now: Instant, event: Event) {
        let fits = match event {
            Event::Call { call, .. }
            | Event::Run { call, .. }
            | Event::Refused { call, .. }
            | Event::Outcome { call, .. } => call <= CALLS_MAX,
            _ => true,
        };
        if fits && self.events.len() < EVENTS_MAX {
            self.events.push((ms(now), event));
        } else {
            self.not_kept += 1;
        }
    }

    fn step(&mut self, now: Instant, node: usize, what: String) {
        let from = self.reading.filter(|(to, ..)| *to == node).map(|(_, from, sent)| (from, ms(sent)));
        self.steps.push_back(Step { at_ms: ms(now), node, what, from });
        if self.steps.len() > DELIVERIES_MAX {
            self.steps.pop_front();
        }
    }

    /// What may have had to do with what these nodes did at a moment: their own steps, and those of others before they
    /// sent what was read in them; the latest ones.
    fn past(&self, nodes: &[usize], now: f64) -> Vec<Step> {
        let mut until: BTreeMap<usize, f64> = nodes.iter().map(|node| (*node, now)).collect();
        let mut past = Vec::new();
        for step in self.steps.iter().rev() {
            if past.len() >= STEPS_MAX {
                break;
            }
            if until.get(&step.node).is_some_and(|until| step.at_ms <= *until) {
                if let Some((from, sent)) = step.from {
                    let known = until.entry(from).or_insert(sent);
                    *known = known.max(sent);
                }
                past.push(step.clone());
            }
        }
        past.reverse();
        past
    }
}
