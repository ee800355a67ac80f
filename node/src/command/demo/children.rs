//! The processes of a demo: their certificates, their sockets, their ends.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use hyper::Method;
use hyper::body::Bytes;
use serde::Deserialize;
use swimring::membership::Name;
use swimring::runtime::admin::{AdminAddress, Health, Members, RingLines};
use swimring::runtime::certs;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child as Process, Command};

use super::load::Entry;
use crate::command::client;

/// How long a process may take to say where it listens.
const START_MAX: Duration = Duration::from_secs(10);
/// How long a process may take to be ready.
const READY_MAX: Duration = Duration::from_secs(20);

/// All processes of a demo, and the directory that goes with them.
pub(super) struct Cluster {
    directory: PathBuf,
    children: Vec<Child>,
    started: usize,
}

/// One process.
pub(super) struct Child {
    pub(super) name: String,
    admin: AdminOf,
    gossip: String,
    http: String,
    process: Process,
}

/// The admin endpoint of a process.
#[derive(Clone)]
pub(super) struct AdminOf(AdminAddress);

/// What a process says first.
#[derive(Deserialize)]
struct Listening {
    gossip: String,
    http: String,
    admin: String,
}

impl Cluster {
    /// A directory, an authority, and no process yet.
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut tag = [0; 8];
        getrandom::fill(&mut tag)?;
        let directory = std::env::temp_dir().join(format!("swimring-demo-{:016x}", u64::from_le_bytes(tag)));
        let cluster = Name::new("demo")?;
        certs::make_authority(&cluster, &directory.join("ca"))?;
        Ok(Self { directory, children: Vec::new(), started: 0 })
    }

    /// Starts one more process, with the first living one as its seed.
    pub(super) async fn add(&mut self) -> anyhow::Result<&Child> {
        self.started += 1;
        let name = format!("n{}", self.started);
        let identity = self.directory.join(&name);
        certs::issue(&self.directory.join("ca"), &Name::new(&name)?, &[], 2, &identity)?;
        let seed = self.children.first().map(|child| child.gossip.clone());
        let child = Child::start(name, &identity, seed).await?;
        self.children.push(child);
        Ok(self.last())
    }

    /// Starts a process again that has left, under its name and in its place among the others.
    pub(super) async fn restart(&mut self, index: usize, name: String) -> anyhow::Result<()> {
        let seed = self.children.first().map(|child| child.gossip.clone());
        let child = Child::start(name.clone(), &self.directory.join(&name), seed).await?;
        self.children.insert(index, child);
        self.children[index].wait_ready().await
    }

    pub(super) fn last(&self) -> &Child {
        self.children.last().expect("a process was just started")
    }

    pub(super) fn len(&self) -> usize {
        self.children.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Child> {
        self.children.iter()
    }

    pub(super) fn remove(&mut self, index: usize) -> Child {
        self.children.remove(index)
    }

    /// The doors that the load may use.
    pub(super) fn live(&self) -> Vec<Entry> {
        self.children.iter().map(Child::entry).collect()
    }

    /// Waits until every process sees `count` ready members and all have one view.
    pub(super) async fn wait_for_members(&self, count: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let mut views = Vec::new();
            for child in &self.children {
                let members: Members = child.admin.get("/members").await?;
                let ready =
                    members.members.iter().filter(|member| member.phase == "ready" && member.state == "alive").count();
                views.push((ready, members.view));
            }
            if views.iter().all(|view| *view == views[0]) && views[0].0 == count {
                return Ok(());
            }
            if begun.elapsed() > READY_MAX {
                bail!("{views:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Who owns how many arcs, as the first process sees it.
    pub(super) async fn shares(&self) -> anyhow::Result<Vec<(String, u32)>> {
        let first = self.children.first().context("no process is left")?;
        let ring: RingLines = first.admin.get("/ring").await?;
        Ok(ring.owners.into_iter().collect())
    }

    /// Ends every process, and removes the directory.
    pub(super) async fn end(mut self) {
        for child in &mut self.children {
            let _ = child.kill().await;
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Child {
    async fn start(name: String, identity: &Path, seed: Option<String>) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["node", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--preset", "local"])
            .args(["--log", "error", "--log-format", "json", "--until-stdin-closes", "--name", &name])
            .arg("--identity")
            .arg(identity)
            .arg("--admin")
            .arg(identity.join("admin.sock"));
        if let Some(seed) = seed {
            command.args(["--seed", &seed]);
        }
        for (variable, _) in std::env::vars().filter(|(variable, _)| variable.starts_with("SWIMRING_")) {
            command.env_remove(variable);
        }
        // In a group of its own: Ctrl-C reaches the demo, and the demo ends its children.
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).kill_on_drop(true).spawn()?;
        let stdout = process.stdout.take().context("the output of a process is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(START_MAX, lines.next_line())
            .await
            .map_err(|_| anyhow!("{name} said nothing in time"))??;
        let line = line.with_context(|| format!("{name} ended before it listened"))?;
        let listening: Listening = serde_json::from_str(&line).with_context(|| format!("{name} said {line:?}"))?;
        let admin = AdminOf(listening.admin.parse().map_err(|problem: String| anyhow!(problem))?);
        Ok(Self { name, admin, gossip: listening.gossip, http: listening.http, process })
    }

    pub(super) fn entry(&self) -> Entry {
        Entry { name: self.name.clone(), http: self.http.clone() }
    }

    pub(super) fn clone_admin(&self) -> AdminOf {
        self.admin.clone()
    }

    /// SIGKILL.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.process.kill().await?)
    }

    /// Asks the process to leave, and waits until it has ended.
    pub(super) async fn leave(&mut self) -> anyhow::Result<()> {
        client::ask(&self.admin.0, None, Method::POST, "/leave?wait=true", Bytes::new(), client::PATIENCE).await?;
        tokio::time::timeout(START_MAX, self.process.wait())
            .await
            .map_err(|_| anyhow!("{} does not end", self.name))??;
        Ok(())
    }

    /// How many arcs the process owns.
    pub(super) async fn arcs(&self) -> anyhow::Result<u32> {
        let ring: RingLines = self.admin.get("/ring").await?;
        Ok(ring.owners.get(&self.name).copied().unwrap_or(0))
    }

    pub(super) async fn wait_ready(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < READY_MAX {
            let health: Health = self.admin.get("/health").await?;
            if health.ready {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("{} is not ready in time", self.name)
    }
}

impl AdminOf {
    async fn get<T: for<'a> Deserialize<'a>>(&self, path: &str) -> anyhow::Result<T> {
        let answer = client::ask(&self.0, None, Method::GET, path, Bytes::new(), client::PATIENCE).await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// What the process believes of `name`.
    pub(super) async fn state_of(&self, name: &str) -> Option<String> {
        let members: Members = self.get("/members").await.ok()?;
        members.members.into_iter().find(|member| member.name == name).map(|member| member.state)
    }
}
