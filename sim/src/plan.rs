//! The plan language, version 1: what a run consists of, as a readable file.
//!
//! One statement a line, `#` comments. Parsing and printing are inverse. Knows nothing of how a plan is run.

use std::fmt;
use std::time::Duration;

use swimring_membership::Preset;

pub(crate) mod named;
mod orderly;
mod parse;
mod print;

/// Why a plan cannot be read; the author's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct PlanError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: String,
}

/// A run, before its randomness is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Who is there at the beginning.
    pub world: WorldSpec,
    /// How messages travel; later rules override earlier ones.
    pub links: Vec<LinkRule>,
    /// Keyed calls, if there are any.
    pub load: Option<Load>,
    /// What happens when, in the order of time.
    pub steps: Vec<Step>,
    /// When chaos ends.
    pub quiet: Option<Quiet>,
    /// What is owed after that.
    pub expect: Expect,
}

/// Who is there at the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorldSpec {
    /// How many nodes.
    pub nodes: usize,
    /// In how many zones, taking turns.
    pub zones: usize,
    /// How many of the nodes are seeds: the first ones.
    pub seeds: usize,
    /// Their settings.
    pub preset: Preset,
    /// log2 of the arcs of the ring.
    pub arcs: u32,
    /// Nodes know no seed, but an address behind which each of them may answer.
    pub balanced: bool,
    /// How much their processes allow.
    pub limits: Limits,
    /// Up to how many members everybody asks everybody.
    pub mesh: usize,
}

/// How much processes allow: connections, dials, the age of a connection, calls.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Limits {
    /// So little that limits are reached within minutes.
    Tight,
    /// What ships. Calls keep their tight limits.
    Shipped,
}

/// A distribution of one-way latency.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Latency {
    /// Always the same.
    Const(Duration),
    /// Every value between two equally likely.
    Uniform(Duration, Duration),
    /// Exponential with this mean, cut at ten times the mean.
    Exp(Duration),
    /// The first, but the second for a share of the packets, in millionths.
    Bimodal(Duration, Duration, u32),
}

impl Latency {
    /// The longest that it yields.
    pub fn longest(self) -> Duration {
        match self {
            Self::Const(most) | Self::Uniform(_, most) => most,
            Self::Exp(mean) => mean * 10,
            Self::Bimodal(usual, rare, _) => usual.max(rare),
        }
    }
}

/// How messages travel between some nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkRule {
    /// One-way latency.
    pub latency: Latency,
    /// Chance that a packet is lost, in millionths.
    pub loss: u32,
    /// Chance that a datagram arrives twice, in millionths.
    pub dup: u32,
    /// Chance that a datagram's bytes are changed on the way; QUIC discards it, in millionths.
    pub corrupt: u32,
    /// Additional random delay, up to this, which reorders.
    pub reorder: Duration,
    /// Which pairs.
    pub pairs: Pairs,
}

/// Which pairs of nodes a link rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// All.
    All,
    /// Both ways between two sides.
    Between(Side, Side),
    /// One way.
    From(Side, Side),
}

/// Some nodes, said without chance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// One node, counted from 1.
    Node(usize),
    /// A zone, by its letter.
    Zone(char),
}

/// Some nodes, perhaps chosen when the time comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// These.
    Side(Side),
    /// These.
    Nodes(Vec<usize>),
    /// That many live ones.
    Random(usize),
    /// Whoever owns the key in most views.
    Owner(String),
}

/// Keyed calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Calls a second, of all nodes together.
    pub rate: u32,
    /// How keys are drawn.
    pub keys: Keys,
    /// Deadline of a call.
    pub deadline: Duration,
    /// Share of calls that may run twice, in millionths.
    pub idempotent: u32,
    /// How long a handler runs.
    pub handler: Latency,
    /// Bytes of a body.
    pub body: usize,
}

/// How keys are drawn.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum Keys {
    /// Every key equally likely.
    Uniform(u32),
    /// Zipf with this exponent (in thousandths) over so many keys.
    Zipf(u32, u32),
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// When it begins.
    pub at: Duration,
    /// What it is.
    pub action: Action,
    /// How long it lasts; zero for what has no end.
    pub lasts: Duration,
}

