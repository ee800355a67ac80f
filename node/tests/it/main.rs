//! Real processes: what a user types, and what comes of it.

mod blocking;
mod bodies;
mod clusters;
mod cuts;
mod duplex;
mod example;
mod harness;
mod hostile;
mod library;
mod refusals;
mod showing;
