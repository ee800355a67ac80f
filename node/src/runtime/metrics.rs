//! What a node counts, through the `metrics` facade. Install a recorder before the node starts.
//!
//! Names of nodes and keys are never labels: there is no bound on how many there are.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use swimring_forwarder::wire::Refusal as CallRefusal;
use swimring_forwarder::{AdmissionStats, Outcome, Remembered, Running, Unsent, Why};
use swimring_membership::{Roster, State, Stats};

use super::endpoint::DialError;
use crate::core::hello::{Class, Refusal};

/// How often what is kept as a value is shown to the recorder.
pub(crate) const OBSERVE_EVERY: Duration = Duration::from_secs(1);

/// UDP datagrams that came in, by class.
pub const DATAGRAMS: &str = "swimring_datagrams_total";
/// Datagrams that belong to no connection, by class and reason.
pub const DATAGRAMS_REFUSED: &str = "swimring_datagrams_refused_total";
/// Connections of others that were refused, by class and reason.
pub const HANDSHAKES_REFUSED: &str = "swimring_handshakes_refused_total";
/// Dials of this node that failed, by class and reason.
pub const DIALS_FAILED: &str = "swimring_dials_failed_total";
/// Connections closed because of bytes that are no message or frame, by class.
pub const CONNECTIONS_MALFORMED: &str = "swimring_connections_malformed_total";
/// Connections for calls that were given up, for nothing came on them though it was asked for.
pub const CONNECTIONS_SILENT: &str = "swimring_connections_silent_total";
/// Connections, by class.
pub const CONNECTIONS: &str = "swimring_connections";
/// How many more repeats of calls this node may make: a tenth of its calls, and ten at most saved up.
pub const REPEATS_LEFT: &str = "swimring_repeats_left";
/// How many processes answer nothing, and are handed no calls until they do.
pub const BREAKERS_OPEN: &str = "swimring_breakers_open";
/// Gossip messages that wait for a connection.
pub const WAITING: &str = "swimring_gossip_waiting";
/// Calls of others that run here, and bytes of their bodies.
pub const RUNNING: &str = "swimring_calls_running";
/// What is kept of callers so that nothing runs twice: processes, and runs of their numbers.
pub const REMEMBERED: &str = "swimring_callers_remembered";
/// Members, by state.
pub const MEMBERS: &str = "swimring_members";
/// What membership did and refused, by kind.
pub const MEMBERSHIP: &str = "swimring_membership_total";
/// Calls of this node, by outcome and reason.
pub const CALLS: &str = "swimring_calls_total";
/// Calls of others, by verdict.
pub const ADMISSIONS: &str = "swimring_admissions_total";
/// From reading a call to having written its refusal, in seconds.
pub const REFUSAL: &str = "swimring_refusal_seconds";
/// Start-up findings that an operator should know, by kind.
pub const FINDINGS: &str = "swimring_findings_total";
/// Frames of other processes that were dropped, by reason.
pub const DROPPED: &str = "swimring_frames_dropped_total";
/// HTTP requests refused before a call was made, by reason.
pub const HTTP_REFUSED: &str = "swimring_http_refused_total";

/// Tells the recorder what each name means.
pub fn describe() {
    describe_counter!(DATAGRAMS, "UDP datagrams that came in");
    describe_counter!(DATAGRAMS_REFUSED, "datagrams that belong to no connection");
    describe_counter!(HANDSHAKES_REFUSED, "connections of others that were refused");
    describe_counter!(DIALS_FAILED, "dials of this node that failed");
    describe_counter!(CONNECTIONS_MALFORMED, "connections closed because of bytes that are no message");
    describe_counter!(CONNECTIONS_SILENT, "connections for calls given up, for nothing came on them");
    describe_gauge!(CONNECTIONS, "connections");
    describe_gauge!(REPEATS_LEFT, "repeats of calls that may still be made");
    describe_gauge!(BREAKERS_OPEN, "processes that answer nothing, and are handed no calls until they do");
    describe_gauge!(WAITING, "gossip messages that wait for a connection");
    describe_gauge!(RUNNING, "calls of others that run here, and bytes of their bodies");
    describe_gauge!(REMEMBERED, "callers kept so that nothing of them runs twice, and runs of their numbers");
    describe_gauge!(MEMBERS, "members by state");
    describe_counter!(MEMBERSHIP, "what membership did and refused");
    describe_counter!(CALLS, "calls of this node by outcome");
    describe_counter!(ADMISSIONS, "calls of others by verdict");
    describe_histogram!(REFUSAL, Unit::Seconds, "from reading a call to having written its refusal");
    describe_counter!(FINDINGS, "findings that an operator should know");
    describe_counter!(DROPPED, "frames of other processes that were dropped, by reason");
    describe_counter!(HTTP_REFUSED, "HTTP requests refused before a call was made");
}

