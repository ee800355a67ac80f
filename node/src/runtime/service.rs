//! What an application gives: services that run keyed calls.
//!
//! The contract underneath is [`tower::Service`], so that layers of the application apply. A plain async
//! function is enough: see [`handler`].

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use swimring_forwarder::wire::Scope;
use swimring_membership::{Instance, Instant};
use swimring_ring::KeyHash;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use super::bodies::Duplex;
use crate::core::view::View;

/// A call as a service sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The key.
    pub key: Bytes,
    /// Its place on the ring.
    pub hash: KeyHash,
    /// At which members the call may run: at the owner of its key, as a rule.
    pub scope: Scope,
    /// What for.
    pub body: Bytes,
    /// What goes with the call for those who watch: see [`CallRequest::context`](super::node::CallRequest::context).
    pub context: Bytes,
    /// The process that asks; this one, for a call of its own.
    pub caller: Instance,
    /// When it began here, on this process's clock.
    pub received: Instant,
    /// By when nobody waits any more, on this process's clock.
    pub deadline: Instant,
    /// The view under which this node took the call: by it, this node is one of those at which it may run.
    pub view: Arc<View>,
    /// Orders this node's hold on its keys against earlier and later owners'.
    pub fence: u64,
    /// What comes behind the body, and goes before the answer, in pieces: of a [duplex](super::node::CallRequest::duplex)
    /// call.
    pub duplex: Duplex,
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

/// A call that took longer to begin in place was slow: others waited behind it.
const SLOW: Duration = Duration::from_micros(100);
/// For how many times as long none is begun there: a hundredth of the time may go to slow ones.
const PRICE: u32 = 100;
/// So much of it can be saved: a thread that stood still for a moment is no slow service.
const CREDIT: Duration = Duration::from_secs(5);
/// The longest that one call costs.
const REST_MAX: Duration = Duration::from_secs(10);

/// The services of a node, by name.
#[derive(Clone, Default)]
pub(crate) struct Services(Arc<BTreeMap<Arc<str>, Arc<Entry>>>);

/// A service, and how its calls begin.
pub(crate) struct Entry {
    service: BoxedService,
    /// Makes a handle with which whoever has a call begins it.
    make: Box<dyn Fn() -> Box<dyn Quick> + Send + Sync>,
    /// Whoever reads a call from the network may begin it.
    quick: bool,
    /// It runs calls for other members than owners, too.
    everywhere: bool,
    /// Until when they are not, all the same; on the node's clock.
    slow_until: AtomicU64,
}

impl Entry {
    /// A service whose calls have a task each.
    pub(crate) fn new<S>(service: S) -> Self
    where
        S: Service<Request, Response = Bytes, Error = ServiceError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let handle = service.clone();
        let make =
            Box::new(move || -> Box<dyn Quick> { Box::new(InPlace { service: handle.clone(), slot: Box::pin(None) }) });
        Self {
            service: BoxedService::new(service),
            make,
            quick: false,
            everywhere: false,
            slow_until: AtomicU64::new(0),
        }
    }

    /// A service whose calls whoever reads them may begin.
    pub(crate) fn quick<S>(service: S) -> Self
    where
        S: Service<Request, Response = Bytes, Error = ServiceError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Self { quick: true, ..Self::new(service) }
    }

    /// The same service, for calls to any member.
    pub(crate) fn everywhere(self) -> Self {
        Self { everywhere: true, ..self }
    }

    /// A handle of the service, for one call or several in turn.
    pub(crate) fn service(&self) -> BoxedService {
        self.service.clone()
    }

    /// Whether calls may be begun where they are read.
    pub(crate) fn begins_in_place(&self, now: Instant) -> bool {
        self.quick && self.slow_until.load(Ordering::Relaxed) <= now.as_nanos()
    }

    /// A call was begun in place. Returns how long that took. One that took long is paid for with the time that follows,
    /// or with some that went before.
    pub(crate) fn began_in_place(&self, from: Instant, to: Instant) -> Duration {
        let took = to.since(from);
        if took > SLOW {
            let paid = Instant::from_nanos(self.slow_until.load(Ordering::Relaxed)).max(to - CREDIT);
            self.slow_until.store((paid + took.saturating_mul(PRICE).min(REST_MAX)).as_nanos(), Ordering::Relaxed);
        }
        took
    }
}

/// Begins calls of one service, one after the other.
pub(crate) trait Quick: Send {
    /// Begins a call, and goes as far with it as it goes without waiting. An error: it has not begun, for the handle has failed
    /// for good, and must go.
    fn begin(&mut self, request: &mut Option<Request>) -> Result<Begun, ServiceError>;
}

/// What is left of a call that waits.
pub(crate) type Rest = Pin<Box<dyn Future<Output = Result<Bytes, ServiceError>> + Send>>;

/// How far a call came.
pub(crate) enum Begun {
    /// To its end.
    Done(Result<Bytes, ServiceError>),
    /// It has to wait.
    Waiting(Rest),
    /// It has not begun, for a layer of the service makes it wait: the request is where it was. The handle waits with it, and
    /// must go.
    NotReady,
}

/// The place of a call's future is used by one call after the other. The service is not: what one call leaves behind in it, a
/// place in a queue perhaps, must go with that call.
struct InPlace<S: Service<Request>> {
    service: S,
    slot: Pin<Box<Option<S::Future>>>,
}

