//! Faults on purpose, to see that the checks can fail. Only in builds with the feature `sabotage`, and there only
//! when `SABOTAGE` asks for one: `stale`, `twice` or `misroute`.

/// A read gives the value before the last one.
pub(crate) fn reads_are_stale() -> bool {
    asked("stale")
}

/// A call of another node runs a second time.
pub(crate) fn calls_run_twice() -> bool {
    asked("twice")
}

/// A call goes to a node that does not own its key, and that one runs it.
pub(crate) fn calls_are_misrouted() -> bool {
    asked("misroute")
}

#[cfg(feature = "sabotage")]
fn asked(what: &str) -> bool {
    static FAULT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    FAULT.get_or_init(|| std::env::var("SABOTAGE").unwrap_or_default()) == what
}

#[cfg(not(feature = "sabotage"))]
const fn asked(_what: &str) -> bool {
    false
}
