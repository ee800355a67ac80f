//! What an application gives: services that run keyed calls.
//!
//! The contract underneath is [`tower::Service`], so that layers of the application apply. A plain async
//! function is enough: see [`handler`].

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use swimring_membership::{Instance, Instant};
use swimring_ring::KeyHash;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::core::view::View;

/// A call as a service sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The key.
    pub key: Bytes,
    /// Its place on the ring.
    pub hash: KeyHash,
    /// What for.
    pub body: Bytes,
    /// The process that asks; this one, for a call of its own.
    pub caller: Instance,
    /// When it began here, on this process's clock.
    pub received: Instant,
    /// By when nobody waits any more, on this process's clock.
    pub deadline: Instant,
    /// The view under which this node took the call: by it, the key is this node's.
    pub view: Arc<View>,
    /// Orders this node's hold on the key against earlier and later owners'.
    pub fence: u64,
}

/// A handler's own error: the call has run.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", String::from_utf8_lossy(.0))]
pub struct ServiceError(pub Bytes);

impl From<String> for ServiceError {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

pub(crate) type BoxedService = BoxCloneSyncService<Request, Bytes, ServiceError>;

/// The services of a node, by name.
#[derive(Clone, Default)]
pub(crate) struct Services(Arc<BTreeMap<Arc<str>, BoxedService>>);

impl Services {
    pub(crate) fn new(services: BTreeMap<Arc<str>, BoxedService>) -> Self {
        Self(Arc::new(services))
    }

    /// The service `name`.
    pub(crate) fn find(&self, name: &str) -> Option<BoxedService> {
        self.0.get(name).cloned()
    }
}

/// Runs one call to its end.
pub(crate) async fn run(service: BoxedService, request: Request) -> Result<Bytes, Bytes> {
    service.oneshot(request).await.map_err(|error| error.0)
}

/// A service from an async function.
pub fn handler<F, Fut>(function: F) -> Handler<F>
where
    F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Bytes, ServiceError>> + Send + 'static,
{
    Handler(function)
}

/// See [`handler`].
#[derive(Clone, Debug)]
pub struct Handler<F>(F);

impl<F, Fut> Service<Request> for Handler<F>
where
    F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Bytes, ServiceError>> + Send + 'static,
{
    type Response = Bytes;
    type Error = ServiceError;
    type Future = Fut;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Fut {
        (self.0)(request)
    }
}
