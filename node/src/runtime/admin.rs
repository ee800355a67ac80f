//! The admin endpoint: what a node knows, as JSON, and the few things an operator may ask of it.
//!
//! A Unix socket that only its owner may use, or TCP on loopback with a token and a Host check.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use swimring_membership::{Member, Phase, State as MemberState};
use tokio_util::sync::CancellationToken;

use super::certs::random;
use super::http;
use super::node::Swimring;

/// Where a node is administered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AdminAddress {
    /// A Unix socket.
    Socket(PathBuf),
    /// TCP on loopback.
    Tcp(std::net::SocketAddr),
}

impl std::str::FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<std::net::SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Tcp(address)),
            Ok(address) => Err(format!("{address} is not on loopback: the admin endpoint is for this machine only")),
            Err(_) if text.is_empty() => Err("it is empty".into()),
            Err(_)
                if !text.contains('/')
                    && text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
            {
                Err("an address on loopback is written as a number, 127.0.0.1:PORT; a socket is a path".into())
            }
            Err(_) => Ok(Self::Socket(text.into())),
        }
    }
}

impl std::fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// What the endpoint serves.
#[derive(Clone)]
pub struct Admin {
    node: Swimring,
    /// How many members there should be.
    expect: usize,
    /// Cancelled when an operator asks the node to leave.
    leave: CancellationToken,
    /// Cancelled when it has left.
    left: CancellationToken,
    /// Renders what was counted.
    metrics: Option<Arc<Render>>,
}

/// Renders what a recorder has counted, in the text format of Prometheus.
pub type Render = dyn Fn() -> String + Send + Sync;

/// A member, as `members` lists it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberLine {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// What is believed of it.
    pub state: String,
    /// Whether it takes keys.
    pub phase: String,
    /// `BOOT.COUNT`.
    pub incarnation: String,
    /// Where it listens for gossip.
    pub gossip: String,
    /// Where it listens for calls.
    pub calls: String,
    /// Its failure domain.
    pub zone: Option<String>,
    /// Its share relative to others.
    pub weight: u16,
    /// The application's words.
    pub tags: BTreeMap<String, String>,
    /// How many arcs it owns.
    pub arcs: u32,
    /// Which share of all arcs that is.
    pub share: f64,
}

/// What `members` answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Members {
    /// The cluster.
    pub cluster: String,
    /// The node that answers.
    #[serde(rename = "self")]
    pub own: String,
    /// The digest of its view; nodes that agree have the same.
    pub view: String,
    /// Every member, by name.
    pub members: Vec<MemberLine>,
}

/// What `health` answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Health {
    /// Whether the node is in its cluster, takes keys, and sees as many members as expected.
    pub ready: bool,
    /// What is missing for that.
    pub missing: Vec<String>,
    /// Members by state.
    pub members: BTreeMap<String, usize>,
    /// How often the view has changed, suspicions included.
    pub views: u64,
}

/// What `lookup` answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lookup {
    /// The key, as text.
    pub key: String,
    /// Its place on the ring.
    pub hash: String,
    /// Its arc.
    pub arc: u32,
    /// Who owns it.
    pub owner: Option<String>,
    /// Who would come next.
    pub replicas: Vec<String>,
    /// The digest of the view.
    pub view: String,
}

/// What `ring` answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RingLines {
    /// How many arcs there are.
    pub arcs: u32,
    /// The digest of everything that decides who owns what.
    pub digest: String,
    /// Arcs by owner.
    pub owners: BTreeMap<String, u32>,
    /// The largest share over the mean one.
    pub max_over_mean: f64,
}

impl Admin {
    /// Serves `node`, which should see `expect` members.
    pub fn new(node: Swimring, expect: usize, leave: CancellationToken, left: CancellationToken) -> Self {
        Self { node, expect, leave, left, metrics: None }
    }

    /// Serves what a recorder counts, too.
    #[must_use]
    pub fn metrics(mut self, render: Arc<Render>) -> Self {
        self.metrics = Some(render);
        self
    }

    fn router(self) -> Router {
        let kv = http::router(self.node.clone());
        Router::new()
            .route("/members", get(members))
            .route("/ring", get(ring))
            .route("/lookup", get(lookup))
            .route("/health", get(health))
            .route("/leave", post(leave))
            .route("/metrics", get(metrics))
            .with_state(self)
            .merge(kv)
    }

    /// Listens until the process ends. Returns where.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn listen(self, address: &AdminAddress, token_file: &Path) -> io::Result<AdminAddress> {
        match address {
            AdminAddress::Socket(path) => {
                let listener = unix_listener(path).await?;
                let router = self.router();
                tokio::spawn(async move { axum::serve(listener, router).await });
                Ok(address.clone())
            }
            AdminAddress::Tcp(address) if !address.ip().is_loopback() => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "the admin endpoint is for this machine only"))
            }
            AdminAddress::Tcp(address) => {
                let listener = tokio::net::TcpListener::bind(address).await?;
                let address = listener.local_addr()?;
                let token = write_token(token_file)?;
                let guard = move |request: Request, next: Next| {
                    let token = token.clone();
                    async move {
                        if is_allowed(&request, &token) {
                            return next.run(request).await;
                        }
                        super::metrics::http_refused("token");
                        denied()
                    }
                };
                let router = self.router().layer(middleware::from_fn(guard));
                tokio::spawn(async move { axum::serve(listener, router).await });
                Ok(AdminAddress::Tcp(address))
            }
        }
    }
}