/// What a restarted process still has.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Its state directory.
    Kept,
    /// Nothing.
    Lost,
    /// An old copy of its state directory.
    Stale,
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Nothing passes between groups. Nodes in no group form one of their own.
    Cut(Cut),
    /// Nothing passes from the first to the second.
    Oneway(Side, Side),
    /// Two sides that reach each other only through the node between them.
    Bridge(Side, usize, Side),
    /// Packets are lost, in millionths; at these nodes, or everywhere.
    Loss(u32, Option<Select>),
    /// Datagrams arrive twice, in millionths.
    Dup(u32),
    /// Datagrams overtake each other, by up to this.
    Reorder(Duration),
    /// Now and then a pair loses most packets for a while.
    Bursts(Bursts),
    /// Packets of more bytes than these are lost; at these nodes, or everywhere.
    Hole(usize, Option<Select>),
    /// Processes end without a word; perhaps they are started again.
    Crash(Select, Option<(Duration, Memory)>),
    /// Processes stand still.
    Pause(Select),
    /// Processes neither send nor take anything, while their timers go on.
    Block(Select),
    /// Processes take so many times longer for everything.
    Slow(Select, u32),
    /// A clock runs faster (or slower) by so many millionths.
    Drift(Select, i32),
    /// Processes leave in an orderly way.
    Leave(Select),
    /// Processes leave in an orderly way, and start again once they have ended.
    Roll(Select),
    /// Processes say goodbye and end at once.
    Quit(Select),
    /// Processes take no new keys, and go on.
    Drain(Select),
    /// Machines end, and others with names of their own take their addresses at once. Seeds stay.
    Replace(Select),
    /// Machines end, and nodes of another cluster take their addresses at once, with all that the machines had stored. The
    /// first seed stays.
    Foreign(Select),
    /// Processes start with the names of these, on machines of their own, with so much of their state directories.
    Twin(Select, Memory),
    /// Processes end, and start again as those of a later release.
    Upgrade(Select),
    /// Nodes have this weight from now on.
    Weigh(Select, u16),
    /// New nodes come, within a time.
    Join(usize, Duration),
    /// The load is so many times higher.
    Overload(u32),
    /// So many connections that nobody wants, to each of these nodes.
    Strangers(usize, Select),
    /// No fault: what passes meanwhile is counted apart.
    Measure,
}

/// Losses that come in bursts: each pair of nodes has its own.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Bursts {
    /// How much is lost within one, in millionths.
    pub loss: u32,
    /// The share of the time that is within one, in millionths.
    pub share: u32,
    /// How long one lasts.
    pub length: Duration,
}

/// Who is cut from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A random half from the other.
    Half,
    /// These from all others.
    Isolate(Select),
    /// A zone from all others.
    Zone(char),
    /// These groups from each other.
    Groups(Vec<Vec<usize>>),
    /// Each node reaches those next to it on a circle, about half of all, and no two reach the same ones.
    Ring,
}

/// When chaos ends: a random core heals, everything else that failed stays so.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// When.
    pub at: Duration,
    /// The share of the nodes that is healed at least, in percent.
    pub core: u32,
}

/// What is owed after chaos.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// Within which time the core has one view.
    pub converged: Duration,
    /// Whether every key is then answered.
    pub served: bool,
}

impl Default for Expect {
    fn default() -> Self {
        Self { converged: Duration::from_secs(30), served: true }
    }
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// With the line and what is wrong there.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        parse::plan(text)
    }

    /// When the run ends: after the last thing that happens, with time for what is owed.
    pub fn end(&self) -> Duration {
        let last = self.steps.iter().map(|step| step.at + step.lasts + restart_after(&step.action)).max();
        let chaos = last.unwrap_or_default().max(Duration::from_secs(5));
        self.quiet.map_or(chaos, |quiet| quiet.at) + self.expect.converged + Duration::from_secs(5)
    }
}

fn restart_after(action: &Action) -> Duration {
    match action {
        Action::Crash(_, Some((after, _))) => *after,
        Action::Join(_, over) => *over,
        _ => Duration::ZERO,
    }
}

/// Reads a time as plans write it: `250ms`, `10s`, `5m`.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse::duration(text)
}

impl Action {
    /// The kind of fault, for counting which really happened.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cut(_) => "cut",
            Self::Oneway(..) => "oneway",
            Self::Bridge(..) => "bridge",
            Self::Loss(..) => "loss",
            Self::Dup(_) => "dup",
            Self::Reorder(_) => "reorder",
            Self::Bursts(_) => "bursts",
            Self::Hole(..) => "hole",
            Self::Quit(_) => "quit",
            Self::Drain(_) => "drain",
            Self::Replace(_) => "replace",
            Self::Foreign(_) => "foreign",
            Self::Twin(..) => "twin",
            Self::Upgrade(_) => "upgrade",
            Self::Weigh(..) => "weigh",
            Self::Crash(_, None | Some((_, Memory::Kept))) => "crash",
            Self::Crash(_, Some((_, Memory::Lost))) => "crash-lost",
            Self::Crash(_, Some((_, Memory::Stale))) => "crash-stale",
            Self::Pause(_) => "pause",
            Self::Block(_) => "block",
            Self::Slow(..) => "slow",
            Self::Drift(..) => "drift",
            Self::Leave(_) => "leave",
            Self::Roll(_) => "roll",
            Self::Join(..) => "join",
            Self::Overload(_) => "overload",
            Self::Strangers(..) => "strangers",
            Self::Measure => "measure",
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print::plan(self, f)
    }
}

#[cfg(test)]
mod tests;
