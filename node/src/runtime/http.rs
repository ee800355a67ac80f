//! The key-value service over HTTP: any node may be asked, the owner answers.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use swimring_forwarder::wire::Refusal;
use swimring_forwarder::{Outcome, Unsent, Why};
use swimring_membership::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::calls::Answered;
use super::kv::{ABSENT, Command, MISROUTED, SERVICE};
use super::metrics;
use super::node::{CallRequest, Swimring};

/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 * 1_024 * 1_024 - 1_024;

/// Where the value begins in an answer to a get: behind the mark and the number of writes.
const VALUE_AT: usize = 5;

/// Most bytes of bodies in memory for requests under way, and of values that are on their way back.
const BODIES_BYTES_MAX: usize = 256 * 1_024 * 1_024;
/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Http {
    node: Swimring,
    room: Arc<Semaphore>,
}

/// `PUT`, `GET` and `DELETE` of `/kv/KEY`, the key percent-encoded.
pub fn router(node: Swimring) -> Router {
    Router::new()
        .route("/kv/{*key}", any(serve))
        .route("/kv/", any(async || unasked(None, bad_key())))
        .with_state(Http { node, room: Arc::new(Semaphore::new(BODIES_BYTES_MAX)) })
}

async fn serve(State(service): State<Http>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Some(key) = key_of(&parts.uri) else {
        return unasked(None, bad_key());
    };
    let owner = owner_of(&service.node, &key);
    let command = match command_of(&parts.method, &parts.headers) {
        Ok(command) => command,
        Err(refusal) => return unasked(owner, *refusal),
    };
    // What a get or a delete brings is not read. Room is kept until the answer is on its way.
    let taken = match command {
        Command::Put { .. } => tokio::time::timeout(BODY_TIMEOUT, take(&service.room, body)).await,
        _ => Ok(Ok((Vec::new(), None))),
    };
    let (body, _room) = match taken {
        Ok(Ok(taken)) => taken,
        Ok(Err(refusal)) => return unasked(owner, *refusal),
        Err(_) => {
            metrics::http_refused("body_too_slow");
            return unasked(owner, (StatusCode::REQUEST_TIMEOUT, "the body took too long\n").into_response());
        }
    };
    let mut call = CallRequest::new(SERVICE, key, command.encode(&body));
    drop(body);
    if command == Command::Get {
        call = call.idempotent();
    }
    let answered = service.node.call(call).await;
    let mut response = respond(&command, &answered, &service.room);
    let owner = answered.owner.and_then(|id| name_of(&service.node, id));
    mark(owner, &answered, response.headers_mut());
    response
}

fn command_of(method: &Method, headers: &HeaderMap) -> Result<Command, Box<Response>> {
    match *method {
        Method::PUT => ttl_of(headers).map(|ttl_s| Command::Put { ttl_s }).map_err(|problem| {
            metrics::http_refused("ttl");
            Box::new((StatusCode::BAD_REQUEST, problem).into_response())
        }),
        Method::GET => Ok(Command::Get),
        Method::DELETE => Ok(Command::Delete),
        _ => {
            metrics::http_refused("method");
            Err(Box::new(StatusCode::METHOD_NOT_ALLOWED.into_response()))
        }
    }
}

/// An answer to what no owner was asked.
fn unasked(owner: Option<String>, mut response: Response) -> Response {
    say(response.headers_mut(), owner, 0, 0);
    response
}

fn name_of(node: &Swimring, id: NodeId) -> Option<String> {
    node.view().member(id).map(|member| member.record.profile().name.to_string())
}

fn owner_of(node: &Swimring, key: &[u8]) -> Option<String> {
    node.owner(key).ok().and_then(|id| name_of(node, id))
}

pub(super) fn bad_key() -> Response {
    metrics::http_refused("key");
    (StatusCode::BAD_REQUEST, "a key has 1 to 1,024 bytes\n").into_response()
}

/// Takes a body as it comes, and as much room as has come.
async fn take(room: &Arc<Semaphore>, mut body: Body) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Box<Response>> {
    let (mut bytes, mut held) = (Vec::new(), None::<OwnedSemaphorePermit>);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|problem| {
            metrics::http_refused("body_cut_off");
            (StatusCode::BAD_REQUEST, format!("the body ended early: {problem}\n")).into_response()
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > VALUE_BYTES_MAX {
            metrics::http_refused("body_too_long");
            let text = format!("a value has at most {VALUE_BYTES_MAX} bytes\n");
            return Err(Box::new((StatusCode::PAYLOAD_TOO_LARGE, text).into_response()));
        }
        let Ok(more) = Arc::clone(room).try_acquire_many_owned(data.len() as u32) else {
            return Err(Box::new(busy()));
        };
        match &mut held {
            Some(held) => held.merge(more),
            None => held = Some(more),
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, held))
}

