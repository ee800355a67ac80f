//! The thread that builds rings: neither a probe nor a call waits for one.
//!
//! Views come from the gossip thread in order; each is published once its ring is there, and what was
//! overtaken meanwhile is passed over.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use arc_swap::ArcSwap;
use swimring_ring::Ring;
use tokio::sync::{broadcast, oneshot, watch};

use crate::core::view::View;

/// Most ring changes that a slow listener may be behind.
const RING_CHANGES: usize = 1_024;

/// Another ring than before decides who owns what, or the same one under another fence.
#[derive(Clone, Debug)]
pub struct RingChange {
    /// The ring that decides from now on.
    pub ring: Arc<Ring>,
    /// The fence under which this node holds what it owns by it.
    pub fence: u64,
    /// Others had removed this node and owned its keys for a time, whatever its own rings said: what it holds may be
    /// old.
    pub retaken: bool,
}

/// What the gossip thread hands over.
pub(crate) struct Publication {
    /// What is known now, if that changed.
    pub(crate) view: Option<View>,
    /// This node's keys were others' for a time.
    pub(crate) retaken: bool,
    /// Who waits for everything handed over so far to be published.
    pub(crate) waiting: Vec<oneshot::Sender<()>>,
}

/// What the application sees of the publisher.
#[derive(Clone)]
pub(crate) struct Published {
    pub(crate) view: Arc<ArcSwap<View>>,
    pub(crate) changed: watch::Receiver<u64>,
    pub(crate) rings: broadcast::Sender<RingChange>,
}

/// Starts the thread with the first view. It ends with the sender.
pub(crate) fn start(first: View) -> io::Result<(Sender<Publication>, Published)> {
    let (sender, receiver) = channel();
    let (publish, changed) = watch::channel(first.version());
    let (rings, _) = broadcast::channel(RING_CHANGES);
    let published = Published { view: Arc::new(ArcSwap::from_pointee(first)), changed, rings };
    let (view, rings) = (Arc::clone(&published.view), published.rings.clone());
    let run = move || publish_all(&receiver, &view, &publish, &rings);
    std::thread::Builder::new().name("swimring-views".into()).spawn(run)?;
    Ok((sender, published))
}

fn publish_all(
    receiver: &Receiver<Publication>,
    view: &ArcSwap<View>,
    publish: &watch::Sender<u64>,
    rings: &broadcast::Sender<RingChange>,
) {
    let mut last = None;
    while let Ok(Publication { view: mut newest, mut retaken, mut waiting }) = receiver.recv() {
        for later in receiver.try_iter() {
            newest = later.view.or(newest);
            retaken |= later.retaken;
            waiting.extend(later.waiting);
        }
        if let Some(new) = newest {
            let ring = Arc::clone(new.ring());
            let held = (ring.digest(), new.fence());
            if last.replace(held) != Some(held) {
                // Before the view: whoever runs under it can catch up with what it lost on the way.
                let _ = rings.send(RingChange { ring, fence: new.fence(), retaken });
            }
            let version = new.version();
            view.store(Arc::new(new));
            publish.send_replace(version);
        }
        waiting.into_iter().for_each(|waiting| _ = waiting.send(()));
    }
}
