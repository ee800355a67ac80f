//! Real processes: what a user types, and what comes of it.

mod clusters;
mod harness;
mod refusals;
mod showing;
