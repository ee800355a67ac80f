//! What waits to go back on connections beside the preferred one: none, as a rule.

use super::{Backlog, ConnId};

/// Replies, by the connection on which they go.
#[derive(Debug)]
pub(super) struct Aside<B>(Vec<(ConnId, Backlog<B>)>);

impl<B> Default for Aside<B> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<B: AsRef<[u8]>> Aside<B> {
    /// What waits for this connection, to be added to.
    pub(super) fn of(&mut self, conn: ConnId) -> &mut Backlog<B> {
        let place = self.place(conn).unwrap_or_else(|| {
            self.0.push((conn, Backlog::default()));
            self.0.len() - 1
        });
        &mut self.0[place].1
    }

    /// Takes some of what waits for this connection, if anything does.
    pub(super) fn take<R>(&mut self, conn: ConnId, take: impl FnOnce(&mut Backlog<B>) -> R) -> Option<R> {
        let place = self.place(conn)?;
        let taken = take(&mut self.0[place].1);
        if self.0[place].1.is_empty() {
            self.0.swap_remove(place);
        }
        Some(taken)
    }

    /// A connection for which something waits.
    pub(super) fn first(&self) -> Option<ConnId> {
        self.0.first().map(|(conn, _)| *conn)
    }

    /// How many bytes wait.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|(_, backlog)| backlog.bytes()).sum()
    }

    /// Whether something waits for the lanes of this connection.
    pub(super) fn has_pieces(&self, conn: ConnId) -> bool {
        self.0.iter().any(|(held, backlog)| *held == conn && backlog.has_pieces())
    }

    /// A connection takes nothing more: what still waits for it.
    pub(super) fn end(&mut self, conn: ConnId) -> Option<Backlog<B>> {
        self.place(conn).map(|place| self.0.swap_remove(place).1)
    }

    fn place(&self, conn: ConnId) -> Option<usize> {
        self.0.iter().position(|(held, _)| *held == conn)
    }
}