pub(crate) const fn class_name(class: Class) -> &'static str {
    match class {
        Class::Gossip => "gossip",
        Class::Calls => "calls",
    }
}

const fn refusal_name(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Cluster => "cluster",
        Refusal::Identity => "identity",
        Refusal::Oneself => "oneself",
        Refusal::Class => "class",
        Refusal::Version => "version",
        Refusal::Leaving => "leaving",
        Refusal::Full => "full",
    }
}

/// Somebody's hello was refused.
pub(crate) fn hello_refused(class: Class, refusal: Refusal) {
    counter!(HANDSHAKES_REFUSED, "class" => class_name(class), "reason" => refusal_name(refusal)).increment(1);
}

/// Somebody's handshake failed before the hello was judged.
pub(crate) fn handshake_refused(class: Class, problem: &DialError) {
    counter!(HANDSHAKES_REFUSED, "class" => class_name(class), "reason" => dial_reason(problem)).increment(1);
}

/// Whoever this node dialled is not welcome here.
pub(crate) fn dial_refused(class: Class, refusal: Refusal) {
    dial_failed(class, refusal_name(refusal));
}

/// A dial of this node failed.
pub(crate) fn dial_failed(class: Class, reason: &'static str) {
    counter!(DIALS_FAILED, "class" => class_name(class), "reason" => reason).increment(1);
}

pub(crate) fn dial_reason(problem: &DialError) -> &'static str {
    match problem {
        DialError::Refused(refusal) => refusal_name(*refusal),
        DialError::Malformed => "malformed",
        DialError::Silent => "silent",
        DialError::Connect(_) => "address",
        DialError::Connection(_) if problem.is_about_a_certificate() => "certificate",
        DialError::Connection(quinn::ConnectionError::TimedOut) => "silent",
        DialError::Connection(quinn::ConnectionError::VersionMismatch) => "version",
        DialError::Connection(_) => "connection",
    }
}

/// A connection was given up because nothing came on it.
pub(crate) fn given_up() {
    counter!(CONNECTIONS_SILENT).increment(1);
}

/// A connection was closed because of what came on it.
pub(crate) fn malformed(class: Class) {
    counter!(CONNECTIONS_MALFORMED, "class" => class_name(class)).increment(1);
}

/// What another node gave as the reason of a refusal is no member record.
pub(crate) fn malformed_record() {
    counter!(DROPPED, "reason" => "record").increment(1);
}

/// So many refusals were written; their calls were read so long before.
pub(crate) fn refused(took: Duration, count: usize) {
    histogram!(REFUSAL).record_many(took, count);
}

/// Something that an operator should know happened.
pub(crate) fn finding(kind: &'static str) {
    counter!(FINDINGS, "kind" => kind).increment(1);
}

/// A frame of another process was dropped: a `call` or the `answer` to one of a process that does not read its answers,
/// what was `unasked` for, or of an `unknown` kind.
pub(crate) fn dropped(reason: &'static str) {
    counter!(DROPPED, "reason" => reason).increment(1);
}

/// A request over HTTP was refused.
pub(crate) fn http_refused(reason: &'static str) {
    counter!(HTTP_REFUSED, "reason" => reason).increment(1);
}

/// A call of this node has another outcome than success, which is counted where it costs least.
pub(crate) fn call_failed<B>(outcome: &Outcome<B>) {
    let (outcome, reason) = match outcome {
        Outcome::Ok(_) => return,
        Outcome::Executed(_) => ("executed_error", ""),
        Outcome::NotExecuted(problem) => ("not_executed", why_name(problem.why())),
        Outcome::Unknown(_) => ("unknown", ""),
    };
    counter!(CALLS, "outcome" => outcome, "reason" => reason).increment(1);
}

