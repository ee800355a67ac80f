//! The built-in key-value service: in memory, at the owner of each key.
//!
//! A node that loses an arc drops its entries; one that wins an arc starts empty.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::node::Swimring;
use super::sabotage;
use super::service::{Request, ServiceError};

/// The service's name.
pub const SERVICE: &str = "kv";
/// Most entries of a node.
pub const ENTRIES_MAX: usize = 1_000_000;
/// Most bytes of keys and values of a node.
pub const BYTES_MAX: usize = 1 << 30;

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
        entries.expire(&request.key);
        match command {
            Command::Put { ttl_s } => {
                entries.put(request.key, value, ttl_s)?;
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

    /// Drops what `node` does not own any more, whenever its view changes.
    pub async fn follow(self, node: Swimring) {
        let mut changes = node.changes();
        while changes.changed().await.is_ok() {
            let view = node.view();
            let me = view.me().node;
            let ring = Arc::clone(view.ring());
            let mut entries = self.lock();
            let lost: Vec<Bytes> =
                entries.by_key.keys().filter(|key| ring.owner(node.hash(key)) != Ok(me)).cloned().collect();
            for key in lost {
                entries.remove(&key);
            }
        }
    }
}

impl Entries {
    fn expire(&mut self, key: &Bytes) {
        let over = |entry: &Entry| entry.expires.is_some_and(|at| at <= Instant::now());
        if self.by_key.get(key).is_some_and(over) {
            self.remove(key);
        }
    }

    fn put(&mut self, key: Bytes, value: Bytes, ttl_s: Option<u64>) -> Result<(), ServiceError> {
        let added = key.len() + value.len();
        let replaced = self.by_key.get(&key).map_or(0, |entry| key.len() + entry.value.len());
        let full = replaced == 0 && self.by_key.len() >= ENTRIES_MAX;
        if full || self.bytes - replaced + added > BYTES_MAX {
            return Err(ServiceError(Bytes::from_static(b"the store is full")));
        }
        self.bytes = self.bytes - replaced + added;
        let expires = ttl_s.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        let before = self.by_key.remove(&key);
        let writes = before.as_ref().map_or(0, |entry| entry.writes).saturating_add(1);
        let previous = before.map(|entry| entry.value).filter(|_| sabotage::reads_are_stale());
        self.by_key.insert(key, Entry { value, previous, writes, expires });
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
