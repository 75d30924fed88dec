//! What a service manager is told: ready, reading again, stopping, alive (`sd_notify(3)`).
//!
//! Nobody listens unless one started the daemon, and none of it decides anything here.

use sd_notify::NotifyState;
use tokio::task::JoinSet;

pub fn tell(state: NotifyState<'_>) {
    send(&[state]);
}

/// systemd wants to know since when, so that it can tell this from an earlier time.
pub fn tell_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager cannot be told of a reload"),
    }
}

/// Signs of life for as long as the answer is kept, where the service manager waits for them. A daemon whose
/// threads are all stuck gives none, and is replaced; its guests go on.
pub fn stay_alive() -> JoinSet<()> {
    let mut signs = JoinSet::new();
    if let Some(limit) = sd_notify::watchdog_enabled() {
        signs.spawn(async move {
            let mut pulse = tokio::time::interval(limit / 2);
            loop {
                pulse.tick().await;
                send(&[NotifyState::Watchdog]);
            }
        });
    }
    signs
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told of a change");
    }
}
