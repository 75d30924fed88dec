//! Noticing dead clients (program 0x6b656570): after a time of silence a ping, after some unanswered
//! pings the end.
//!
//! ```text
//! quiet for `interval` ──▶ PING, one life less ──▶ … ──▶ no lives left ──▶ dead
//!        ▲ anything arrives: all lives back
//! ```
//!
//! Only once the client has asked whether the daemon speaks it; its own pings are answered always.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ferrovirt_protocol::frame::{FrameType, Header, Status};
use tokio::time::{Instant, Sleep};

pub const PROGRAM: u32 = 0x6b65_6570;
const VERSION: u32 = 1;
const PING: i32 = 1;
const PONG: i32 = 2;

/// How patient the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Silence before a ping; `None` sends none.
    pub interval: Option<Duration>,
    /// Pings without an answer.
    pub count: u32,
}

/// What the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ping,
    Dead,
}

#[derive(Debug)]
pub struct Keepalive {
    patience: Patience,
    lives: u32,
    /// When something was last heard, or the last ping sent.
    quiet_since: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Keepalive {
    pub fn new(patience: Patience) -> Self {
        Self { patience, lives: patience.count, quiet_since: Instant::now(), timer: None }
    }

    /// Something arrived.
    pub fn heard(&mut self) {
        self.lives = self.patience.count;
        if self.timer.is_some() {
            self.quiet_since = Instant::now();
        }
    }

    /// Whether `header` belongs to this protocol, and what to answer.
    pub fn answer(header: &Header) -> Option<Option<Header>> {
        let ours =
            header.program == PROGRAM && header.version == VERSION && header.kind == FrameType::MESSAGE;
        ours.then(|| (header.procedure == PING).then(|| message(PONG)))
    }

    pub fn ping() -> Header {
        message(PING)
    }

    /// Pending until there is something to do.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Verdict> {
        let Some(interval) = self.patience.interval else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| {
            self.quiet_since = Instant::now();
            Box::pin(tokio::time::sleep(interval))
        });
        loop {
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            let due = self.quiet_since + interval;
            if due > now {
                timer.as_mut().reset(due);
                continue;
            }
            if self.lives == 0 {
                return Poll::Ready(Verdict::Dead);
            }
            self.lives -= 1;
            self.quiet_since = now;
            timer.as_mut().reset(now + interval);
            return Poll::Ready(Verdict::Ping);
        }
    }
}

fn message(procedure: i32) -> Header {
    Header {
        program: PROGRAM,
        version: VERSION,
        procedure,
        kind: FrameType::MESSAGE,
        serial: 0,
        status: Status::OK,
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_pinged_and_then_given_up() {
        let interval = Duration::from_secs(5);
        let mut keepalive = Keepalive::new(Patience { interval: Some(interval), count: 2 });
        let start = Instant::now();
        for verdict in [Verdict::Ping, Verdict::Ping, Verdict::Dead] {
            assert_eq!(poll_fn(|context| keepalive.poll(context)).await, verdict);
        }
        assert_eq!(start.elapsed().as_secs(), 15);
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_is_heard_gives_all_lives_back() {
        let interval = Duration::from_secs(5);
        let mut keepalive = Keepalive::new(Patience { interval: Some(interval), count: 1 });
        for _ in 0..3 {
            assert_eq!(poll_fn(|context| keepalive.poll(context)).await, Verdict::Ping);
            keepalive.heard();
        }
    }

    #[test]
    fn only_a_ping_is_answered() {
        let ping = message(PING);
        assert_eq!(Keepalive::answer(&ping), Some(Some(message(PONG))));
        assert_eq!(Keepalive::answer(&message(PONG)), Some(None));
        assert_eq!(Keepalive::answer(&Header { program: 1, ..ping }), None);
    }
}
