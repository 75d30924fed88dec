//! What an administrator may look at and change: servers, their clients and limits, logging, the daemon's end.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::server::Server;
use crate::error::{Error, Origin, Result};
use crate::logging::Logging;

/// Shared by the calls of the administration and the daemon that they are about.
#[derive(Debug)]
pub struct Administration {
    /// They hold the routes that hold this.
    servers: OnceLock<Vec<Weak<Server>>>,
    pub logging: Logging,
    idle: watch::Sender<Option<Duration>>,
    stop: watch::Sender<bool>,
}

impl Administration {
    /// `idle`: how long a daemon that nobody needs goes on; `None` is for ever.
    pub fn new(logging: Logging, idle: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            servers: OnceLock::new(),
            logging,
            idle: watch::Sender::new(idle),
            stop: watch::Sender::new(false),
        })
    }

    /// Says once which servers there are.
    pub fn introduce<'a>(&self, servers: impl IntoIterator<Item = &'a Arc<Server>>) {
        let servers = servers.into_iter().map(Arc::downgrade).collect();
        // A second introduction would be a mistake of the one caller, and changes nothing.
        let _ = self.servers.set(servers);
    }

    pub fn servers(&self) -> Vec<Arc<Server>> {
        self.servers.get().into_iter().flatten().filter_map(Weak::upgrade).collect()
    }

    pub fn server(&self, name: &str) -> Result<Arc<Server>> {
        let missing = || Error::no_server(format!("No server named '{name}'")).from_origin(Origin::RPC);
        self.servers().into_iter().find(|server| server.name == name).ok_or_else(missing)
    }

    pub fn set_idle(&self, patience: Option<Duration>) {
        self.idle.send_replace(patience);
    }

    pub fn idle(&self) -> watch::Receiver<Option<Duration>> {
        self.idle.subscribe()
    }

    /// Ends the daemon as SIGTERM does.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Ready when an administrator has ended the daemon.
    pub async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        if stop.wait_for(|&stop| stop).await.is_err() {
            std::future::pending().await
        }
    }
}
