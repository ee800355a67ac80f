//! Asking a running node, and showing its answer.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use swimring::runtime::admin::{Health, Lookup, Members, RingLines};

use super::client::{self, Answer};
use super::{At, OWN_FAULT, REFUSED, USAGE, WRONG};

/// How long a node may take to leave.
const LEAVING: Duration = Duration::from_secs(60);

/// What is asked.
pub(super) enum Request {
    Members,
    Ring,
    Lookup(String),
    Put(String, String),
    Get(String),
    Del(String),
    Health,
    Leave { wait: bool },
}

pub(super) fn run(at: &At, request: Request) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(problem) => {
            remark!("swimring: {problem}");
            return ExitCode::from(OWN_FAULT);
        }
    };
    match runtime.block_on(ask(at, &request)) {
        Ok(answer) => show(at, &request, &answer),
        Err(problem) => {
            remark!("swimring: no answer from {}: {problem}", at.admin);
            ExitCode::from(REFUSED)
        }
    }
}

async fn ask(at: &At, request: &Request) -> anyhow::Result<Answer> {
    let encoded = |key: &str| utf8_percent_encode(key, NON_ALPHANUMERIC).to_string();
    let (method, path, body) = match request {
        Request::Members => (Method::GET, "/members".to_owned(), Bytes::new()),
        Request::Ring => (Method::GET, "/ring".to_owned(), Bytes::new()),
        Request::Health => (Method::GET, "/health".to_owned(), Bytes::new()),
        Request::Lookup(key) => (Method::GET, format!("/lookup?key={}", encoded(key)), Bytes::new()),
        Request::Put(key, value) => (Method::PUT, format!("/kv/{}", encoded(key)), value_of(value)?),
        Request::Get(key) => (Method::GET, format!("/kv/{}", encoded(key)), Bytes::new()),
        Request::Del(key) => (Method::DELETE, format!("/kv/{}", encoded(key)), Bytes::new()),
        Request::Leave { wait } => (Method::POST, format!("/leave?wait={wait}"), Bytes::new()),
    };
    let patience = match request {
        Request::Leave { wait: true } => LEAVING,
        _ => client::PATIENCE,
    };
    client::ask(&at.admin, at.admin_token.as_deref(), method, &path, body, patience).await
}

fn value_of(value: &str) -> anyhow::Result<Bytes> {
    if value != "-" {
        return Ok(Bytes::copy_from_slice(value.as_bytes()));
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes)?;
    Ok(bytes.into())
}

fn show(at: &At, request: &Request, answer: &Answer) -> ExitCode {
    match request {
        Request::Put(..) | Request::Get(_) | Request::Del(_) => {
            return show_value(at, request, answer);
        }
        Request::Leave { .. } if answer.status == StatusCode::NO_CONTENT => {
            return ExitCode::SUCCESS;
        }
        _ if answer.status != StatusCode::OK => return failed(answer),
        _ if at.json => {
            say!("{}", String::from_utf8_lossy(&answer.body));
            return verdict(request, answer);
        }
        _ => {}
    }
    let shown = match request {
        Request::Members => serde_json::from_slice(&answer.body).map(|members| show_members(&members)),
        Request::Ring => serde_json::from_slice(&answer.body).map(|ring| show_ring(&ring)),
        Request::Lookup(_) => serde_json::from_slice(&answer.body).map(|lookup| show_lookup(&lookup)),
        Request::Health => serde_json::from_slice(&answer.body).map(|health| show_health(&health)),
        _ => Ok(()),
    };
    match shown {
        Ok(()) => verdict(request, answer),
        Err(problem) => {
            remark!("swimring: the answer is not understood: {problem}");
            ExitCode::from(OWN_FAULT)
        }
    }
}