fn busy() -> Response {
    metrics::http_refused("busy");
    let text = "too many bodies are under way\n";
    (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")], text).into_response()
}

/// A value on its way back, with the room that it takes until all of it is sent, or the client has gone.
struct Sent(Bytes, #[expect(dead_code, reason = "it is only held")] OwnedSemaphorePermit);

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn send(room: &Arc<Semaphore>, value: Bytes) -> Response {
    match Arc::clone(room).try_acquire_many_owned(value.len() as u32) {
        Ok(held) => (StatusCode::OK, Bytes::from_owner(Sent(value, held))).into_response(),
        Err(_) => busy(),
    }
}

/// The key in the path, as bytes.
fn key_of(uri: &Uri) -> Option<Vec<u8>> {
    let encoded = uri.path().strip_prefix("/kv/")?;
    let hex = |digits: &str| digits.len() >= 2 && digits.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    if !encoded.split('%').skip(1).all(hex) {
        return None;
    }
    let key: Vec<u8> = percent_decode_str(encoded).collect();
    (!key.is_empty() && key.len() <= swimring_ring::KEY_BYTES_MAX).then_some(key)
}

fn ttl_of(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let Some(value) = headers.get("x-ttl-s") else {
        return Ok(None);
    };
    let seconds = value.to_str().ok().and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    seconds.map(Some).ok_or("x-ttl-s is a number of seconds, at least 1\n")
}

fn respond(command: &Command, answered: &Answered, room: &Arc<Semaphore>) -> Response {
    match &answered.outcome {
        Outcome::Ok(body) => {
            let found = body.first().is_some_and(|first| first & !MISROUTED != ABSENT);
            match (command, found) {
                (_, false) => StatusCode::NOT_FOUND.into_response(),
                (Command::Get, true) => send(room, body.slice(VALUE_AT.min(body.len())..)),
                (_, true) => StatusCode::NO_CONTENT.into_response(),
            }
        }
        Outcome::Executed(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [error.as_ref(), b"\n"].concat()).into_response()
        }
        Outcome::NotExecuted(problem) => {
            let text = format!("{problem}\n");
            match problem.why() {
                Why::Invalid(_) | Why::Refused(Refusal::Invalid) => (StatusCode::BAD_REQUEST, text).into_response(),
                Why::Overloaded | Why::Unsent(Unsent::Full) | Why::Refused(Refusal::Overloaded { .. }) => {
                    // In whole seconds, for there are no others.
                    let wait = problem.retry_after().unwrap_or_default().as_millis().div_ceil(1_000).max(1);
                    (StatusCode::TOO_MANY_REQUESTS, [("retry-after", wait.to_string())], text).into_response()
                }
                _ => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
            }
        }
        Outcome::Unknown(problem) => (StatusCode::GATEWAY_TIMEOUT, format!("{problem}\n")).into_response(),
    }
}

fn set(headers: &mut HeaderMap, name: &'static str, value: String) {
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(name, value);
    }
}

/// Who answered, or would have, how far away it was, and under which fence.
fn say(headers: &mut HeaderMap, owner: Option<String>, hops: u8, fence: u64) {
    set(headers, "x-swimring-owner", owner.unwrap_or_default());
    set(headers, "x-swimring-hops", hops.to_string());
    set(headers, "x-swimring-fence", fence.to_string());
}

fn mark(owner: Option<String>, answered: &Answered, headers: &mut HeaderMap) {
    say(headers, owner, answered.hops, answered.fence);
    if let Outcome::Ok(body) = &answered.outcome
        && let Some(writes) = body.get(1..VALUE_AT).and_then(|bytes| bytes.first_chunk())
    {
        set(headers, "x-swimring-writes", u32::from_le_bytes(*writes).to_string());
    }
    if let Outcome::Ok(body) = &answered.outcome
        && body.first().is_some_and(|first| first & MISROUTED != 0)
    {
        set(headers, "x-swimring-misrouted", "1".into());
    }
}
