//! The rolling hash over everything that happened: equal hashes mean equal runs.

use swimring_membership::Instant;

/// Hashes every delivered byte and every output.
#[derive(Debug)]
pub struct Trace {
    hasher: blake3::Hasher,
    /// How many events were hashed.
    pub events: u64,
}

impl Default for Trace {
    fn default() -> Self {
        Self { hasher: blake3::Hasher::new_derive_key("swimring 1 simulation trace"), events: 0 }
    }
}

impl Trace {
    /// Something happened at `host`.
    pub fn note(&mut self, now: Instant, host: usize, kind: u8, bytes: &[u8]) {
        self.events += 1;
        let mut head = [0; 21];
        head[..8].copy_from_slice(&now.as_nanos().to_le_bytes());
        head[8..16].copy_from_slice(&(host as u64).to_le_bytes());
        head[16] = kind;
        head[17..].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.hasher.update(&head);
        self.hasher.update(bytes);
    }

    /// The hash so far, in hexadecimal.
    pub fn hash(&self) -> String {
        self.hasher.finalize().to_hex()[..32].to_owned()
    }
}
