//! `swimring node`: one process of a cluster, with the key-value service.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{counter, describe_counter};
use axum::serve::ListenerExt;
use clap::{Args, ValueEnum};
use metrics_exporter_prometheus::PrometheusBuilder;
use swimring::membership::{Event, Name, Preset};
use swimring::runtime::admin::{Admin, AdminAddress, Render};
use swimring::runtime::builder::StartError;
use swimring::runtime::http;
use swimring::runtime::kv::{self, Store};
use swimring::runtime::metrics;
use swimring::runtime::node::Swimring;
use swimring::runtime::service::handler;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder};
use tracing_subscriber::EnvFilter;

use super::{OWN_FAULT, REFUSED, USAGE};

/// Most lines of the log that wait to be written. Whatever comes then is dropped and counted: a thread that waited for a
/// reader of the log would be taken for dead.
const LOG_LINES_MAX: usize = 4_096;
/// How often what was measured is summed up.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
const LOG_LINES_DROPPED: &str = "swimring_log_lines_dropped_total";
/// The longest path that a Unix socket may have everywhere.
const SOCKET_PATH_BYTES_MAX: usize = 100;
/// How long an orderly end may take.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct NodeArgs {
    /// The node's name; its certificate must be for it.
    #[arg(long, env = "SWIMRING_NAME")]
    name: Option<Name>,
    /// The identity directory that `swimring certs issue` made.
    #[arg(long, env = "SWIMRING_IDENTITY")]
    identity: PathBuf,
    /// Where to listen for gossip (UDP). Calls take the next port.
    #[arg(long, env = "SWIMRING_LISTEN", default_value = "127.0.0.1:7946")]
    listen: SocketAddr,
    /// Where to listen for calls (UDP).
    #[arg(long, env = "SWIMRING_LISTEN_CALLS")]
    listen_calls: Option<SocketAddr>,
    /// Under which IP address others reach this node; a name is looked up once, at the start.
    #[arg(long, env = "SWIMRING_ADVERTISE")]
    advertise: Option<String>,
    /// A node of the cluster to ask, HOST:PORT. Without one, this node is a cluster of one.
    #[arg(long = "seed", env = "SWIMRING_SEED", value_delimiter = ',', value_parser = seed)]
    seeds: Vec<String>,
    /// How many members there should be; `health` says when fewer are seen.
    #[arg(long, env = "SWIMRING_EXPECT", default_value_t = 1)]
    expect: usize,
    /// Where to serve the key-value service over HTTP.
    #[arg(long, env = "SWIMRING_HTTP")]
    http: Option<SocketAddr>,
    /// The admin endpoint: the path of a socket to make, or 127.0.0.1:PORT.
    #[arg(long, env = "SWIMRING_ADMIN")]
    admin: Option<AdminAddress>,
    /// The state directory; beside the identity by default.
    #[arg(long, env = "SWIMRING_STATE")]
    state: Option<PathBuf>,
    /// A word for the application, KEY=VALUE. In SWIMRING_TAG commas separate several.
    #[arg(long = "tag", value_parser = tag)]
    tags: Vec<(String, String)>,
    /// The words of the environment, where commas separate them; on the command line a value may hold some.
    #[arg(long, hide = true, env = "SWIMRING_TAG", value_parser = tag, value_delimiter = ',')]
    environment_tags: Vec<(String, String)>,
    /// The node's share of the keys relative to others.
    #[arg(long, env = "SWIMRING_WEIGHT", default_value_t = 1)]
    weight: u16,
    /// The node's failure domain.
    #[arg(long, env = "SWIMRING_ZONE")]
    zone: Option<String>,
    /// How patient the node is with others.
    #[arg(long, env = "SWIMRING_PRESET", value_enum, default_value_t = PresetArg::Lan)]
    preset: PresetArg,
    /// What to log: error, warn, info, debug, trace, or a filter.
    #[arg(long, env = "SWIMRING_LOG", default_value = "info")]
    log: String,
    /// How to log.
    #[arg(long, env = "SWIMRING_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// End when standard input closes.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

#[derive(Copy, Clone, ValueEnum)]
enum PresetArg {
    Lan,
    Wan,
    Local,
}

#[derive(Copy, Clone, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn tag(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a tag is KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

/// Nothing at all is no seed: a variable of the environment may be empty.
fn seed(text: &str) -> Result<String, String> {
    let sound = |(host, port): (&str, &str)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0);
    let sound = text.is_empty() || text.rsplit_once(':').is_some_and(sound);
    if sound { Ok(text.into()) } else { Err("a seed is HOST:PORT".into()) }
}