const fn why_name(why: Why) -> &'static str {
    match why {
        Why::NoOwner => "no_owner",
        Why::Gone => "gone",
        Why::Deadline => "deadline",
        Why::Unsent(Unsent::Unreachable) => "unreachable",
        Why::Unsent(Unsent::Replaced) => "replaced",
        Why::Unsent(Unsent::Full) | Why::Overloaded | Why::Refused(CallRefusal::Overloaded { .. }) => "overloaded",
        Why::Unsent(Unsent::Silent) => "silent",
        Why::Unsent(Unsent::Late) => "late",
        Why::Unsent(Unsent::Leaving) => "owner_leaving",
        Why::Leaving => "leaving",
        Why::Invalid(_) | Why::Refused(CallRefusal::Invalid) => "invalid",
        Why::Refused(CallRefusal::Unconfirmed) => "unconfirmed",
        Why::Refused(CallRefusal::Expired) => "expired",
        Why::Refused(CallRefusal::NotOwner) => "not_owner",
        Why::Refused(CallRefusal::NoService) => "no_service",
    }
}

/// What membership counted since the start, and whom it lists.
pub(crate) fn observe_membership(stats: &Stats, roster: &Roster) {
    let counts = [
        ("malformed", stats.malformed),
        ("unknown_kind", stats.unknown_kinds),
        ("implausible", stats.implausible),
        ("member_refused", stats.members_refused),
        ("rumour_dropped", stats.rumours_dropped),
        ("shed", stats.shed),
        ("probe", stats.probes),
        ("probe_failed", stats.probes_failed),
        ("probe_doubted", stats.probes_doubted),
        ("refutation", stats.refutations),
        ("reconciliation", stats.reconciliations),
        ("name_refused", stats.names_refused),
        ("unsent", stats.unsent),
    ];
    for (kind, count) in counts {
        counter!(MEMBERSHIP, "kind" => kind).absolute(count);
    }
    let states = [(State::Alive, "alive"), (State::Suspect, "suspect"), (State::Down, "down"), (State::Left, "left")];
    for (state, name) in states {
        let count = roster.iter().filter(|(_, member)| member.state == state).count();
        gauge!(MEMBERS, "state" => name).set(count as f64);
    }
}

/// How many connections there are.
pub(crate) fn observe_connections(class: Class, count: usize) {
    gauge!(CONNECTIONS, "class" => class_name(class)).set(count as f64);
}

/// How many repeats of calls are left.
pub(crate) fn observe_repeats_left(count: u32) {
    gauge!(REPEATS_LEFT).set(f64::from(count));
}

/// How many processes answer nothing.
pub(crate) fn observe_breakers_open(count: usize) {
    gauge!(BREAKERS_OPEN).set(count as f64);
}

/// How many gossip messages wait for a connection.
pub(crate) fn observe_waiting(count: usize) {
    gauge!(WAITING).set(count as f64);
}

/// How many calls of this node had success since the start.
pub(crate) fn observe_success(count: u64) {
    counter!(CALLS, "outcome" => "ok", "reason" => "").absolute(count);
}

/// What was decided about the calls of others since the start.
pub(crate) fn observe_admission(stats: &AdmissionStats, running: Running, remembered: Remembered) {
    gauge!(RUNNING, "kind" => "calls").set(running.calls as f64);
    gauge!(RUNNING, "kind" => "bytes").set(running.bytes as f64);
    gauge!(REMEMBERED, "kind" => "callers").set(remembered.callers as f64);
    gauge!(REMEMBERED, "kind" => "runs").set(remembered.runs as f64);
    let counts = [
        ("admitted", stats.admitted),
        ("not_owner", stats.not_owner),
        ("overloaded", stats.overloaded),
        ("expired", stats.expired),
        ("unconfirmed", stats.unconfirmed),
        ("wrong_process", stats.wrong_process),
        ("double", stats.doubles),
        ("invalid", stats.invalid),
    ];
    for (verdict, count) in counts {
        counter!(ADMISSIONS, "verdict" => verdict).absolute(count);
    }
}
