//! Swimring itself.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use swimring::forwarder::Outcome;
use swimring::membership::{Name, Preset};
use swimring::runtime::certs;
use swimring::runtime::node::{CallRequest, Swimring};
use swimring::runtime::service::{Request, handler};
use tokio::runtime::Runtime;

use super::figures::Figures;
use super::{BODY, drive, runtime};

/// Two nodes, and a key that the other one owns.
pub(crate) struct Ours {
    client: Runtime,
    _server: Runtime,
    node: Swimring,
    key: String,
    directory: PathBuf,
}

impl Ours {
    pub(crate) fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("swimring-bench-{}", std::process::id()));
        let cluster = Name::new("bench").expect("a name");
        certs::make_authority(&cluster, &directory.join("ca")).expect("an authority");
        for name in ["a", "b"] {
            certs::issue(&directory.join("ca"), &Name::new(name).expect("a name"), &[], 2, &directory.join(name))
                .expect("an identity");
        }
        let (client, server) = (runtime(), runtime());
        let listen: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let echo = || handler(|request: Request| async move { Ok(request.body) });
        let builder = |name: &str| {
            Swimring::builder(directory.join(name)).listen(listen).preset(Preset::Local).quick_service("echo", echo())
        };
        let a = client.block_on(builder("a").start()).expect("a node");
        let b = server.block_on(builder("b").seed(a.gossip_address().to_string()).start()).expect("a node");
        let owner = b.view().me().node;
        while !(a.is_ready() && b.is_ready() && a.view().ring().members().len() == 2) {
            std::thread::yield_now();
        }
        let there = |key: &String| a.owner(key.as_bytes()) == Ok(owner);
        let key = (0..).map(|number| format!("k{number}")).find(there).expect("half of all keys are there");
        Self { client, _server: server, node: a, key, directory }
    }

    pub(crate) fn measure(&self, in_flight: usize, span: Duration) -> Figures {
        let (node, key) = (self.node.clone(), self.key.clone());
        drive(&self.client, in_flight, span, move || {
            let (node, key) = (node.clone(), key.clone());
            async move {
                let answered = node.call(CallRequest::new("echo", key, vec![7; BODY])).await;
                assert!(matches!(answered.outcome, Outcome::Ok(_)), "{answered:?}");
            }
        })
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