pub(super) fn run(args: NodeArgs) -> ExitCode {
    let filter = match EnvFilter::try_new(&args.log) {
        Ok(filter) => filter,
        Err(problem) => {
            remark!("swimring: --log {}: {problem}", args.log);
            return ExitCode::from(USAGE);
        }
    };
    let (writer, written) =
        NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES_MAX).lossy(true).finish(std::io::stderr());
    let dropped = writer.error_counter();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(filter)
        .with_writer(writer);
    match args.log_format {
        LogFormat::Text => subscriber.with_target(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(problem) => {
            remark!("swimring: {problem}");
            return ExitCode::from(OWN_FAULT);
        }
    };
    let code = runtime.block_on(serve(args, dropped));
    // A name that is still looked up must not hold the end up.
    runtime.shutdown_background();
    drop(written);
    code
}

fn start_code(problem: &StartError) -> ExitCode {
    match problem {
        StartError::Profile(_) | StartError::Config(_) | StartError::Unspecified(_) | StartError::OtherNode { .. } => {
            ExitCode::from(USAGE)
        }
        _ => ExitCode::from(REFUSED),
    }
}

async fn serve(args: NodeArgs, dropped: ErrorCounter) -> ExitCode {
    let render = match record(dropped) {
        Ok(render) => render,
        Err(problem) => {
            remark!("swimring: {problem}");
            return ExitCode::from(OWN_FAULT);
        }
    };
    let store = Store::default();
    let state = args.state.clone().unwrap_or_else(|| args.identity.join("state"));
    let advertised = match &args.advertise {
        Some(host) => match look_up(host, args.listen).await {
            Ok(address) => Some(address),
            Err(problem) => {
                remark!("swimring: --advertise {host}: {problem}");
                return ExitCode::from(REFUSED);
            }
        },
        None => None,
    };
    // Before the node owns anything: it would have to go at once.
    let http = match listen_http(&args).await {
        Ok(http) => http,
        Err(problem) => {
            remark!("swimring: {problem}");
            return ExitCode::from(REFUSED);
        }
    };
    let node = match start(&args, store.clone(), &state, advertised).await {
        Ok(started) => started,
        Err(problem) => {
            remark!("swimring: {problem}");
            return start_code(&problem);
        }
    };
    let mut events = node.events();
    tokio::spawn(store.follow(node.clone()));
    let (leave, left) = (CancellationToken::new(), CancellationToken::new());
    if let Err(problem) = announce(&args, &node, http, &state, (&leave, &left), &render).await {
        remark!("swimring: {problem}");
        node.leave(GRACE).await;
        return ExitCode::from(REFUSED);
    }
    let orderly = tokio::select! {
        () = node.ended() => {
            remark!("swimring: the gossip of this node has ended by itself");
            return ExitCode::from(OWN_FAULT);
        }
        () = terminated() => true,
        () = leave.cancelled() => true,
        () = stdin_closed(args.until_stdin_closes) => false,
        why = lost_name(&mut events) => {
            node.close().await;
            remark!("swimring: {why}");
            return ExitCode::from(REFUSED);
        }
    };
    if orderly {
        tokio::select! {
            () = node.leave(GRACE) => {}
            () = terminated() => {}
        }
        left.cancel();
        // Whoever waits for the leave gets its answer.
        tokio::time::sleep(Duration::from_millis(50)).await;
    } else {
        node.close().await;
    }
    ExitCode::SUCCESS
}

/// From now on what the library counts is kept, and can be rendered.
fn record(dropped: ErrorCounter) -> anyhow::Result<Arc<Render>> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    metrics::describe();
    describe_counter!(LOG_LINES_DROPPED, "lines of the log that nobody read in time");
    let upkeep = handle.clone();
    tokio::spawn(async move {
        // Values wait to be summed up, whether or not anybody looks.
        let mut turns = tokio::time::interval(UPKEEP_EVERY);
        loop {
            turns.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(Arc::new(move || {
        counter!(LOG_LINES_DROPPED).absolute(dropped.dropped_lines() as u64);
        handle.run_upkeep();
        handle.render()
    }))
}

/// The address that a name stands for: of the family that this node listens on, if it has one.
async fn look_up(host: &str, listen: SocketAddr) -> std::io::Result<IpAddr> {
    let found: Vec<IpAddr> = tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect();
    let fitting = found.iter().find(|address| address.is_ipv4() == listen.is_ipv4()).or(found.first());
    fitting.copied().ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, "it stands for no address"))
}

