//! The thread that builds rings: neither a probe nor a call waits for one.
//!
//! Views come from the gossip thread in order; each is published once its ring is there, and what was
//! overtaken meanwhile is passed over.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use arc_swap::ArcSwap;
use swimring_ring::Ring;
use tokio::sync::{broadcast, oneshot, watch};

use crate::core::passing::Passing;
use crate::core::publishing::Edition;
use crate::core::view::View;

/// Most ring changes that a slow listener may be behind: each holds a ring.
const RING_CHANGES: usize = 128;

/// Another ring than before decides who owns what, or the same one after others had this node's keys.
#[derive(Clone, Debug)]
pub struct RingChange {
    /// The ring that decides from now on; or one that was passed over.
    pub ring: Arc<Ring>,
    /// The ring never decided here: it has everybody besides who owned keys for a moment since the last one. Good for
    /// dropping what was lost to them, and for nothing else.
    pub passed: bool,
    /// The fence under which this node holds what it owns by it, for now: nodes with equal views come to share the highest,
    /// and every call says under which it runs.
    pub fence: u64,
    /// Others had removed this node and owned its keys for a time, whatever its own rings said: what it holds may be
    /// old.
    pub retaken: bool,
}

/// What the gossip thread hands over.
pub(crate) struct Publication {
    /// What is to be published, if anything changed.
    pub(crate) edition: Option<Edition>,
    /// Who waits for everything handed over so far to be published.
    pub(crate) waiting: Vec<oneshot::Sender<()>>,
}

/// What the application sees of the publisher.
#[derive(Clone)]
pub(crate) struct Published {
    pub(crate) view: Arc<ArcSwap<View>>,
    pub(crate) changed: watch::Receiver<u64>,
    pub(crate) rings: broadcast::Sender<RingChange>,
    pub(crate) behind: Behind,
}

/// How many views were handed over and are not published yet.
pub(crate) type Behind = Arc<AtomicU64>;

/// Starts the thread with the first view. It ends with the sender.
pub(crate) fn start(first: View) -> io::Result<(Sender<Publication>, Published)> {
    let (sender, receiver) = channel();
    let (publish, changed) = watch::channel(first.version());
    let (rings, _) = broadcast::channel(RING_CHANGES);
    let view = Arc::new(ArcSwap::from_pointee(first));
    let published = Published { view: Arc::clone(&view), changed, rings: rings.clone(), behind: Behind::default() };
    let behind = Arc::clone(&published.behind);
    let run = move || publish_all(&receiver, &view, &publish, &rings, &behind);
    std::thread::Builder::new().name("swimring-views".into()).spawn(run)?;
    Ok((sender, published))
}

fn publish_all(
    receiver: &Receiver<Publication>,
    view: &ArcSwap<View>,
    publish: &watch::Sender<u64>,
    rings: &broadcast::Sender<RingChange>,
    behind: &AtomicU64,
) {
    let mut last = None;
    let mut between = Passing::new(view.load().me().node);
    between.next(Arc::clone(view.load().ring_members()));
    while let Ok(first) = receiver.recv() {
        let (mut newest, mut retaken, mut waiting, mut editions) = (None::<View>, false, Vec::new(), 0);
        for publication in std::iter::once(first).chain(receiver.try_iter()) {
            waiting.extend(publication.waiting);
            let Some(edition) = publication.edition else { continue };
            editions += 1;
            if let Some(overtaken) = newest.replace(edition.view) {
                between.note_view(overtaken.ring_members());
            }
            retaken |= edition.retaken;
            edition.passing.into_iter().for_each(|owner| between.note_owner(owner));
        }
        if let Some(new) = newest {
            let ring = Arc::clone(new.ring());
            let (fence, passed) = (new.fence(), between.next(Arc::clone(new.ring_members())));
            retaken |= passed.retaken;
            // A fence that others have raised, and nothing else, is no change of who owns what.
            if last.replace(ring.digest()) != Some(ring.digest()) || retaken || !passed.owners.is_empty() {
                // Before the view: whoever runs under it can catch up with what it lost on the way, even if it won
                // that back at once.
                if !passed.owners.is_empty() {
                    let (ring, fence) = (new.ring_with(&passed.owners), fence.saturating_sub(1));
                    let _ = rings.send(RingChange { ring, fence, retaken, passed: true });
                }
                let _ = rings.send(RingChange { ring, fence, retaken, passed: false });
            }
            let version = new.version();
            view.store(Arc::new(new));
            publish.send_replace(version);
        }
        behind.fetch_sub(editions, Ordering::AcqRel);
        waiting.into_iter().for_each(|waiting| _ = waiting.send(()));
    }
}

#[cfg(test)]
mod tests {
    use swimring_membership::{Config, Instant, Membership, Name, Phase, Preset, Profile, Settings, Start};
    use swimring_ring::{KeyHash, Placement};

    use super::*;
    use crate::core::view::Rings;

    fn cluster() -> Name {
        Name::new("test").expect("the name follows the rule")
    }

    fn profile(number: u16) -> Profile {
        let name = Name::new(&format!("n{number}")).expect("the name follows the rule");
        let (gossip, calls) = (([127, 0, 0, 1], number).into(), ([127, 0, 0, 1], number + 1_000).into());
        Profile { name, gossip, calls, zone: None, weight: 1, tags: Vec::new() }
    }

    fn node(number: u16) -> Membership {
        let config = Config::new(Settings::preset(Preset::Lan)).expect("presets are valid");
        let start = Start { cluster: cluster(), profile: profile(number), boot: 1, life: 1, seed: 1 };
        let mut membership = Membership::new(Instant::ORIGIN, config, start).expect("the profile keeps its limits");
        membership.set_phase(Instant::ORIGIN, Phase::Ready);
        membership
    }

    fn hears(membership: &mut Membership, other: &Membership) {
        membership.merge_record(Instant::ORIGIN, other.id(), other.record().bytes()).expect("the record is whole");
    }

    #[test]
    fn what_was_lost_and_won_again_between_two_views_is_said() {
        let rings = Arc::new(Rings::default());
        let placement = Placement { arcs_log2: 10 };
        let view = |membership: &Membership, fence| View::of(membership, placement, &rings).with_fence(fence);
        let (mut membership, mut other) = (node(1), node(2));
        let (sender, receiver) = channel();
        let (changes, mut listener) = broadcast::channel(8);
        let published = ArcSwap::from_pointee(view(&membership, 1));
        let publication = |view| Publication {
            edition: Some(Edition { view, retaken: false, passing: Vec::new() }),
            waiting: Vec::new(),
        };
        hears(&mut membership, &other);
        sender.send(publication(view(&membership, 2))).unwrap();
        other.set_phase(Instant::ORIGIN, Phase::Draining);
        hears(&mut membership, &other);
        sender.send(publication(view(&membership, 3))).unwrap();
        drop(sender);
        let behind = AtomicU64::new(2);
        publish_all(&receiver, &published, &watch::channel(0).0, &changes, &behind);
        assert_eq!(behind.into_inner(), 0);
        let (passed, last) = (listener.try_recv().unwrap(), listener.try_recv().unwrap());
        let me = membership.id();
        let lost = |ring: &Ring| (0..1_000u64).filter(|key| ring.owner(KeyHash(key << 54)) != Ok(me)).count();
        assert!((300..700).contains(&lost(&passed.ring)), "the second node had about half for a moment");
        assert_eq!((lost(&last.ring), passed.fence, last.fence), (0, 2, 3));
        assert!(listener.try_recv().is_err());
    }
}
