//! From a key to its arc, by a hash that depends on the cluster's secret.

use core::fmt;
use core::hash::Hasher;

use siphasher::sip::SipHasher13;
use twox_hash::XxHash3_64;

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

/// How a cluster places its keys; one of its constants. Whichever it is, it is derived from the cluster's secret, and
/// specified: golden vectors pin all of them.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Hashing {
    /// SipHash-1-3 under a key of 128 bits: nobody outside can aim keys at one node.
    #[default]
    Keyed,
    /// XXH3 with 64 bits and a seed: several times faster, but whoever can tell which keys share an owner can, with effort,
    /// find more of them. For keys that nobody hostile chooses.
    Fast,
    /// The first 64 bits of blake3 under a key of 256 bits: the slowest, and a cryptographic hash.
    Blake3,
}

/// Hashes keys for one cluster.
#[derive(Copy, Clone)]
pub struct KeyHasher(Keys);

#[derive(Copy, Clone)]
enum Keys {
    Keyed(u64, u64),
    Fast(u64),
    Blake3([u8; 32]),
}

impl KeyHasher {
    /// The hasher of the cluster with this secret.
    pub fn new(hashing: Hashing, secret: &[u8; 32]) -> Self {
        let context = match hashing {
            Hashing::Keyed => "swimring 1 key hash",
            Hashing::Fast => "swimring 1 key hash, fast",
            Hashing::Blake3 => "swimring 1 key hash, blake3",
        };
        let derived = blake3::derive_key(context, secret);
        let word = |at: usize| u64::from_le_bytes(derived[at..at + 8].try_into().expect("eight bytes of thirty-two"));
        Self(match hashing {
            Hashing::Keyed => Keys::Keyed(word(0), word(8)),
            Hashing::Fast => Keys::Fast(word(0)),
            Hashing::Blake3 => Keys::Blake3(derived),
        })
    }

    /// The key's place on the circle.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(match &self.0 {
            Keys::Keyed(one, other) => {
                let mut hasher = SipHasher13::new_with_keys(*one, *other);
                hasher.write(key);
                hasher.finish()
            }
            Keys::Fast(seed) => XxHash3_64::oneshot_with_seed(*seed, key),
            Keys::Blake3(secret) => {
                let hash = blake3::keyed_hash(secret, key);
                u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has more than eight bytes"))
            }
        })
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
        let long = [b'x'; 300];
        let seen = |hashing| {
            let hasher = KeyHasher::new(hashing, &[7; 32]);
            [&b""[..], b"a", b"user:42", &long].map(|key| format!("{:?}", hasher.hash(key)))
        };
        assert_eq!(seen(Hashing::Keyed)[..3], ["47d48cc07f6a6581", "56483319633fa241", "a65bdaae1af85910"]);
        assert_eq!(
            seen(Hashing::Fast),
            ["d7b934e073605497", "79986645b33a12a8", "0f59f02b264ea2a0", "0ba0a57de39c8a77"]
        );
        assert_eq!(
            seen(Hashing::Blake3),
            ["b1f6249bf5e0ed7d", "c0f466f2568c65e9", "8013daa24cbf9d11", "13a66e283869fd4f"]
        );
    }

    #[test]
    fn another_secret_places_keys_elsewhere() {
        for hashing in [Hashing::Keyed, Hashing::Fast, Hashing::Blake3] {
            assert_ne!(KeyHasher::new(hashing, &[1; 32]).hash(b"a"), KeyHasher::new(hashing, &[2; 32]).hash(b"a"));
        }
    }

    #[test]
    fn an_arc_is_the_top_of_the_hash() {
        assert_eq!(KeyHash(u64::MAX).arc(10), Arc(1023));
        assert_eq!(KeyHash(1 << 54).arc(10), Arc(1));
    }
}
