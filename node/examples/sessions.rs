//! A web server that keeps its sessions in memory, and links Swimring so that any instance can be asked.
//!
//! Each session lives at the instance that owns its id; whichever instance a browser reaches asks that one. With
//! an identity for each instance (`swimring certs ca`, `swimring certs issue`):
//!
//! ```text
//! cargo run --release --example sessions -- --identity a --http 127.0.0.1:8001 --listen 127.0.0.1:7001
//! cargo run --release --example sessions -- --identity b --http 127.0.0.1:8002 --listen 127.0.0.1:7101 \
//!     --seed 127.0.0.1:7001
//! curl -c jar -X POST http://127.0.0.1:8001/login/ada
//! curl -b jar http://127.0.0.1:8002/
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use clap::Parser;
use serde::{Deserialize, Serialize};
use swimring::forwarder::Outcome;
use swimring::runtime::node::{CallRequest, Swimring};
use swimring::runtime::service::{Request, ServiceError, handler};

#[derive(Parser)]
struct Args {
    /// The identity directory of this instance.
    #[arg(long)]
    identity: PathBuf,
    /// Where to listen for other instances (UDP).
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Another instance.
    #[arg(long)]
    seed: Option<String>,
    /// Where to listen for browsers.
    #[arg(long, default_value = "127.0.0.1:0")]
    http: SocketAddr,
}

/// What a browser's request asks of its session.
#[derive(Serialize, Deserialize)]
enum Ask {
    Begin { user: String },
    Visit,
    End,
}

#[derive(Clone, Serialize, Deserialize)]
struct Session {
    user: String,
    visits: u32,
}

/// The sessions whose ids this instance owns.
#[derive(Clone, Default)]
struct Sessions(Arc<Mutex<HashMap<Bytes, Session>>>);

impl Sessions {
    async fn serve(self, request: Request) -> Result<Bytes, ServiceError> {
        let ask = serde_json::from_slice(&request.body).map_err(|problem| ServiceError::from(problem.to_string()))?;
        let mut sessions = self.0.lock().expect("nothing panics while it holds the lock");
        let session = match ask {
            Ask::Begin { user } => {
                let session = Session { user, visits: 0 };
                sessions.insert(request.key, session.clone());
                Some(session)
            }
            Ask::Visit => sessions.get_mut(&request.key).map(|session| {
                session.visits += 1;
                session.clone()
            }),
            Ask::End => sessions.remove(&request.key),
        };
        Ok(serde_json::to_vec(&session).expect("a session has a fixed shape").into())
    }

    /// What another instance owns from now on is dropped here: its user logs in again.
    async fn follow(self, node: Swimring) {
        let me = node.view().me().node;
        let mut changes = node.changes();
        while changes.changed().await.is_ok() {
            let mut sessions = self.0.lock().expect("nothing panics while it holds the lock");
            sessions.retain(|id, _| node.owner(id) == Ok(me));
        }
    }
}

async fn ask(node: &Swimring, id: &str, ask: &Ask) -> Result<Option<Session>, Response> {
    let body = serde_json::to_vec(ask).expect("a question has a fixed shape");
    let answered = node.call(CallRequest::new("sessions", id.to_owned(), body)).await;
    match answered.outcome {
        Outcome::Ok(body) => Ok(serde_json::from_slice(&body).unwrap_or_default()),
        Outcome::NotExecuted(problem) => {
            Err((StatusCode::SERVICE_UNAVAILABLE, format!("{problem}: try again\n")).into_response())
        }
        Outcome::Unknown(problem) => Err((StatusCode::GATEWAY_TIMEOUT, format!("{problem}\n")).into_response()),
        Outcome::Executed(problem) => Err((StatusCode::INTERNAL_SERVER_ERROR, problem).into_response()),
    }
}

/// The session id in the cookie.
fn session_of(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    cookies.split(';').find_map(|cookie| cookie.trim().strip_prefix("session=")).filter(|id| !id.is_empty())
}

async fn login(State(node): State<Swimring>, Path(user): Path<String>) -> Response {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    let id = format!("{:032x}", u128::from_le_bytes(bytes));
    match ask(&node, &id, &Ask::Begin { user }).await {
        Ok(_) => {
            let cookie = format!("session={id}; HttpOnly; SameSite=Strict; Path=/");
            ([(header::SET_COOKIE, cookie)], "welcome\n").into_response()
        }
        Err(response) => response,
    }
}

async fn home(State(node): State<Swimring>, headers: HeaderMap) -> Response {
    let Some(id) = session_of(&headers) else {
        return (StatusCode::UNAUTHORIZED, "log in first\n").into_response();
    };
    match ask(&node, id, &Ask::Visit).await {
        Ok(Some(Session { user, visits })) => {
            format!("{user}, this is visit {visits}; {} answered\n", node.name()).into_response()
        }
        Ok(None) => (StatusCode::UNAUTHORIZED, "the session is over: log in again\n").into_response(),
        Err(response) => response,
    }
}

async fn logout(State(node): State<Swimring>, headers: HeaderMap) -> Response {
    match session_of(&headers) {
        Some(id) => match ask(&node, id, &Ask::End).await {
            Ok(_) => "goodbye\n".into_response(),
            Err(response) => response,
        },
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let sessions = Sessions::default();
    let serving = sessions.clone();
    let mut builder = Swimring::builder(args.identity)
        .listen(args.listen)
        .service("sessions", handler(move |request| serving.clone().serve(request)));
    if let Some(seed) = args.seed {
        builder = builder.seed(seed);
    }
    let node = builder.start().await?;
    tokio::spawn(sessions.follow(node.clone()));
    let router = Router::new()
        .route("/login/{user}", post(login))
        .route("/logout", post(logout))
        .route("/", get(home))
        .with_state(node.clone());
    let listener = tokio::net::TcpListener::bind(args.http).await?;
    println!("http://{} gossip {}", listener.local_addr()?, node.gossip_address());
    axum::serve(listener, router)
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    node.leave(Duration::from_secs(5)).await;
    Ok(())
}
