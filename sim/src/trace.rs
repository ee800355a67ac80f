//! The rolling hash over everything that happened: equal hashes mean equal runs.

use std::hash::{Hash, Hasher};

use swimring_membership::Instant;

/// Hashed at once: many small pieces would cost more.
const BATCH: usize = 32 * 1_024;

/// Something that is changed on purpose, to see that the hash shows it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Flip {
    /// A bit of this message, counted from the first.
    Bit {
        /// Which.
        message: u64,
    },
    /// When this message arrives, its receiver's link draws once more than it would.
    Draw {
        /// Which.
        message: u64,
    },
}

/// Hashes every delivered byte and every output.
#[derive(Debug)]
pub struct Trace {
    hasher: blake3::Hasher,
    /// What is not hashed yet.
    buffer: Vec<u8>,
    value: Vec<u8>,
    /// How many events were hashed.
    pub events: u64,
    /// How many of them were messages of membership.
    pub messages: u64,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            hasher: blake3::Hasher::new_derive_key("swimring 1 simulation trace"),
            buffer: Vec::new(),
            value: Vec::new(),
            events: 0,
            messages: 0,
        }
    }
}

impl Trace {
    /// A message of membership reached `host`.
    pub fn message(&mut self, now: Instant, host: usize, bytes: &[u8]) {
        self.messages += 1;
        self.note(now, host, 1, bytes);
    }

    /// Something happened at `host`, and this is it.
    pub fn note_value(&mut self, now: Instant, host: usize, kind: u8, value: &impl Hash) {
        struct Bytes<'a>(&'a mut Vec<u8>);
        impl Hasher for Bytes<'_> {
            fn write(&mut self, bytes: &[u8]) {
                self.0.extend_from_slice(bytes);
            }

            fn finish(&self) -> u64 {
                0
            }
        }
        let mut bytes = std::mem::take(&mut self.value);
        bytes.clear();
        value.hash(&mut Bytes(&mut bytes));
        self.note(now, host, kind, &bytes);
        self.value = bytes;
    }

    /// Something happened at `host`.
    pub fn note(&mut self, now: Instant, host: usize, kind: u8, bytes: &[u8]) {
        self.events += 1;
        self.buffer.extend_from_slice(&now.as_nanos().to_le_bytes());
        self.buffer.extend_from_slice(&(host as u64).to_le_bytes());
        self.buffer.push(kind);
        self.buffer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BATCH {
            self.hasher.update(&self.buffer);
            self.buffer.clear();
        }
    }

    /// The hash so far, in hexadecimal.
    pub fn hash(&self) -> String {
        self.hasher.clone().update(&self.buffer).finalize().to_hex()[..32].to_owned()
    }
}
