//! The example that the documentation shows, as a reader would try it: two instances, one session.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::harness::{SOON, Site, eventually, exchange, text};

struct Instance {
    process: Child,
    http: String,
    gossip: String,
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Instance {
    fn start(site: &Site, name: &str, seed: Option<&Self>) -> Self {
        site.issue("ca", name, name, "2");
        let mut command = Command::new(program());
        command.args(["--identity", &site.at(name)]);
        if let Some(seed) = seed {
            command.args(["--seed", &seed.gossip]);
        }
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("it is piped")).read_line(&mut line).expect("it says where");
        let words: Vec<&str> = line.split_whitespace().collect();
        let http = words[0].strip_prefix("http://").expect("an address").to_owned();
        Self { process, http, gossip: words[2].to_owned() }
    }

    fn ask(&self, method: &str, path: &str, cookie: &str) -> (u16, String, String) {
        let stream = std::net::TcpStream::connect(&self.http).expect("HTTP listens");
        let answer = exchange(stream, method, path, &[("cookie", cookie)], b"").expect("HTTP answers");
        (answer.status, answer.head, text(&answer.body))
    }
}

/// Cargo builds the examples of a package beside its tests, but not for a single test target.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a file");
    let directory = own.ancestors().nth(2).expect("tests are in target/PROFILE/deps");
    let program = directory.join("examples/sessions");
    if !program.exists() {
        let release = directory.ends_with("release").then_some("--release");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "--example", "sessions"]).args(release);
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
        assert!(built.status.success(), "{}", text(&built.stderr));
    }
    program
}

#[test]
fn a_session_that_began_at_one_instance_goes_on_at_the_other() {
    let site = Site::new();
    let a = Instance::start(&site, "a", None);
    let b = Instance::start(&site, "b", Some(&a));
    // Until both own sessions, one may begin where it does not stay.
    let mut visits = 0;
    let cookie = eventually("a session that stays", SOON, || {
        let (status, head, _) = a.ask("POST", "/login/ada", "");
        let id = head.split("session=").nth(1)?.split(';').next()?.to_owned();
        let cookie = format!("session={id}");
        visits = 0;
        let stays = (0..6).all(|turn| {
            visits += 1;
            let (status, _, body) = [&a, &b][turn % 2].ask("GET", "/", &cookie);
            status == 200 && body.starts_with(&format!("ada, this is visit {visits};"))
        });
        (status == 200 && stays).then_some(cookie)
    });
    assert_eq!(b.ask("POST", "/logout", &cookie).0, 200);
    assert_eq!(a.ask("GET", "/", &cookie).0, 401);
}
