//! Room for clients: how many there may be, which may change while they come and go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

#[derive(Debug)]
pub(super) struct Places {
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// `None`: as many as come.
    limit: Option<usize>,
    taken: usize,
    closed: bool,
}

/// One place; free again when it is dropped.
#[derive(Debug)]
pub struct Taken(Arc<Places>);

/// How many places each user of the host has.
#[derive(Debug, Default)]
pub(super) struct Shares {
    held: Mutex<HashMap<u32, usize>>,
}

/// One place of a user; no longer counted when it is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    user: u32,
}

impl Shares {
    /// One more for `user`, unless he has `limit` of them.
    pub(super) fn take(self: &Arc<Self>, user: u32, limit: usize) -> Option<Share> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(user).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Share { shares: Arc::clone(self), user })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.user);
            }
        }
    }
}

impl Places {
    pub(super) fn new(limit: Option<usize>) -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::new(State { limit, taken: 0, closed: false }) })
    }

    /// Waits for a place; none comes any more once they are closed.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Taken> {
        let mut changes = self.state.subscribe();
        loop {
            let now = changes.wait_for(|state| state.closed || state.has_room()).await.ok()?;
            if now.closed {
                return None;
            }
            drop(now);
            // Another may have been faster.
            let is_ours = self.state.send_if_modified(|state| {
                let is_ours = state.has_room() && !state.closed;
                state.taken += usize::from(is_ours);
                is_ours
            });
            if is_ours {
                return Some(Taken(Arc::clone(self)));
            }
        }
    }

    pub(super) fn close(&self) {
        self.state.send_modify(|state| state.closed = true);
    }

    /// Who has a place keeps it, even beyond a lower limit.
    pub(super) fn set_limit(&self, limit: Option<usize>) {
        self.state.send_modify(|state| state.limit = limit);
    }

    pub(super) fn taken(&self) -> usize {
        self.state.borrow().taken
    }

    pub(super) fn limit(&self) -> Option<usize> {
        self.state.borrow().limit
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.limit.is_none_or(|limit| self.taken < limit)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.taken -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn now<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_user_has_his_share_and_no_more() {
        let shares = Arc::new(Shares::default());
        let first = shares.take(7, 2).unwrap();
        let second = shares.take(7, 2).unwrap();
        assert!(shares.take(7, 2).is_none() && shares.take(8, 2).is_some());
        drop(first);
        assert!(shares.take(7, 2).is_some());
        drop(second);
        assert!(shares.held.lock().unwrap().is_empty(), "nothing is kept of those who have gone");
    }

    #[test]
    fn there_is_room_up_to_the_limit_of_the_moment() {
        let places = Places::new(Some(1));
        let first = now(places.take()).unwrap().unwrap();
        assert!(now(places.take()).is_none());
        places.set_limit(Some(2));
        let second = now(places.take()).unwrap().unwrap();
        places.set_limit(Some(1));
        drop(first);
        assert!(now(places.take()).is_none(), "the limit is lower now");
        drop(second);
        assert_eq!(places.state.borrow().taken, 0);
        let third = now(places.take()).unwrap().unwrap();
        let mut waiting = Box::pin(places.take());
        assert!(now(waiting.as_mut()).is_none());
        drop(third);
        assert!(now(waiting.as_mut()).unwrap().is_some(), "who waits hears of it");
        places.close();
        assert!(now(places.take()).unwrap().is_none());
    }
}
