//! What crosses crates. The tests are in `it`; nothing is exported.