async fn start(
    args: &NodeArgs,
    store: Store,
    state: &std::path::Path,
    advertised: Option<IpAddr>,
) -> Result<Swimring, StartError> {
    let preset = match args.preset {
        PresetArg::Lan => Preset::Lan,
        PresetArg::Wan => Preset::Wan,
        PresetArg::Local => Preset::Local,
    };
    let mut builder = Swimring::builder(&args.identity)
        .state(state)
        .listen(args.listen)
        .weight(args.weight)
        .preset(preset)
        .quick_service(kv::SERVICE, handler(move |request| store.clone().serve(request)));
    if let Some(name) = &args.name {
        builder = builder.name(name.clone());
    }
    if let Some(address) = args.listen_calls {
        builder = builder.listen_calls(address);
    }
    if let Some(address) = advertised {
        builder = builder.advertise(address);
    }
    if let Some(zone) = &args.zone {
        builder = builder.zone(zone);
    }
    for (key, value) in args.tags.iter().chain(&args.environment_tags) {
        builder = builder.tag(key, value);
    }
    for seed in args.seeds.iter().filter(|seed| !seed.is_empty()) {
        builder = builder.seed(seed);
    }
    builder.start().await
}

async fn listen_http(args: &NodeArgs) -> anyhow::Result<Option<tokio::net::TcpListener>> {
    let Some(address) = args.http else { return Ok(None) };
    let bound = tokio::net::TcpListener::bind(address).await;
    bound.map(Some).map_err(|problem| anyhow::anyhow!("cannot listen on {address}: {problem}"))
}

/// Serves HTTP, opens admin, and says where everything listens.
async fn announce(
    args: &NodeArgs,
    node: &Swimring,
    listener: Option<tokio::net::TcpListener>,
    state: &std::path::Path,
    (leave, left): (&CancellationToken, &CancellationToken),
    render: &Arc<Render>,
) -> anyhow::Result<()> {
    let mut http = None;
    if let Some(listener) = listener {
        http = Some(listener.local_addr()?);
        let router = http::router(node.clone());
        // Small answers must not wait for an acknowledgement.
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
    }
    let wanted = args.admin.clone().unwrap_or_else(|| default_admin(node, state));
    let token = state.join("admin.token");
    let admin = Admin::new(node.clone(), args.expect, leave.clone(), left.clone()).metrics(Arc::clone(render));
    let admin = admin.listen(&wanted, &token).await.map_err(|e| anyhow::anyhow!("cannot listen on {wanted}: {e}"))?;
    let (gossip, calls) = (node.gossip_address(), node.calls_address()?);
    match args.log_format {
        LogFormat::Json => {
            let line = serde_json::json!({
                "event": "listening",
                "gossip": gossip.to_string(),
                "calls": calls.to_string(),
                "http": http.map(|http| http.to_string()),
                "admin": admin.to_string(),
            });
            say!("{line}");
        }
        LogFormat::Text => {
            say!("node {} of cluster {}", node.name(), node.cluster());
            say!("gossip {gossip}  calls {calls}");
            if let Some(http) = http {
                say!("http   http://{http}/kv/");
            }
            match &admin {
                AdminAddress::Tcp(_) => say!("admin  {admin}, with the token in {}", token.display()),
                AdminAddress::Socket(_) => say!("admin  {admin}"),
            }
        }
    }
    Ok(())
}

fn default_admin(node: &Swimring, state: &std::path::Path) -> AdminAddress {
    let file = format!("swimring-{}-{}.sock", node.cluster(), node.name());
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    let path = runtime.map_or_else(|| state.to_path_buf(), PathBuf::from).join(file);
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return AdminAddress::Socket(path);
    }
    AdminAddress::Socket(path.with_file_name(format!("swimring-{}.sock", node.view().me().node)))
}

async fn terminated() {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn stdin_closed(watch: bool) {
    if !watch {
        return std::future::pending().await;
    }
    // A thread of its own: the runtime would wait for a read that never ends.
    let (closed, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = closed.send(());
    });
    let _ = wait.await;
}

/// Ends when this process must not go on under its name.
async fn lost_name(events: &mut tokio::sync::broadcast::Receiver<Event>) -> String {
    loop {
        match events.recv().await {
            Ok(Event::NameTaken { holder }) => {
                return format!("a live process at {} has this name", holder.address);
            }
            Ok(Event::Superseded { by }) => {
                return format!("a newer process at {by} has this name; its keys are given up");
            }
            Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
            Err(tokio::sync::broadcast::error::RecvError::Closed) => {
                return std::future::pending().await;
            }
        }
    }
}
