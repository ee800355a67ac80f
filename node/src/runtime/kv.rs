//! The built-in key-value service: in memory, at the owner of each key.
//!
//! A node that loses an arc drops its entries; one that wins an arc starts empty. A call that runs under a ring
//! waits until the store has dropped what was lost on the way to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use swimring_membership::{Instant, NodeId};
use swimring_ring::{KeyHash, Ring};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;

use super::node::Swimring;
use super::publisher::RingChange;
use super::sabotage;
use super::service::{Request, ServiceError};

/// The service's name.
pub const SERVICE: &str = "kv";
/// Most entries of a node.
pub const ENTRIES_MAX: usize = 1_000_000;
/// Longest time to live, in seconds: a century.
const TTL_S_MAX: u64 = 3_155_760_000;
/// Most bytes of keys and values of a node.
pub const BYTES_MAX: usize = 1 << 30;

/// How often a full store looks for values whose time is over: it looks at all of them.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What is asked of the service. Encoded as JSON with the value behind it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Store the value, perhaps for a time.
    Put {
        /// For how many seconds.
        ttl_s: Option<u64>,
    },
    /// The value, please.
    Get,
    /// Forget the value.
    Delete,
}

impl Command {
    /// The body of a call.
    pub fn encode(&self, value: &[u8]) -> Bytes {
        let head = serde_json::to_vec(self).expect("a command has a fixed shape");
        let mut body = (head.len() as u16).to_le_bytes().to_vec();
        body.extend_from_slice(&head);
        body.extend_from_slice(value);
        body.into()
    }

    fn decode(body: &Bytes) -> Option<(Self, Bytes)> {
        let length = usize::from(u16::from_le_bytes(*body.first_chunk()?));
        let head = body.get(2..2 + length)?;
        Some((serde_json::from_slice(head).ok()?, body.slice(2 + length..)))
    }
}

/// First byte of an answer: there is nothing under the key.
pub const ABSENT: u8 = 0;
/// First byte of an answer: it is done; for a get, the number of writes (4 bytes) and the value follow.
pub const FOUND: u8 = 1;
/// Added to the first byte when the view under which it ran named another owner: a misroute.
pub const MISROUTED: u8 = 0x80;

#[derive(Debug)]
struct Entry {
    hash: KeyHash,
    value: Bytes,
    /// The value before, in builds that are told to serve it.
    previous: Option<Bytes>,
    /// How often this node has stored something under the key since it was absent here.
    writes: u32,
    expires: Option<Instant>,
}

impl Entry {
    /// Mark, number of writes, value.
    fn answer(&self, mark: u8) -> Bytes {
        let stale = self.previous.as_ref().filter(|_| sabotage::reads_are_stale());
        [&[mark], &self.writes.to_le_bytes()[..], stale.unwrap_or(&self.value)].concat().into()
    }
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<Bytes, Entry>,
    bytes: usize,
    /// The rings since, and whose entries these are.
    rings: Option<(broadcast::Receiver<RingChange>, NodeId)>,
    /// The last ring that the entries were held against, and its fence.
    ring: Option<Arc<Ring>>,
    fence: u64,
    /// When it was last looked for values whose time is over.
    swept: Option<Instant>,
}

/// The entries of one node.
#[derive(Clone, Debug, Default)]
pub struct Store(Arc<Mutex<Entries>>);