impl<S> Quick for InPlace<S>
where
    S: Service<Request, Response = Bytes, Error = ServiceError> + Clone + Send,
    S::Future: Send + 'static,
{
    fn begin(&mut self, request: &mut Option<Request>) -> Result<Begun, ServiceError> {
        let mut context = Context::from_waker(Waker::noop());
        let mut service = self.service.clone();
        match service.poll_ready(&mut context) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(Begun::NotReady),
        }
        let future = service.call(request.take().expect("a call begins once"));
        drop(service);
        self.slot.set(Some(future));
        let polled = self.slot.as_mut().as_pin_mut().map(|future| future.poll(&mut context));
        match polled {
            Some(Poll::Ready(result)) => {
                // What a layer keeps for as long as its future lives goes now.
                self.slot.set(None);
                Ok(Begun::Done(result))
            }
            _ => {
                let mut begun = std::mem::replace(&mut self.slot, Box::pin(None));
                let rest = std::future::poll_fn(move |context| match begun.as_mut().as_pin_mut() {
                    Some(future) => future.poll(context),
                    None => Poll::Pending,
                });
                Ok(Begun::Waiting(Box::pin(rest)))
            }
        }
    }
}

impl Services {
    pub(crate) fn new(services: BTreeMap<Arc<str>, Entry>) -> Self {
        Self(Arc::new(services.into_iter().map(|(name, entry)| (name, Arc::new(entry))).collect()))
    }

    /// The service `name`, if it takes calls for these members.
    pub(crate) fn find(&self, name: &str, scope: Scope) -> Option<&Arc<Entry>> {
        self.0.get(name).filter(|entry| entry.everywhere || scope == Scope::Owner)
    }
}

/// Handles of services that one reader, or one thread of callers, has of its own.
#[derive(Default)]
pub(crate) struct Handles(Vec<(Arc<Entry>, Box<dyn Quick>)>);

impl Handles {
    /// Begins a call, and goes as far with it as it goes without waiting. A handler that panics has run, and failed.
    pub(crate) fn begin(&mut self, entry: &Arc<Entry>, request: &mut Option<Request>) -> Begun {
        let index = self.0.iter().position(|(of, _)| Arc::ptr_eq(of, entry));
        // A service may panic when it is cloned, too.
        let begun = catch_unwind(AssertUnwindSafe(|| {
            let index = index.unwrap_or_else(|| {
                self.0.push((Arc::clone(entry), (entry.make)()));
                self.0.len() - 1
            });
            self.0[index].1.begin(request)
        }));
        if !matches!(begun, Ok(Ok(Begun::Done(_) | Begun::Waiting(_))))
            && let Some(index) = self.0.iter().position(|(of, _)| Arc::ptr_eq(of, entry))
        {
            let (_, handle) = self.0.swap_remove(index);
            drop_caught(handle);
        }
        match begun {
            Ok(Ok(begun)) => begun,
            Ok(Err(error)) => Begun::Done(Err(error)),
            Err(_) => Begun::Done(Err(ServiceError(PANICKED))),
        }
    }
}

/// With a connection, or a node, go its handles.
impl Drop for Handles {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|(_, handle)| drop_caught(handle));
    }
}

/// What an application's layers do when they are dropped must not end whoever drops them.
fn drop_caught(handle: Box<dyn Quick>) {
    _ = catch_unwind(AssertUnwindSafe(|| drop(handle)));
}

/// What is said of a handler that panicked.
const PANICKED: Bytes = Bytes::from_static(b"the handler panicked");

/// Waits until a service takes a call: its layers may make it wait.
pub(crate) async fn ready(service: &mut BoxedService) -> Result<(), Bytes> {
    caught(service.ready()).await?.map(|_| ()).map_err(|error| error.0)
}

/// Runs one call to its end at a service that is ready.
pub(crate) async fn run(service: &mut BoxedService, request: Request) -> Result<Bytes, Bytes> {
    // A service may panic before it gives a future.
    end(async { service.call(request).await }).await
}

/// Runs what has begun to its end.
pub(crate) async fn end(begun: impl Future<Output = Result<Bytes, ServiceError>>) -> Result<Bytes, Bytes> {
    caught(begun).await?.map_err(|error| error.0)
}

/// A handler that panics has run, and failed; whoever called it goes on, wherever it ran.
async fn caught<F: Future>(future: F) -> Result<F::Output, Bytes> {
    let mut future = std::pin::pin!(future);
    let poll = move |context: &mut Context<'_>| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(PANICKED)),
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

    fn echo() -> Handler<impl Fn(Request) -> std::future::Ready<Result<Bytes, ServiceError>> + Clone> {
        handler(|request: Request| std::future::ready(Ok(request.body)))
    }

    #[test]
    fn a_service_that_is_slow_again_and_again_gets_tasks() {
        let at = Instant::from_millis;
        let quick = Entry::quick(echo());
        assert!(quick.begins_in_place(at(1)));
        assert!(!Entry::new(echo()).begins_in_place(at(1)), "only those that say they are quick");
        let now = at(100_000);
        assert_eq!(quick.began_in_place(now, now + SLOW), SLOW);
        quick.began_in_place(now, now + Duration::from_millis(20));
        assert!(quick.begins_in_place(now + Duration::from_millis(21)), "the thread may have stood still");
        let mut later = now;
        while quick.begins_in_place(later) {
            quick.began_in_place(later, later + Duration::from_millis(20));
            later = later + Duration::from_millis(20);
        }
        assert!(later.since(now) < Duration::from_millis(100), "but not that often");
        assert!(quick.begins_in_place(later + Duration::from_secs(2)), "it may try again");
        quick.began_in_place(at(200_000), at(2_000_000));
        assert!(quick.begins_in_place(at(2_010_000)), "the machine may have slept: that is no reason for long");
    }
}
