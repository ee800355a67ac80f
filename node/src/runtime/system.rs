//! What a node takes from outside: its sockets, its clock, the timers and tasks of its transport, its randomness.
//!
//! [`OperatingSystem`] is what a node runs on unless it is told otherwise; another [`System`] puts it behind a
//! network that loses what it is told to lose, or into a time of its own.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{AsyncUdpSocket, Runtime};
use rustix::time::{ClockId, clock_gettime};
use swimring_membership::Instant;

use super::certs::random;

/// Makes the socket that a transport uses, within the runtime that drives it.
type Open = Box<dyn FnOnce(&dyn Runtime) -> io::Result<Arc<dyn AsyncUdpSocket>> + Send>;

/// A bound UDP socket that no runtime drives yet.
pub struct Socket {
    local: SocketAddr,
    open: Open,
}

impl Socket {
    /// A socket bound to `local`; `open` is called once, within the runtime that will drive it.
    pub fn new(
        local: SocketAddr,
        open: impl FnOnce(&dyn Runtime) -> io::Result<Arc<dyn AsyncUdpSocket>> + Send + 'static,
    ) -> Self {
        Self { local, open: Box::new(open) }
    }

    /// Where it is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Hands the socket to a runtime.
    ///
    /// # Errors
    /// If the runtime cannot drive it.
    pub fn open(self, runtime: &dyn Runtime) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        (self.open)(runtime)
    }
}

/// Everything that is not decided by a node itself.
pub trait System: Send + Sync + 'static {
    /// A UDP socket bound to `address`; port 0 lets the system choose.
    ///
    /// # Errors
    /// If the address cannot be used.
    fn bind(&self, address: SocketAddr) -> io::Result<Socket>;

    /// What drives the timers and tasks of the transport.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// A clock that never goes back, and that counts the time the machine was suspended where it can.
    fn now(&self) -> Instant;

    /// A number that nobody can guess.
    fn seed(&self) -> u64;
}

/// The system's UDP sockets, clock and randomness, driven by tokio.
#[derive(Copy, Clone, Debug, Default)]
pub struct OperatingSystem;

impl System for OperatingSystem {
    fn bind(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(Socket::new(socket.local_addr()?, move |runtime| runtime.wrap_udp_socket(socket)))
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(quinn::TokioRuntime)
    }

    fn now(&self) -> Instant {
        #[cfg(target_os = "linux")]
        let clock = ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = ClockId::Monotonic;
        let time = clock_gettime(clock);
        Instant::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    fn seed(&self) -> u64 {
        let mut bytes = [0; 8];
        random(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// How long a wait may go on before it looks at the clock.
const LOOK: Duration = Duration::from_secs(1);

/// The one clock of a node. Clones agree.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn System>);

impl Clock {
    pub(crate) fn new(system: Arc<dyn System>) -> Self {
        Self(system)
    }

    /// Now.
    pub(crate) fn now(&self) -> Instant {
        self.0.now()
    }

    /// Waits until `at`. Timers stand still while the machine sleeps, and this clock does not: it looks now and then.
    pub(crate) async fn wait_until(&self, at: Instant) {
        loop {
            let left = at.since(self.now());
            tokio::time::sleep(left.min(LOOK)).await;
            if left <= LOOK {
                return;
            }
        }
    }

    /// Waits until `at`, or for ever.
    pub(crate) async fn wait_for(&self, at: Option<Instant>) {
        match at {
            // A timer of tokio rounds up to milliseconds; what is due at once need not go through it.
            Some(at) if at <= self.now() => tokio::task::yield_now().await,
            Some(at) => self.wait_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// How long the system may take to close what is open before something is wrong with the machine.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_secs(1);