impl Store {
    /// Runs a command for a key that this node owns.
    ///
    /// # Errors
    /// If the body is no command, or the store is full.
    pub async fn serve(self, request: Request) -> Result<Bytes, ServiceError> {
        let Some((command, value)) = Command::decode(&request.body) else {
            return Err(ServiceError(Bytes::from_static(b"the body is no command")));
        };
        let misrouted = request.view.ring().owner(request.hash) != Ok(request.view.me().node);
        let mark = if misrouted { MISROUTED } else { 0 };
        let mut entries = self.lock();
        entries.catch_up(Some(request.fence));
        entries.expire(&request.key, request.received);
        let lost = !misrouted && entries.has_lost(request.hash);
        match command {
            Command::Put { .. } if lost => Ok(Bytes::copy_from_slice(&[FOUND | mark])),
            Command::Put { ttl_s } => {
                let expires = ttl_s.map(|seconds| request.received + Duration::from_secs(seconds.min(TTL_S_MAX)));
                entries.put(
                    request.key,
                    Entry { hash: request.hash, value, previous: None, writes: 0, expires },
                    request.received,
                )?;
                Ok(Bytes::copy_from_slice(&[FOUND | mark]))
            }
            Command::Get => Ok(match entries.by_key.get(&request.key) {
                Some(entry) => entry.answer(FOUND | mark),
                None => Bytes::copy_from_slice(&[ABSENT | mark]),
            }),
            Command::Delete => {
                let found = if entries.remove(&request.key) { FOUND } else { ABSENT };
                Ok(Bytes::copy_from_slice(&[found | mark]))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.lock().by_key.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops what `node` does not own any more, whenever its ring changes.
    pub async fn follow(self, node: Swimring) {
        let (mut changes, me) = (node.ring_changes(), node.view().me().node);
        // Its changes end with it.
        drop(node);
        {
            let mut entries = self.lock();
            entries.rings = Some((changes.resubscribe(), me));
            // What was stored before is held against nothing.
            entries.clear();
        }
        while !matches!(changes.recv().await, Err(broadcast::error::RecvError::Closed)) {
            self.lock().catch_up(None);
        }
    }
}

impl Entries {
    /// Drops what was lost by every ring up to the one with this fence, or up to the last.
    fn catch_up(&mut self, fence: Option<u64>) {
        while fence.is_none_or(|fence| self.fence < fence) {
            let Some((rings, me)) = &mut self.rings else { return };
            let (change, me) = (rings.try_recv(), *me);
            match change {
                Ok(change) => {
                    self.fence = change.fence;
                    if change.retaken {
                        self.clear();
                    }
                    if self.ring.as_ref().is_none_or(|ring| ring.digest() != change.ring.digest()) {
                        self.drop_lost(&change.ring, me);
                    }
                    self.ring = Some(change.ring);
                }
                // Nobody knows what was lost and won again meanwhile.
                Err(TryRecvError::Lagged(_)) => self.clear(),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// Whether the key went to another node after the call was admitted: then it ran just before that, and what it
    /// did is dropped.
    fn has_lost(&self, hash: KeyHash) -> bool {
        let me = self.rings.as_ref().map(|(_, me)| *me);
        self.ring.as_ref().is_some_and(|ring| ring.owner(hash).ok() != me)
    }

    fn drop_lost(&mut self, ring: &Ring, me: NodeId) {
        let mut dropped = 0;
        self.by_key.retain(|key, entry| {
            let keep = ring.owner(entry.hash) == Ok(me);
            dropped += if keep { 0 } else { key.len() + entry.value.len() };
            keep
        });
        self.bytes -= dropped;
    }

    fn clear(&mut self) {
        self.by_key.clear();
        self.bytes = 0;
    }

    fn expire(&mut self, key: &Bytes, now: Instant) {
        let over = |entry: &Entry| entry.expires.is_some_and(|at| at <= now);
        if self.by_key.get(key).is_some_and(over) {
            self.remove(key);
        }
    }

    /// Drops everything whose time is over.
    fn expire_all(&mut self, now: Instant) {
        let over: Vec<Bytes> = self
            .by_key
            .iter()
            .filter(|(_, entry)| entry.expires.is_some_and(|at| at <= now))
            .map(|(key, _)| key.clone())
            .collect();
        over.iter().for_each(|key| _ = self.remove(key));
    }

    fn put(&mut self, key: Bytes, mut entry: Entry, now: Instant) -> Result<(), ServiceError> {
        let added = key.len() + entry.value.len();
        let replaced = self.by_key.get(&key).map_or(0, |entry| key.len() + entry.value.len());
        let is_full = |entries: &Self| {
            let another = replaced == 0 && entries.by_key.len() >= ENTRIES_MAX;
            another || entries.bytes - replaced + added > BYTES_MAX
        };
        if is_full(self) && self.swept.is_none_or(|swept| now.since(swept) >= SWEEP_EVERY) {
            self.swept = Some(now);
            self.expire_all(now);
        }
        if is_full(self) {
            return Err(ServiceError(Bytes::from_static(b"the store is full")));
        }
        self.bytes = self.bytes - replaced + added;
        let before = self.by_key.remove(&key);
        entry.writes = before.as_ref().map_or(0, |entry| entry.writes).saturating_add(1);
        entry.previous = before.map(|entry| entry.value).filter(|_| sabotage::reads_are_stale());
        self.by_key.insert(key, entry);
        Ok(())
    }

    fn remove(&mut self, key: &Bytes) -> bool {
        let Some(entry) = self.by_key.remove(key) else {
            return false;
        };
        self.bytes -= key.len() + entry.value.len();
        true
    }
}
