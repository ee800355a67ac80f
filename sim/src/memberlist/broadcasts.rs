//! News to tell: one piece a member, the least told first.

use super::{Id, News};

#[derive(Debug, Default)]
pub(super) struct Broadcasts {
    /// What is told, how often it was, and its turn.
    queue: Vec<(News, u32, u64)>,
    turn: u64,
}

impl Broadcasts {
    /// Newer news of a member replaces older.
    pub(super) fn push(&mut self, news: News) {
        self.forget(news.about);
        self.turn += 1;
        self.queue.push((news, 0, self.turn));
    }

    fn forget(&mut self, about: Id) {
        self.queue.retain(|(held, ..)| held.about != about);
    }

    /// As many as there is room for; each was told once more then, and goes once it was told `limit` times.
    pub(super) fn take(&mut self, room: usize, limit: u32, size: impl Fn(&News) -> usize) -> Vec<News> {
        if self.queue.is_empty() {
            return Vec::new();
        }
        self.queue.sort_by_key(|(_, told, turn)| (*told, std::cmp::Reverse(*turn)));
        let (mut left, mut taken) = (room, Vec::new());
        for (news, told, _) in &mut self.queue {
            let bytes = size(news);
            if bytes <= left {
                left -= bytes;
                *told += 1;
                taken.push(*news);
            }
        }
        self.queue.retain(|(_, told, _)| *told < limit);
        taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