/// A socket of 0600; one that a dead process left is replaced, one of a live process is not.
async fn unix_listener(path: &Path) -> io::Result<tokio::net::UnixListener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let in_use = |why| Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    match std::fs::symlink_metadata(path) {
        Ok(held) if !held.file_type().is_socket() => return in_use("there is a file that is no socket"),
        Ok(_) => match tokio::net::UnixStream::connect(path).await {
            Ok(_) => return in_use("another process administers here"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        },
        Err(_) => {}
    }
    let listener = tokio::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A new token in a new file of 0600, whatever lay there before.
fn write_token(path: &Path) -> io::Result<String> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut bytes = [0; 32];
    random(&mut bytes);
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(token.as_bytes())?;
    Ok(token)
}

/// The token must be right, and the browser that a page drives must not be talking to another name.
fn is_allowed(request: &Request, token: &str) -> bool {
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = bearer.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let host = request.headers().get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let local = name == "localhost" || host.parse::<std::net::SocketAddr>().is_ok_and(|host| host.ip().is_loopback());
    // blake3 compares in constant time.
    local && blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes())
}

fn denied() -> Response {
    (StatusCode::UNAUTHORIZED, "the admin token is missing or wrong, or the host is not this machine\n").into_response()
}

fn state_name(state: MemberState) -> &'static str {
    match state {
        MemberState::Alive => "alive",
        MemberState::Suspect => "suspect",
        MemberState::Down => "down",
        MemberState::Left => "left",
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Joining => "joining",
        Phase::Ready => "ready",
        Phase::Draining => "draining",
    }
}

fn line(member: &Member, arcs: u32, all: u32) -> MemberLine {
    let profile = member.record.profile();
    MemberLine {
        name: profile.name.to_string(),
        id: member.record.id().to_string(),
        state: state_name(member.state).into(),
        phase: phase_name(member.record.phase()).into(),
        incarnation: member.incarnation.to_string(),
        gossip: profile.gossip.to_string(),
        calls: profile.calls.to_string(),
        zone: profile.zone.clone(),
        weight: profile.weight,
        tags: profile.tags.iter().cloned().collect(),
        arcs,
        share: f64::from(arcs) / f64::from(all),
    }
}

async fn members(State(admin): State<Admin>) -> Json<Members> {
    let view = admin.node.view();
    let ring = view.ring();
    let counts: BTreeMap<_, _> = ring.members().iter().map(|member| member.id).zip(ring.owned_counts()).collect();
    let arcs = |member: &Member| counts.get(&member.record.id()).copied().unwrap_or(0);
    let mut members: Vec<MemberLine> = view.members().map(|member| line(member, arcs(member), ring.arcs())).collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Json(Members {
        cluster: admin.node.cluster().to_string(),
        own: admin.node.name().to_string(),
        view: format!("{:032x}", view.digest()),
        members,
    })
}

async fn ring(State(admin): State<Admin>) -> Json<RingLines> {
    let view = admin.node.view();
    let ring = view.ring();
    let name = |id| view.member(id).map(|member| member.record.profile().name.to_string()).unwrap_or_default();
    let owners: BTreeMap<String, u32> =
        ring.members().iter().map(|member| name(member.id)).zip(ring.owned_counts()).collect();
    let weights: u32 = ring.members().iter().map(|member| u32::from(member.weight)).sum();
    let over = ring.members().iter().zip(ring.owned_counts()).map(|(member, arcs)| {
        f64::from(arcs) * f64::from(weights) / f64::from(ring.arcs()) / f64::from(member.weight.max(1))
    });
    Json(RingLines {
        arcs: ring.arcs(),
        digest: format!("{:032x}", ring.digest()),
        owners,
        max_over_mean: over.fold(0.0, f64::max),
    })
}

#[derive(Deserialize)]
struct Key {
    key: String,
}

async fn lookup(State(admin): State<Admin>, Query(Key { key }): Query<Key>) -> Response {
    if key.is_empty() || key.len() > swimring_ring::KEY_BYTES_MAX {
        return http::bad_key();
    }
    let view = admin.node.view();
    let hash = admin.node.hash(key.as_bytes());
    let name = |id| view.member(id).map(|member| member.record.profile().name.to_string()).unwrap_or_default();
    let mut order: Vec<String> = view.ring().owners(hash, 3).into_iter().map(|owner| name(owner.id)).collect();
    let owner = (!order.is_empty()).then(|| order.remove(0));
    Json(Lookup {
        key,
        hash: format!("{hash:?}"),
        arc: view.ring().arc(hash).0,
        owner,
        replicas: order,
        view: format!("{:032x}", view.digest()),
    })
    .into_response()
}

async fn health(State(admin): State<Admin>) -> Json<Health> {
    let view = admin.node.view();
    let mut members: BTreeMap<String, usize> = ["alive", "suspect", "down", "left"].map(|name| (name.into(), 0)).into();
    for member in view.members() {
        *members.entry(state_name(member.state).into()).or_insert(0) += 1;
    }
    let mut missing = Vec::new();
    if !admin.node.is_ready() {
        missing.push("this node does not take keys yet".to_owned());
    }
    let present = members["alive"] + members["suspect"];
    if present < admin.expect {
        missing.push(format!("{present} of {} expected members are seen", admin.expect));
    }
    Json(Health { ready: missing.is_empty(), missing, members, views: view.version() })
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match &admin.metrics {
        Some(render) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], render()).into_response(),
        None => (StatusCode::NOT_FOUND, "this process records nothing\n").into_response(),
    }
}

#[derive(Deserialize)]
struct Wait {
    #[serde(default)]
    wait: bool,
}

async fn leave(State(admin): State<Admin>, Query(Wait { wait }): Query<Wait>) -> StatusCode {
    admin.leave.cancel();
    if wait {
        let _ = tokio::time::timeout(Duration::from_secs(60), admin.left.cancelled()).await;
        // The answer goes out before the process ends.
        tokio::task::yield_now().await;
    }
    StatusCode::NO_CONTENT
}
