//! From a key to its arc. Keyed by the cluster's secret, so that nobody outside can aim keys at one node.

use core::fmt;
use core::hash::Hasher;

use siphasher::sip::SipHasher13;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1_024;

/// A key's place on the circle.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl KeyHash {
    /// The arc that the key lies on, of 2^`arcs_log2`.
    pub const fn arc(self, arcs_log2: u32) -> Arc {
        Arc((self.0 >> (64 - arcs_log2)) as u32)
    }
}

/// One of the equal parts of the circle, counted from 0.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Arc(pub u32);

/// Hashes keys for one cluster: SipHash-1-3 over the key's bytes, with a key derived from the secret.
#[derive(Copy, Clone)]
pub struct KeyHasher {
    keys: (u64, u64),
}

impl KeyHasher {
    /// The hasher of the cluster with this secret.
    pub fn new(secret: &[u8; 32]) -> Self {
        let derived = blake3::derive_key("swimring 1 key hash", secret);
        let word = |at: usize| u64::from_le_bytes(derived[at..at + 8].try_into().expect("eight bytes of thirty-two"));
        Self { keys: (word(0), word(8)) }
    }

    /// The key's place on the circle.
    pub fn hash(&self, key: &[u8]) -> KeyHash {
        let mut hasher = SipHasher13::new_with_keys(self.keys.0, self.keys.1);
        hasher.write(key);
        KeyHash(hasher.finish())
    }
}

impl fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHasher(secret)")
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    #[test]
    fn key_hashes_are_pinned_across_releases() {
        let hasher = KeyHasher::new(&[7; 32]);
        let seen = [&b""[..], b"a", b"user:42"].map(|key| format!("{:?}", hasher.hash(key)));
        assert_eq!(seen, ["47d48cc07f6a6581", "56483319633fa241", "a65bdaae1af85910"]);
    }

    #[test]
    fn another_secret_places_keys_elsewhere() {
        assert_ne!(KeyHasher::new(&[1; 32]).hash(b"a"), KeyHasher::new(&[2; 32]).hash(b"a"));
    }

    #[test]
    fn an_arc_is_the_top_of_the_hash() {
        assert_eq!(KeyHash(u64::MAX).arc(10), Arc(1023));
        assert_eq!(KeyHash(1 << 54).arc(10), Arc(1));
    }
}
