//! Bytes in and out of bodies: the only place that knows bincode, and its limits.

use alloc::vec::Vec;

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest body, in bytes. Nothing claims more memory than this while it is decoded.
pub const BODY_BYTES_MAX: usize = 64 * 1_024;

const CONFIG: Configuration<LittleEndian, Varint, Limit<BODY_BYTES_MAX>> = config::standard().with_limit();

/// Why bytes of a peer were refused. Nothing changed; the peer's fault.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The bytes end before the message does.
    #[error("the message ends early")]
    Truncated,
    /// The message, or one of its parts, is longer than allowed.
    #[error("the message is too long")]
    TooLong,
    /// A body does not decode.
    #[error("the body does not decode")]
    Body,
    /// Bytes are left behind a body that has no tail.
    #[error("bytes are left behind the body")]
    Trailing,
    /// The named field is outside its range.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    /// The protocol version is not one of ours.
    #[error("protocol version {0} is not supported")]
    Version(u8),
}

/// Appends the body to `out`.
pub fn encode<T: Serialize>(body: &T, out: &mut Vec<u8>) {
    struct Append<'a>(&'a mut Vec<u8>);
    impl bincode::enc::write::Writer for Append<'_> {
        fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }
    bincode::serde::encode_into_writer(body, Append(out), CONFIG)
        .expect("our bodies have sizes known in advance, so that encoding cannot fail");
}

/// Reads a body that fills `bytes` to the last one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    let (body, tail) = decode_prefix(bytes)?;
    if tail.is_empty() { Ok(body) } else { Err(Malformed::Trailing) }
}

/// Reads a body that fills `bytes` to the last one, and that may borrow from them.
pub fn decode_borrowed<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    let (body, used) = bincode::serde::borrow_decode_from_slice(bytes, CONFIG).map_err(|_| Malformed::Body)?;
    if used == bytes.len() { Ok(body) } else { Err(Malformed::Trailing) }
}

/// Reads a body at the beginning of `bytes`; returns it with what is left.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), Malformed> {
    let (body, used) = bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|_| Malformed::Body)?;
    Ok((body, &bytes[used..]))
}

/// A byte string in a body: copied whole, not element by element.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// A byte string in a body that stays where it is. On the wire it is a [`Blob`].
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Slice<'a>(pub &'a [u8]);

impl Serialize for Slice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Slice<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Slice<'de>;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Slice<'de>, E> {
                Ok(Slice(bytes))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_of_more_than_there_is_allocates_nothing_and_fails() {
        // A length of 2^40 in bincode's varint, followed by nothing.
        let claim = [253, 0, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(decode::<Blob>(&claim), Err(Malformed::Body));
        assert_eq!(decode::<Vec<u64>>(&claim), Err(Malformed::Body));
        assert_eq!(decode_borrowed::<Slice<'_>>(&claim), Err(Malformed::Body));
    }

    #[test]
    fn a_blob_round_trips_and_a_tail_is_seen() {
        let mut bytes = Vec::new();
        encode(&Blob(alloc::vec![1, 2, 3]), &mut bytes);
        assert_eq!(decode::<Blob>(&bytes), Ok(Blob(alloc::vec![1, 2, 3])));
        assert_eq!(decode_borrowed::<Slice<'_>>(&bytes), Ok(Slice(&[1, 2, 3])), "they are the same on the wire");
        bytes.push(0);
        assert_eq!(decode::<Blob>(&bytes), Err(Malformed::Trailing));
        assert_eq!(decode_borrowed::<Slice<'_>>(&bytes), Err(Malformed::Trailing));
    }
}
