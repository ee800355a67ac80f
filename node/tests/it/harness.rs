//! Processes, their directories and their admin sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use serde_json::Value;

/// The command under test.
pub(crate) fn swimring() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swimring"));
    std::env::vars().filter(|(name, _)| name.starts_with("SWIMRING_")).for_each(|(name, _)| {
        command.env_remove(name);
    });
    command.env_remove("XDG_RUNTIME_DIR");
    command
}

/// Runs the command to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    swimring().args(arguments).stdin(Stdio::null()).output().expect("the command runs")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `look` gives something, at most `patience`.
pub(crate) fn eventually<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begun.elapsed() < patience, "waited {patience:?} for: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Patience for what takes a moment; machines under test are slow.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A directory that goes with the test, and an authority in it.
pub(crate) struct Site {
    pub(crate) path: PathBuf,
}

impl Site {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("swimring-it-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory can be made");
        let site = Self { path };
        site.authority("ca", "test");
        site
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.path.join(name).to_string_lossy().into_owned()
    }

    pub(crate) fn authority(&self, directory: &str, cluster: &str) {
        let made = run(&["certs", "ca", "--cluster", cluster, "--out", &self.at(directory)]);
        assert!(made.status.success(), "{}", text(&made.stderr));
    }

    /// Makes the identity of `name` in `directory`.
    pub(crate) fn issue(&self, authority: &str, name: &str, directory: &str, days: &str) {
        let (ca, out) = (self.at(authority), self.at(directory));
        let made = run(&["certs", "issue", "--ca", &ca, "--name", name, "--out", &out, "--days", days]);
        assert!(made.status.success(), "{}", text(&made.stderr));
    }

    /// Makes an identity as another cluster of the same authority would.
    pub(crate) fn issue_for(&self, authority: &str, cluster: &str, name: &str, directory: &str) {
        self.issue(authority, name, directory, "2");
        let read = |file: &str| std::fs::read_to_string(self.path.join(authority).join(file)).expect("it was made");
        let key = KeyPair::from_pem(&read("ca.key")).expect("a key");
        let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), key).expect("an authority");
        let own = std::fs::read_to_string(self.path.join(directory).join("node.key")).expect("it was made");
        let mut params = CertificateParams::default();
        let uri = format!("swimring://{cluster}/{name}").try_into().expect("ASCII");
        params.subject_alt_names.push(SanType::URI(uri));
        let made = params.signed_by(&KeyPair::from_pem(&own).expect("a key"), &issuer).expect("it can be signed");
        std::fs::write(self.path.join(directory).join("node.pem"), made.pem()).expect("it can be written");
    }

    /// Starts the node `name`, with a new identity if it has none, on ports of the system's choice.
    pub(crate) fn start(&self, name: &str, seeds: &[&Node]) -> Node {
        if !Path::new(&self.at(name)).exists() {
            self.issue("ca", name, name, "2");
        }
        let seeds: Vec<String> = seeds.iter().map(|seed| seed.gossip.clone()).collect();
        self.start_with(name, name, &seeds, &[]).expect("the node says where it listens")
    }

    /// Starts a node with more arguments; none if it ends before it listens.
    pub(crate) fn start_with(&self, identity: &str, socket: &str, seeds: &[String], more: &[&str]) -> Option<Node> {
        Node::start(self.node(identity, socket, seeds, more), self.path.join(format!("{socket}.log")))
    }

    /// The command that starts a node.
    pub(crate) fn node(&self, identity: &str, socket: &str, seeds: &[String], more: &[&str]) -> Command {
        let mut command = swimring();
        command.args(["node", "--http", "127.0.0.1:0", "--log-format", "json", "--identity", &self.at(identity)]);
        if !more.contains(&"--preset") {
            command.args(["--preset", "local"]);
        }
        if !more.contains(&"--admin") {
            command.args(["--admin", &self.at(&format!("{socket}.sock"))]);
        }
        if !more.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        seeds.iter().for_each(|seed| {
            command.args(["--seed", seed]);
        });
        command.args(more).stdin(Stdio::null());
        command
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A running node. Ends with the test.
pub(crate) struct Node {
    pub(crate) admin: PathBuf,
    pub(crate) gossip: String,
    /// Everywhere it listens for other nodes.
    pub(crate) places: Vec<String>,
    http: Option<String>,
    log: PathBuf,
    pub(crate) process: Child,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An answer over HTTP.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Node {
    /// Ends it without a word, and waits until it has gone: whoever comes next may want its state directory.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it ends");
    }

    /// Starts a process that says as a line of JSON where it listens; none if it ends before.
    pub(crate) fn start(mut command: Command, log: PathBuf) -> Option<Self> {
        let file = std::fs::File::create(&log).expect("a log can be made");
        command.stderr(file);
        Self::start_as_told(command, log)
    }

    /// The same, with its log wherever the command sends it.
    pub(crate) fn start_as_told(mut command: Command, log: PathBuf) -> Option<Self> {
        let mut process = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let output = BufReader::new(process.stdout.take().expect("the output is piped"));
        let mut lines = output.lines().map_while(Result::ok);
        let Some(said) = lines.find_map(|line| serde_json::from_str::<Value>(&line).ok()) else {
            let _ = process.wait();
            return None;
        };
        // Whatever else it writes must not stop it.
        std::thread::spawn(move || lines.for_each(drop));
        let word = |key: &str| said[key].as_str().map(str::to_owned);
        let gossip = word("gossip").expect("every node listens for gossip");
        Some(Self {
            admin: PathBuf::from(word("admin").expect("every node has an admin endpoint")),
            places: [Some(gossip.clone()), word("calls")].into_iter().flatten().collect(),
            gossip,
            http: word("http"),
            log,
            process,
        })
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log says something.
    pub(crate) fn says(&self, part: &str) {
        eventually(part, SOON, || self.log().contains(part).then_some(()));
    }

    /// Asks the admin socket; none if nobody answers.
    pub(crate) fn ask(&self, path: &str) -> Option<Value> {
        let stream = UnixStream::connect(&self.admin).ok()?;
        serde_json::from_slice(&exchange(stream, "GET", path, &[], b"")?.body).ok()
    }

    /// What it has counted under a name with these labels.
    pub(crate) fn counted(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let page =
            UnixStream::connect(&self.admin).ok().and_then(|stream| exchange(stream, "GET", "/metrics", &[], b""));
        let page = text(&page.expect("the admin endpoint answers").body);
        let has = |line: &str, (label, value): &(&str, &str)| line.contains(&format!("{label}=\"{value}\""));
        let of_name = |line: &&str| line.split(['{', ' ']).next() == Some(name);
        let lines = page.lines().filter(of_name).filter(|line| labels.iter().all(|label| has(line, label)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Waits until it has counted this much.
    pub(crate) fn counts(&self, name: &str, labels: &[(&str, &str)], count: u64) {
        let what = format!("{name}{labels:?} to be {count}");
        eventually(&what, SOON, || (self.counted(name, labels) == count).then_some(()));
    }

    /// Waits until it has counted something.
    pub(crate) fn counts_some(&self, name: &str, labels: &[(&str, &str)]) {
        eventually(&format!("{name}{labels:?}"), SOON, || (self.counted(name, labels) > 0).then_some(()));
    }

    /// A connection to the key-value service over HTTP.
    pub(crate) fn http_stream(&self) -> TcpStream {
        TcpStream::connect(self.http.as_ref().expect("it serves HTTP")).expect("HTTP listens")
    }

    /// A request to the key-value service, over HTTP or, without it, over the admin socket.
    pub(crate) fn http(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let answer = match &self.http {
            Some(_) => exchange(self.http_stream(), method, path, &[], body),
            None => exchange(UnixStream::connect(&self.admin).expect("admin listens"), method, path, &[], body),
        };
        answer.expect("HTTP answers")
    }

    pub(crate) fn put(&self, key: &str, value: &str) -> u16 {
        self.http("PUT", &format!("/kv/{key}"), value.as_bytes()).status
    }

    pub(crate) fn get(&self, key: &str) -> Option<String> {
        let answer = self.http("GET", &format!("/kv/{key}"), b"");
        (answer.status == 200).then(|| text(&answer.body))
    }

    /// What it believes of the node `name`: state and phase.
    pub(crate) fn believes(&self, name: &str) -> Option<(String, String)> {
        let members = self.ask("/members")?;
        let member = members["members"].as_array()?.iter().find(|member| member["name"] == name)?.clone();
        Some((member["state"].as_str()?.to_owned(), member["phase"].as_str()?.to_owned()))
    }

    pub(crate) fn incarnation(&self, name: &str) -> Option<String> {
        let members = self.ask("/members")?;
        let member = members["members"].as_array()?.iter().find(|member| member["name"] == name)?.clone();
        Some(member["incarnation"].as_str()?.to_owned())
    }

    pub(crate) fn waits_for(&self, name: &str, state: &str) {
        let what = format!("{name} {state} at {}", self.admin.display());
        eventually(&what, SOON, || self.believes(name).filter(|(seen, _)| seen == state));
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill {signal}");
    }

    /// Waits until the process has ended, and gives its exit code.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        eventually("the process ends", SOON, || self.process.try_wait().ok().flatten()).code()
    }
}

/// Waits until all see the same `count` ready members, and nobody else.
pub(crate) fn agree(nodes: &[&Node], count: usize) {
    eventually(&format!("{} nodes agree on {count} members", nodes.len()), SOON, || {
        let views: Vec<Value> = nodes.iter().filter_map(|node| node.ask("/members")).collect();
        let ready = |view: &Value| {
            let members = view["members"].as_array().map(Vec::as_slice).unwrap_or_default();
            members.iter().filter(|member| member["state"] == "alive" && member["phase"] == "ready").count()
        };
        let same = views.len() == nodes.len()
            && views.iter().all(|view| view["view"] == views[0]["view"] && ready(view) == count);
        same.then_some(())
    });
}

pub(crate) fn exchange(
    stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<Answer> {
    exchange_with(stream, "localhost", method, path, headers, body)
}

/// The same, of a host with this name.
pub(crate) fn exchange_with(
    mut stream: impl Read + Write,
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<Answer> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    // The other end may have refused the body before its end.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let split = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = text(&answer[..split]).to_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head, body: answer[split + 4..].to_vec() })
}
