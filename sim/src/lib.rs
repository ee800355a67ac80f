//! A whole cluster in one thread under virtual time, made of the types that ship.
//!
//! A seed and a plan make a run; the same two make the same run, to the byte. Faults come first, with safety
//! checked throughout; then a random core heals, and agreement is owed within a bound.

/// Prints a line. Whoever reads no more (`| head`) has seen enough.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stdout(), $($part)*);
    }};
}

mod asked;
pub mod bench;
mod calls;
pub mod conns;
pub mod determinism;
mod dials;
pub mod experiment;
mod faults;
mod flow;
pub mod host;
mod identities;
mod leaving;
mod memberlist;
pub mod mutants;
pub mod network;
pub mod oracles;
mod parallel;
pub mod plan;
pub mod profile;
mod progress;
mod queue;
mod quiet;
pub mod recording;
pub mod report;
mod rings;
pub mod shrink;
mod strangers;
pub mod sweep;
pub mod trace;
pub mod world;
