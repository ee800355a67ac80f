//! What an application gives: services that run keyed calls.
//!
//! The contract underneath is [`tower::Service`], so that layers of the application apply. A plain async
//! function is enough: see [`handler`].

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

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

/// What took longer to begin is not begun in place again soon: others wait behind it there.
const SLOW: Duration = Duration::from_micros(100);
/// For how many times as long.
const REST: u32 = 1_000;
/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(10);

/// The services of a node, by name.
#[derive(Clone, Default)]
pub(crate) struct Services(Arc<BTreeMap<Arc<str>, Entry>>);

/// A service, and how its calls begin.
pub(crate) struct Entry {
    service: BoxedService,
    /// Whoever reads a call may begin it.
    in_place: bool,
    /// Until when none of them is, all the same; on the node's clock.
    slow_until: AtomicU64,
}

impl Entry {
    pub(crate) fn new(service: BoxedService, in_place: bool) -> Self {
        Self { service, in_place, slow_until: AtomicU64::new(0) }
    }

    fn rest_until(&self, at: Instant) {
        self.slow_until.fetch_max(at.as_nanos(), Ordering::Relaxed);
    }
}

impl Services {
    pub(crate) fn new(services: BTreeMap<Arc<str>, Entry>) -> Self {
        Self(Arc::new(services))
    }

    /// The service `name`.
    pub(crate) fn find(&self, name: &str) -> Option<BoxedService> {
        self.0.get(name).map(|entry| entry.service.clone())
    }

    /// Whether whoever reads one of its calls may begin it.
    pub(crate) fn begins_in_place(&self, name: &str, now: Instant) -> bool {
        self.0
            .get(name)
            .is_some_and(|entry| entry.in_place && entry.slow_until.load(Ordering::Relaxed) <= now.as_nanos())
    }

    /// One of its calls was begun in place. Returns how long that took.
    pub(crate) fn began_in_place(&self, name: &str, from: Instant, to: Instant) -> Duration {
        let took = to.since(from);
        if took > SLOW
            && let Some(entry) = self.0.get(name)
        {
            entry.rest_until(to + took.saturating_mul(REST).min(REST_MAX));
        }
        took
    }
}

/// Waits until a service takes a call: its layers may make it wait.
pub(crate) async fn ready(service: &mut BoxedService) -> Result<(), Bytes> {
    caught(service.ready()).await?.map(|_| ()).map_err(|error| error.0)
}

/// Runs one call to its end at a service that is ready.
pub(crate) async fn run(service: &mut BoxedService, request: Request) -> Result<Bytes, Bytes> {
    // A service may panic before it gives a future.
    caught(async { service.call(request).await }).await?.map_err(|error| error.0)
}

/// A handler that panics has run, and failed; whoever called it goes on, wherever it ran.
async fn caught<F: Future>(future: F) -> Result<F::Output, Bytes> {
    let mut future = std::pin::pin!(future);
    let poll = move |context: &mut Context<'_>| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(Bytes::from_static(b"the handler panicked"))),
    };
    std::future::poll_fn(poll).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_slowly_begins_in_a_task_of_its_own_for_a_while() {
        let echo = || BoxedService::new(handler(async |request: Request| Ok(request.body)));
        let entries = [("quick".into(), Entry::new(echo(), true)), ("echo".into(), Entry::new(echo(), false))];
        let services = Services::new(entries.into());
        let at = Instant::from_millis;
        assert!(services.begins_in_place("quick", at(1)));
        assert!(!services.begins_in_place("echo", at(1)) && !services.begins_in_place("absent", at(1)));
        assert_eq!(services.began_in_place("quick", at(1), at(1) + SLOW), SLOW);
        assert!(services.begins_in_place("quick", at(2)), "that is no time");
        services.began_in_place("quick", at(1_000), at(1_002));
        assert!(!services.begins_in_place("quick", at(3_001)), "it took two milliseconds, and rests for two seconds");
        services.began_in_place("quick", at(1_000), at(1_001));
        assert!(!services.begins_in_place("quick", at(3_001)), "a faster one does not shorten that");
        assert!(services.begins_in_place("quick", at(3_002)));
        services.began_in_place("quick", at(4_000), at(1_000_000));
        assert!(
            services.begins_in_place("quick", at(1_010_000)),
            "the machine may have slept: that is no reason for long"
        );
    }
}
