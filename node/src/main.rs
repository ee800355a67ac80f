//! The `swimring` command.

fn main() {}
