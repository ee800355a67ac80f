//! Everything between this process and one other, and who is to be told that something waits there.

use super::*;

type Beside<T> = Ranked<T, { rank::BESIDE_LINK }>;

/// Everything between this process and one other.
pub(super) struct PeerLink {
    pub(super) link: Ranked<Link<Token, Bytes>, { rank::LINK }>,
    /// The writers of its connections, to be told that something waits.
    pub(super) writers: Beside<Vec<(ConnId, Arc<Writers>)>>,
    /// Calls of the other process that have a task here.
    pub(super) running: Beside<Running>,
    /// Refusals that wait to be written.
    pub(super) refusals: Refusals,
    /// Told when there may be room for answers again.
    pub(super) room: Notify,
    /// Attempts whose large answers are coming: each once.
    pub(super) arriving: Beside<HashSet<u64>>,
    /// Attempts that wait for a stream of their own, and what is to follow them.
    pub(super) duplex: Beside<HashMap<u64, Arc<DuplexCall>>>,
}

/// The writers of one connection.
#[derive(Debug, Default)]
pub(super) struct Writers {
    pub(super) lanes: Notify,
    pub(super) large: Notify,
    pub(super) duplex: Notify,
}

/// Most moments that are told apart while refusals wait: whoever sends calls and never reads all that waits for it makes more.
const MOMENTS_MAX: usize = 1_024;

/// When the calls were read whose refusals wait to be written, and how many at once.
#[derive(Default)]
pub(super) struct Refusals(Beside<Vec<(Instant, usize)>>);

impl Refusals {
    /// One more waits.
    pub(super) fn add(&self, read: Instant) {
        let mut waiting = self.0.lock();
        let is_full = waiting.len() >= MOMENTS_MAX;
        match waiting.last_mut() {
            Some((last, count)) if *last == read || is_full => *count += 1,
            _ => waiting.push((read, 1)),
        }
    }

    /// None waits from now on.
    pub(super) fn take(&self) -> Vec<(Instant, usize)> {
        std::mem::take(&mut self.0.lock())
    }
}

/// For which writers of a connection something waits.
#[derive(Copy, Clone, Default)]
struct Work {
    lanes: bool,
    large: bool,
    duplex: bool,
    /// Replies wait for another connection than the preferred one: its writers are told as long as they do.
    aside: bool,
}

impl Work {
    fn of(link: &Link<Token, Bytes>) -> Self {
        Self {
            lanes: link.has_work(),
            large: link.has_large_work(),
            duplex: link.has_duplex_work(),
            aside: link.returns_on().is_some(),
        }
    }

    fn is_any(self) -> bool {
        self.lanes || self.large || self.duplex || self.aside
    }

    /// What there was not `before`.
    fn since(self, before: Self) -> Self {
        Self {
            lanes: self.lanes && !before.lanes,
            large: self.large && !before.large,
            duplex: self.duplex && !before.duplex,
            aside: self.aside,
        }
    }
}

impl PeerLink {
    pub(super) fn new(link: Link<Token, Bytes>) -> Self {
        Self {
            link: Ranked::new(link),
            writers: Ranked::default(),
            running: Ranked::default(),
            refusals: Refusals::default(),
            room: Notify::new(),
            arriving: Ranked::default(),
            duplex: Ranked::default(),
        }
    }

    pub(super) fn lock(&self) -> Held<'_, Link<Token, Bytes>, { rank::LINK }> {
        self.link.lock()
    }

    pub(super) fn is_connected_with_work(&self) -> bool {
        let link = self.lock();
        link.is_connected() && Work::of(&link).is_any()
    }

    /// Waits until the other end has read enough of its answers, or has gone.
    pub(super) async fn wait_for_room(&self) {
        loop {
            let mut told = std::pin::pin!(self.room.notified());
            // From here on nothing that is told is missed.
            told.as_mut().enable();
            if !self.lock().is_choked() {
                return;
            }
            told.await;
        }
    }

    /// Something may wait to be written, and nobody may have been told.
    pub(super) fn wake(&self) {
        let work = Work::of(&self.lock());
        self.tell(work);
    }

    /// Changes the link, after which something may wait to be written. Who writes is told by whoever makes the first of
    /// it wait, and takes all of it.
    pub(super) fn queue<R>(&self, change: impl FnOnce(&mut Link<Token, Bytes>) -> R) -> R {
        let (done, new) = {
            let mut link = self.lock();
            let before = Work::of(&link);
            let done = change(&mut link);
            (done, Work::of(&link).since(before))
        };
        if new.is_any() {
            self.tell(new);
        }
        done
    }

    /// Every connection's writers are told: those of the one that is kept take it, and of others what goes back on them.
    fn tell(&self, work: Work) {
        for (_, writers) in self.writers.lock().iter() {
            if work.lanes || work.aside {
                writers.lanes.notify_one();
            }
            if work.large || work.aside {
                writers.large.notify_one();
            }
            if work.duplex {
                writers.duplex.notify_one();
            }
        }
    }

    /// Tells whoever waits for attempts that end without an answer.
    pub(super) fn report(cut: CutOff<Token>, lost: impl Fn() -> Report) {
        for token in cut.lost {
            let _ = token.send(lost());
        }
        for (token, proof) in cut.unsent {
            let _ = token.send(Report::Unsent(proof));
        }
    }
}