/// The exit code says what the answer says.
fn verdict(request: &Request, answer: &Answer) -> ExitCode {
    let wrong = match request {
        Request::Health => serde_json::from_slice::<Health>(&answer.body).is_ok_and(|health| !health.ready),
        Request::Lookup(_) => serde_json::from_slice::<Lookup>(&answer.body).is_ok_and(|lookup| lookup.owner.is_none()),
        _ => false,
    };
    if wrong { ExitCode::from(WRONG) } else { ExitCode::SUCCESS }
}

fn failed(answer: &Answer) -> ExitCode {
    remark!("swimring: {}: {}", answer.status, String::from_utf8_lossy(&answer.body).trim_end());
    ExitCode::from(match answer.status {
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => USAGE,
        // It ran, and failed.
        StatusCode::INTERNAL_SERVER_ERROR => WRONG,
        _ => REFUSED,
    })
}

fn show_value(at: &At, request: &Request, answer: &Answer) -> ExitCode {
    match answer.status {
        StatusCode::OK | StatusCode::NO_CONTENT if at.json => {
            let value = matches!(request, Request::Get(_)).then(|| String::from_utf8_lossy(&answer.body).into_owned());
            say!("{}", line(answer, value));
            ExitCode::SUCCESS
        }
        StatusCode::OK => {
            let written = std::io::stdout().write_all(&answer.body).and_then(|()| std::io::stdout().flush());
            match written {
                Err(problem) if problem.kind() != ErrorKind::BrokenPipe => ExitCode::from(OWN_FAULT),
                // Whoever reads no more has seen enough.
                _ => ExitCode::SUCCESS,
            }
        }
        StatusCode::NO_CONTENT => ExitCode::SUCCESS,
        StatusCode::NOT_FOUND => {
            if at.json {
                say!("{}", line(answer, None));
            }
            remark!("swimring: nothing is stored under this key");
            ExitCode::from(WRONG)
        }
        _ => failed(answer),
    }
}

/// Who answered, and what is stored.
fn line(answer: &Answer, value: Option<String>) -> serde_json::Value {
    let header = |name| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    serde_json::json!({
        "owner": header("x-swimring-owner"),
        "hops": header("x-swimring-hops").parse::<u8>().unwrap_or_default(),
        "fence": header("x-swimring-fence").parse::<u64>().unwrap_or_default(),
        "value": value,
    })
}

fn show_members(members: &Members) {
    say!("cluster {} as {} sees it, view {}", members.cluster, members.own, members.view);
    say!("{:<20} {:<8} {:<9} {:>8} {:>7} {:<22} {:<8}", "NAME", "STATE", "PHASE", "INC", "SHARE", "GOSSIP", "ZONE");
    for m in &members.members {
        say!(
            "{:<20} {:<8} {:<9} {:>8} {:>6.2}% {:<22} {:<8}",
            m.name,
            m.state,
            m.phase,
            m.incarnation,
            m.share * 100.0,
            m.gossip,
            m.zone.as_deref().unwrap_or("-")
        );
    }
}

fn show_ring(ring: &RingLines) {
    say!("{} arcs, digest {}, largest share {:.3} of the mean", ring.arcs, ring.digest, ring.max_over_mean);
    for (owner, arcs) in &ring.owners {
        say!("{owner:<20} {arcs:>9} arcs {:>6.2}%", f64::from(*arcs) / f64::from(ring.arcs) * 100.0);
    }
}

fn show_lookup(lookup: &Lookup) {
    let owner = lookup.owner.as_deref().unwrap_or("nobody");
    say!("{:?} is on arc {} (hash {}), owned by {owner}", lookup.key, lookup.arc, lookup.hash);
    if !lookup.replicas.is_empty() {
        say!("then {}", lookup.replicas.join(", "));
    }
}

fn show_health(health: &Health) {
    say!("{}", if health.ready { "ready" } else { "not ready" });
    health.missing.iter().for_each(|missing| say!("missing: {missing}"));
    let counts: Vec<String> = health.members.iter().map(|(state, count)| format!("{count} {state}")).collect();
    say!("members: {}", counts.join(", "));
}
