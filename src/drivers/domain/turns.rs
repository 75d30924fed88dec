//! How many guests begin at once.
//!
//! A QEMU that begins computes: many more of them than processors finish no sooner, and everything else on the
//! host waits behind them. So the next one begins when one is up, or has taken long enough to be waiting
//! for something else (a dead file server): a start that hangs holds up the others for [`TURN`] and no more.
//!
//! ```text
//!  waits ──a turn is free──► has a turn ──QEMU is up, or TURN is over──► goes on, the turn is free
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Several times what a QEMU needs on an idle processor.
const TURN: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(super) struct Turns {
    free: Arc<Semaphore>,
}

impl Default for Turns {
    /// Two for each processor, because a beginning QEMU also waits for the kernel: with one, twenty starts took
    /// a fifth longer.
    fn default() -> Self {
        Self::of(2 * std::thread::available_parallelism().map_or(2, usize::from))
    }
}

impl Turns {
    fn of(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)) }
    }

    /// Returns when it is the caller's turn.
    pub(super) async fn next(&self) -> Turn<'_> {
        // Nobody closes the semaphore; if somebody did, there would be nothing to wait for.
        Turn { permit: self.free.acquire().await.ok() }
    }
}

/// Given back when this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    permit: Option<SemaphorePermit<'a>>,
}

impl Turn<'_> {
    /// Does `work`. Boxed by the caller: the future of a start is large.
    pub(super) async fn hold<R>(mut self, mut work: Pin<Box<impl Future<Output = R>>>) -> R {
        match tokio::time::timeout(TURN, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                self.permit = None;
                work.await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn no_more_begin_at_once_than_there_are_turns() {
        let (turns, running, most) = (Turns::of(2), AtomicUsize::new(0), AtomicUsize::new(0));
        let start = async || {
            let work = async {
                most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(TURN / 2).await;
                running.fetch_sub(1, Ordering::Relaxed);
            };
            turns.next().await.hold(Box::pin(work)).await;
        };
        tokio::join!(start(), start(), start(), start(), start());
        assert_eq!(most.into_inner(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_holds_up_the_others_for_one_turn() {
        let turns = Turns::of(1);
        let begin = tokio::time::Instant::now();
        tokio::select! {
            () = async { turns.next().await.hold(Box::pin(std::future::pending())).await } => unreachable!(),
            _ = async { tokio::task::yield_now().await; turns.next().await } => {}
        }
        assert!(begin.elapsed() >= TURN && begin.elapsed() < TURN * 2);
    }
}
