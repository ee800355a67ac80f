//! The state directory: what a node must not forget, written atomically.
//!
//! A lost, torn or copied directory is survived: the boot begins again and the cluster says how far it had
//! come; a boot is in use by one process at a time because names are.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use swimring_membership::{NodeId, Peer};

use super::metrics;

/// How far ahead of what was minted the stored fence is: so often it is written.
const FENCES_AHEAD: u64 = 1_000;
/// Most states that wait to be written; only the last of them is.
const WAITING_MAX: usize = 16;
/// Most contacts stored.
const CONTACTS_MAX: usize = 256;

/// A state directory.
#[derive(Debug)]
pub(crate) struct State {
    stored: Stored,
    /// The fence that was found.
    fence: u64,
    writer: Writer,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Stored {
    /// The cluster and the name, so that a directory of another node is noticed.
    id: String,
    boot: u32,
    /// No fence above this one was minted.
    #[serde(default)]
    fence: u64,
    contacts: Vec<(String, SocketAddr)>,
}

/// What was found in the directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// The last life's state.
    Kept,
    /// Nothing.
    New,
    /// Something else than state of this node; it was set aside.
    Unusable(String),
}

impl State {
    /// Opens (or makes) the directory and raises the boot for this life.
    pub(crate) fn open(directory: &Path, id: NodeId) -> io::Result<(Self, Found)> {
        fs::create_dir_all(directory)?;
        let path = directory.join("state.json");
        let (mut stored, found) = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Stored>(&bytes) {
                Ok(stored) if stored.id == id.to_string() => (stored, Found::Kept),
                Ok(_) => (Stored::default(), Found::Unusable("it belongs to another node".into())),
                Err(problem) => (Stored::default(), Found::Unusable(problem.to_string())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Stored::default(), Found::New),
            Err(error) => return Err(error),
        };
        if matches!(found, Found::Unusable(_)) {
            fs::rename(&path, directory.join("state.json.unusable"))?;
        }
        stored.id = id.to_string();
        stored.boot = stored.boot.saturating_add(1);
        let fence = stored.fence;
        stored.fence = fence.saturating_add(FENCES_AHEAD);
        write(&path, &stored)?;
        Ok((Self { stored, fence, writer: Writer::start(path)? }, found))
    }

    /// This life's boot.
    pub(crate) fn boot(&self) -> u32 {
        self.stored.boot
    }

    /// The last life minted no fence above this one.
    pub(crate) fn fence(&self) -> u64 {
        self.fence
    }

    /// This fence was minted. What is stored stays ahead of it by far.
    pub(crate) fn store_fence(&mut self, fence: u64) {
        let is_near = fence.saturating_add(FENCES_AHEAD / 2) > self.stored.fence;
        if is_near {
            self.stored.fence = fence.saturating_add(FENCES_AHEAD);
            self.submit(true);
        }
    }

    /// Whom the last life knew.
    pub(crate) fn contacts(&self) -> Vec<Peer> {
        let peer = |(id, address): &(String, SocketAddr)| {
            let id = u128::from_str_radix(id, 16).ok().map(NodeId::from_u128)?;
            Some(Peer { id, address: *address })
        };
        self.stored.contacts.iter().filter_map(peer).collect()
    }

    /// The boot was raised while running.
    pub(crate) fn store_boot(&mut self, boot: u32) {
        self.stored.boot = boot;
        self.submit(true);
    }

    /// Whom this life knows.
    pub(crate) fn store_contacts(&mut self, contacts: impl Iterator<Item = Peer>) {
        let contacts: Vec<_> = contacts.take(CONTACTS_MAX).map(|peer| (peer.id.to_string(), peer.address)).collect();
        let is_new = contacts != self.stored.contacts;
        self.stored.contacts = contacts;
        self.submit(is_new);
    }

