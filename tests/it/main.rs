//! One binary: scenarios of the simulator, golden bytes, and the rules that ARCHITECTURE.md states.

mod architecture;
mod golden;
mod scenarios;
