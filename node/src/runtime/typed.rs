//! Calls whose bodies are values of the application: serde says what they are, bincode how they lie in bytes.
//!
//! Both ends must agree on the types: bincode's bytes do not describe themselves. Give new types a service of their own.

use std::borrow::Cow;
use std::fmt::Display;
use std::future::Future;

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use swimring_forwarder::{NotExecuted, Outcome, Unknown};

use super::calls::Answered;
use super::node::CallRequest;
use super::service::{Handler, Request, ServiceError, handler};

/// Nothing claims more memory than this while it is decoded.
const VALUE_BYTES_MAX: usize = 256 * 1_024 * 1_024;

const CONFIG: Configuration<LittleEndian, Varint, Limit<VALUE_BYTES_MAX>> = config::standard().with_limit();

/// A value cannot be encoded; its own fault: it has a map without a known length, say.
#[derive(Debug, thiserror::Error)]
#[error("the value cannot be encoded: {0}")]
pub struct Unencodable(#[source] bincode::error::EncodeError);

/// Why a call has no value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// The handler ran, and failed with this error of its own.
    #[error("{0}")]
    Executed(String),
    /// It has not run, and will not.
    #[error(transparent)]
    NotExecuted(#[from] NotExecuted),
    /// It may have run.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// It ran, and its answer is no such value.
    #[error("the answer does not decode")]
    Undecodable,
}

impl CallError {
    /// Whether the call has surely not run: only then may one that must not run twice be repeated.
    pub fn is_not_executed(&self) -> bool {
        matches!(self, Self::NotExecuted(_))
    }
}

impl CallRequest {
    /// A call of a [`typed`] service. Otherwise as [`CallRequest::new`].
    ///
    /// # Errors
    /// If the value cannot be encoded.
    pub fn with_value<T: Serialize>(
        service: impl Into<Cow<'static, str>>,
        key: impl Into<Bytes>,
        value: &T,
    ) -> Result<Self, Unencodable> {
        Ok(Self::new(service, key, bincode::serde::encode_to_vec(value, CONFIG).map_err(Unencodable)?))
    }
}

impl Answered {
    /// The value that a [`typed`] service answered with.
    ///
    /// # Errors
    /// Why there is none, and whether the call may have run.
    pub fn value<T: DeserializeOwned>(self) -> Result<T, CallError> {
        match self.outcome {
            Outcome::Ok(body) => decode(&body).ok_or(CallError::Undecodable),
            Outcome::Executed(error) => Err(CallError::Executed(String::from_utf8_lossy(&error).into_owned())),
            Outcome::NotExecuted(no) => Err(no.into()),
            Outcome::Unknown(unknown) => Err(unknown.into()),
        }
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let (value, used) = bincode::serde::decode_from_slice(body, CONFIG).ok()?;
    (used == body.len()).then_some(value)
}

/// A service from an async function of a request and the value in its body. Its errors go to the caller as text; so does
/// that a body is no such value.
pub fn typed<F, Fut, T, R, E>(function: F) -> Handler<impl Fn(Request) -> TypedFuture + Clone + Send + Sync + 'static>
where
    F: Fn(Request, T) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<R, E>> + Send + 'static,
    T: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
    E: Display + Send + 'static,
{
    handler(move |request: Request| -> TypedFuture {
        let begun = decode::<T>(&request.body).map(|value| function(request, value));
        Box::pin(async move {
            let begun = begun.ok_or_else(|| ServiceError("the body is no value of this service".into()))?;
            let result = begun.await.map_err(|error| ServiceError::from(error.to_string()))?;
            let answer = bincode::serde::encode_to_vec(result, CONFIG);
            answer.map(Bytes::from).map_err(|problem| ServiceError::from(Unencodable(problem).to_string()))
        })
    })
}

/// What a [`typed`] service gives.
pub type TypedFuture = std::pin::Pin<Box<dyn Future<Output = Result<Bytes, ServiceError>> + Send>>;
