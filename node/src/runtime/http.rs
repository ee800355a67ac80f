//! The key-value service over HTTP: any node may be asked, the owner answers.

use axum::Router;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http_body_util::LengthLimitError;
use percent_encoding::percent_decode_str;
use swimring_forwarder::wire::Refusal;
use swimring_forwarder::{Outcome, Unsent, Why};

use super::calls::Answered;
use super::kv::{ABSENT, Command, MISROUTED, SERVICE};
use super::metrics;
use super::node::{CallRequest, Swimring};

/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 * 1_024 * 1_024 - 1_024;

/// Where the value begins in an answer to a get: behind the mark and the number of writes.
const VALUE_AT: usize = 5;

/// `PUT`, `GET` and `DELETE` of `/kv/KEY`, the key percent-encoded.
pub fn router(node: Swimring) -> Router {
    Router::new()
        .route("/kv/{*key}", any(serve))
        .route("/kv/", any(async || bad_key()))
        .layer(DefaultBodyLimit::max(VALUE_BYTES_MAX))
        .with_state(node)
}

async fn serve(State(node): State<Swimring>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Some(key) = key_of(&parts.uri) else {
        return bad_key();
    };
    let body = match axum::body::to_bytes(body, VALUE_BYTES_MAX).await {
        Ok(body) => body,
        Err(problem) => return bad_body(problem),
    };
    let command = match parts.method {
        Method::PUT => match ttl_of(&parts.headers) {
            Ok(ttl_s) => Command::Put { ttl_s },
            Err(problem) => {
                metrics::http_refused("ttl");
                return (StatusCode::BAD_REQUEST, problem).into_response();
            }
        },
        Method::GET => Command::Get,
        Method::DELETE => Command::Delete,
        _ => {
            metrics::http_refused("method");
            return StatusCode::METHOD_NOT_ALLOWED.into_response();
        }
    };
    let mut call = CallRequest::new(SERVICE, key, command.encode(&body));
    if command == Command::Get {
        call = call.idempotent();
    }
    let answered = node.call(call).await;
    let mut response = respond(&command, &answered);
    mark(&node, &answered, response.headers_mut());
    response
}

fn bad_key() -> Response {
    metrics::http_refused("key");
    (StatusCode::BAD_REQUEST, "a key has 1 to 1,024 bytes\n").into_response()
}

/// Either too long, or the client went away before its end.
fn bad_body(problem: axum::Error) -> Response {
    let mut source = Some(&problem as &dyn std::error::Error);
    while let Some(inner) = source {
        if inner.is::<LengthLimitError>() {
            metrics::http_refused("body_too_long");
            return (StatusCode::PAYLOAD_TOO_LARGE, format!("a value has at most {VALUE_BYTES_MAX} bytes\n"))
                .into_response();
        }
        source = inner.source();
    }
    metrics::http_refused("body_cut_off");
    (StatusCode::BAD_REQUEST, format!("the body ended early: {problem}\n")).into_response()
}

/// The key in the path, as bytes.
fn key_of(uri: &Uri) -> Option<Vec<u8>> {
    let encoded = uri.path().strip_prefix("/kv/")?;
    let key: Vec<u8> = percent_decode_str(encoded).collect();
    (!key.is_empty() && key.len() <= swimring_ring::KEY_BYTES_MAX).then_some(key)
}

fn ttl_of(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let Some(value) = headers.get("x-ttl-s") else {
        return Ok(None);
    };
    let seconds = value.to_str().ok().and_then(|text| text.parse().ok());
    seconds.map(Some).ok_or("x-ttl-s is a number of seconds\n")
}

fn respond(command: &Command, answered: &Answered) -> Response {
    match &answered.outcome {
        Outcome::Ok(body) => {
            let found = body.first().is_some_and(|first| first & !MISROUTED != ABSENT);
            match (command, found) {
                (_, false) => StatusCode::NOT_FOUND.into_response(),
                (Command::Get, true) => (StatusCode::OK, body.slice(VALUE_AT.min(body.len())..)).into_response(),
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
                Why::Overloaded | Why::Unsent(Unsent::Full) | Why::Refused(Refusal::Overloaded) => {
                    (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")], text).into_response()
                }
                _ => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
            }
        }
        Outcome::Unknown(problem) => (StatusCode::GATEWAY_TIMEOUT, format!("{problem}\n")).into_response(),
    }
}

/// Who answered, how far away it was, and under which fence.
fn mark(node: &Swimring, answered: &Answered, headers: &mut HeaderMap) {
    let owner =
        answered.owner.and_then(|id| node.view().member(id).map(|member| member.record.profile().name.to_string()));
    let mut set = |name, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    set("x-swimring-owner", owner.unwrap_or_default());
    set("x-swimring-hops", answered.hops.to_string());
    set("x-swimring-fence", answered.fence.to_string());
    if let Outcome::Ok(body) = &answered.outcome
        && let Some(writes) = body.get(1..VALUE_AT).and_then(|bytes| bytes.first_chunk())
    {
        set("x-swimring-writes", u32::from_le_bytes(*writes).to_string());
    }
    if let Outcome::Ok(body) = &answered.outcome
        && body.first().is_some_and(|first| first & MISROUTED != 0)
    {
        set("x-swimring-misrouted", "1".into());
    }
}