    /// Has the writer store what is known now, if it is new or could not be stored before.
    fn submit(&self, is_new: bool) {
        if (self.writer.failed.swap(false, Ordering::Relaxed) || is_new)
            && self.writer.latest.as_ref().is_some_and(|latest| latest.try_send(self.stored.clone()).is_err())
        {
            // The disk is slow: the next one has it all.
            self.writer.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// The thread that writes: a disk that stands still holds up no probe.
#[derive(Debug)]
struct Writer {
    latest: Option<SyncSender<Stored>>,
    /// The last one could not be stored.
    failed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(path: PathBuf) -> io::Result<Self> {
        let (latest, waiting) = sync_channel::<Stored>(WAITING_MAX);
        let failed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&failed);
        let run = move || {
            let mut failing = false;
            while let Ok(first) = waiting.recv() {
                let newest = waiting.try_iter().last().unwrap_or(first);
                match write(&path, &newest) {
                    Ok(()) if failing => tracing::info!(path = %path.display(), "the state is stored again"),
                    Ok(()) => {}
                    Err(problem) => {
                        flag.store(true, Ordering::Relaxed);
                        metrics::finding("state_not_stored");
                        if !failing {
                            tracing::error!(path = %path.display(), %problem, "the state cannot be stored; trying again");
                        }
                        failing = true;
                        continue;
                    }
                }
                failing = false;
            }
        };
        let thread = std::thread::Builder::new().name("swimring-state".into()).spawn(run)?;
        Ok(Self { latest: Some(latest), failed, thread: Some(thread) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.latest = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A new file beside the old one, then its name: a crash leaves one or the other.
fn write(path: &Path, stored: &Stored) -> io::Result<()> {
    let bytes = serde_json::to_vec(stored).map_err(io::Error::other)?;
    let beside = path.with_extension("json.new");
    let mut file = fs::File::create(&beside)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    // The name, too, must be there after the power fails.
    path.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let mut tag = [0; 8];
        super::super::certs::random(&mut tag);
        std::env::temp_dir().join(format!("swimring-state-{name}-{:016x}", u64::from_le_bytes(tag)))
    }

    const ID: NodeId = NodeId::from_u128(7);

    #[test]
    fn every_life_has_a_higher_boot_and_knows_the_contacts_of_the_last() {
        let directory = directory("kept");
        let peer = Peer { id: NodeId::from_u128(9), address: SocketAddr::from(([127, 0, 0, 1], 7_946)) };
        let (mut state, found) = State::open(&directory, ID).unwrap();
        assert_eq!((state.boot(), found), (1, Found::New));
        state.store_contacts([peer].into_iter());
        drop(state);
        let (state, found) = State::open(&directory, ID).unwrap();
        assert_eq!((state.boot(), found, state.contacts()), (2, Found::Kept, vec![peer]));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_next_life_begins_above_every_fence_of_the_last_though_few_are_written() {
        let directory = directory("fence");
        let (mut state, _) = State::open(&directory, ID).unwrap();
        fs::remove_file(directory.join("state.json")).unwrap();
        (1..=FENCES_AHEAD / 2).for_each(|fence| state.store_fence(fence));
        drop(state);
        assert!(!directory.join("state.json").exists(), "what is far below the stored one is not written");
        let (mut state, _) = State::open(&directory, ID).unwrap();
        state.store_fence(5_000);
        drop(state);
        let (state, _) = State::open(&directory, ID).unwrap();
        assert!(state.fence() >= 5_000);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_could_not_be_stored_is_stored_once_it_can_be() {
        let directory = directory("full");
        let (mut state, _) = State::open(&directory, ID).unwrap();
        // Whatever is to be put in the place of a directory fails.
        let path = directory.join("state.json");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        state.store_boot(7);
        while !state.writer.failed.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        fs::remove_dir(&path).unwrap();
        state.store_contacts(std::iter::empty());
        drop(state);
        assert_eq!(State::open(&directory, ID).unwrap().0.boot(), 8);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_torn_file_and_another_nodes_file_are_set_aside() {
        let directory = directory("torn");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("state.json"), b"{\"id\":\"00").unwrap();
        let (state, found) = State::open(&directory, ID).unwrap();
        assert!(matches!(found, Found::Unusable(_)) && state.boot() == 1);
        let (_, found) = State::open(&directory, NodeId::from_u128(8)).unwrap();
        assert!(matches!(found, Found::Unusable(_)));
        assert!(directory.join("state.json.unusable").exists());
        fs::remove_dir_all(directory).unwrap();
    }
}
