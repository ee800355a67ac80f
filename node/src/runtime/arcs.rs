//! What an application hears of its arcs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::publisher::{Published, RingChange};
use crate::core::arcs::{ArcEvent, Arcs};
use crate::core::view::View;

/// The arcs that this node loses and wins, as it does. Begins with what it owns already.
///
/// Rings are compared on threads that may block: at a million arcs that takes milliseconds.
#[derive(Debug)]
pub struct ArcEvents {
    arcs: Arc<Mutex<Arcs>>,
    rings: broadcast::Receiver<RingChange>,
    changed: watch::Receiver<u64>,
    view: Arc<ArcSwap<View>>,
    /// A comparison under way: whoever stops waiting for it loses nothing.
    comparing: Option<JoinHandle<Vec<ArcEvent>>>,
    ready: VecDeque<ArcEvent>,
}

impl ArcEvents {
    pub(crate) fn new(published: &Published) -> Self {
        let (rings, mut changed) = (published.rings.subscribe(), published.changed.clone());
        let view = Arc::clone(&published.view);
        changed.mark_changed();
        let arcs = Arcs::new(view.load().me().node, view.load().ring());
        Self { arcs: Arc::new(Mutex::new(arcs)), rings, changed, view, comparing: None, ready: VecDeque::new() }
    }

    /// The next event; none once the node has ended. A listener that was far behind is told that it has lost everything,
    /// and won what it owns now.
    pub async fn next(&mut self) -> Option<ArcEvent> {
        loop {
            if let Some(comparing) = &mut self.comparing {
                let events = comparing.await;
                self.comparing = None;
                self.ready.extend(events.ok()?);
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            tokio::select! {
                biased;
                change = self.rings.recv() => match change {
                    Ok(RingChange { ring, passed, fence, retaken }) => {
                        self.compare(move |arcs| arcs.next(&ring, retaken && !passed, fence));
                    }
                    Err(RecvError::Lagged(_)) => {
                        // What waits is as old as what was missed.
                        self.rings = self.rings.resubscribe();
                        self.changed.mark_changed();
                        let view = self.view.load_full();
                        self.compare(move |arcs| arcs.next(view.ring(), true, view.fence()));
                    }
                    Err(RecvError::Closed) => return None,
                },
                changed = self.changed.changed() => {
                    changed.ok()?;
                    let view = self.view.load_full();
                    if self.rings.is_empty() {
                        self.compare(move |arcs| arcs.look(&view));
                    } else {
                        // A ring comes before the views that it decides in.
                        self.changed.mark_changed();
                    }
                }
            }
        }
    }

    fn compare(&mut self, compare: impl FnOnce(&mut Arcs) -> Vec<ArcEvent> + Send + 'static) {
        let arcs = Arc::clone(&self.arcs);
        let compare = move || compare(&mut arcs.lock().unwrap_or_else(PoisonError::into_inner));
        self.comparing = Some(tokio::task::spawn_blocking(compare));
    }
}
