//! The command line: what is asked, and which exit code answers.

/// Prints a line. Whoever reads no more (`| head`) has seen enough.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stdout(), $($part)*);
    }};
}

/// Prints a line on standard error. Whoever reads that no more loses what is said there, and nothing else.
macro_rules! remark {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

mod admin;
mod client;
mod demo;
mod node;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use swimring::membership::Name;
use swimring::runtime::admin::AdminAddress;
use swimring::runtime::certs;

/// Something is wrong: the check failed, or the key has no owner.
const WRONG: u8 = 1;
/// The command was used wrongly.
const USAGE: u8 = 2;
/// Not reachable, or refused.
const REFUSED: u8 = 3;
/// Our own fault.
const OWN_FAULT: u8 = 4;

/// Peer-to-peer cluster membership and sharding over QUIC.
#[derive(Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes certificates: an authority for a cluster, and identities for its nodes.
    #[command(subcommand)]
    Certs(Certs),
    /// Runs a node with the built-in key-value service.
    Node(Box<node::NodeArgs>),
    /// Starts a cluster of processes on this machine, loads it, kills one, and shows what happens.
    Demo(demo::DemoArgs),
    /// Lists the members that a node knows.
    Members(At),
    /// Shows who owns how much.
    Ring(At),
    /// Shows who owns a key.
    Lookup {
        /// The key.
        key: String,
        #[command(flatten)]
        at: At,
    },
    /// Stores a value.
    Put {
        /// The key.
        key: String,
        /// The value, or `-` for standard input.
        value: String,
        #[command(flatten)]
        at: At,
    },
    /// Prints a value.
    Get {
        /// The key.
        key: String,
        #[command(flatten)]
        at: At,
    },
    /// Forgets a value.
    Del {
        /// The key.
        key: String,
        #[command(flatten)]
        at: At,
    },
    /// Tells whether a node is ready, and what is missing.
    Health(At),
    /// Has a node leave in an orderly way.
    Leave {
        /// Wait until it has.
        #[arg(long, env = "SWIMRING_WAIT", value_parser = clap::builder::FalseyValueParser::new())]
        wait: bool,
        #[command(flatten)]
        at: At,
    },
}

/// Which node is asked, and how it answers.
#[derive(Args)]
struct At {
    /// The node's admin endpoint: the path of its socket, or 127.0.0.1:PORT.
    #[arg(long, env = "SWIMRING_ADMIN")]
    admin: AdminAddress,
    /// The file with the token of an admin endpoint on TCP.
    #[arg(long, env = "SWIMRING_ADMIN_TOKEN")]
    admin_token: Option<PathBuf>,
    /// One JSON object on standard output.
    #[arg(long, env = "SWIMRING_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

#[derive(Subcommand)]
enum Certs {
    /// Makes an authority and the cluster's secret.
    Ca {
        /// The cluster's name.
        #[arg(long, env = "SWIMRING_CLUSTER")]
        cluster: Name,
        /// The directory to make.
        #[arg(long, env = "SWIMRING_OUT")]
        out: PathBuf,
    },
    /// Makes the identity directory of a node.
    Issue {
        /// The authority's directory.
        #[arg(long, env = "SWIMRING_CA")]
        ca: PathBuf,
        /// The node's name.
        #[arg(long, env = "SWIMRING_NAME")]
        name: Name,
        /// The directory to make.
        #[arg(long, env = "SWIMRING_OUT")]
        out: PathBuf,
        /// A further DNS name or IP address of the node.
        #[arg(long = "host", env = "SWIMRING_HOST", value_delimiter = ',')]
        hosts: Vec<String>,
        /// How long the certificate is valid, in days.
        #[arg(long, env = "SWIMRING_DAYS", default_value_t = 365, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-36_500..=36_500))]
        days: i64,
    },
    /// Says what a certificate is for.
    Show {
        /// The certificate's file.
        file: PathBuf,
    },
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let (at, request) = match cli.command {
        Command::Certs(certs) => return certs_command(&certs),
        Command::Node(args) => return node::run(*args),
        Command::Demo(args) => return demo::run(&args),
        Command::Members(at) => (at, admin::Request::Members),
        Command::Ring(at) => (at, admin::Request::Ring),
        Command::Lookup { key, at } => (at, admin::Request::Lookup(key)),
        Command::Put { key, value, at } => (at, admin::Request::Put(key, value)),
        Command::Get { key, at } => (at, admin::Request::Get(key)),
        Command::Del { key, at } => (at, admin::Request::Del(key)),
        Command::Health(at) => (at, admin::Request::Health),
        Command::Leave { wait, at } => (at, admin::Request::Leave { wait }),
    };
    admin::run(&at, request)
}

fn certs_command(command: &Certs) -> ExitCode {
    let result = match command {
        Certs::Ca { cluster, out } => certs::make_authority(cluster, out).map(|()| {
            remark!("made the authority of cluster {cluster} in {}: keep ca.key and cluster.key secret", out.display());
        }),
        Certs::Issue { ca, name, out, hosts, days } => certs::issue(ca, name, hosts, *days, out).map(|()| {
            remark!("made the identity of node {name} in {}", out.display());
        }),
        Certs::Show { file } => certs::describe(file).map(|text| say!("{text}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            remark!("swimring: {problem}");
            ExitCode::from(REFUSED)
        }
    }
}
