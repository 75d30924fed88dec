//! What changes in a running daemon when its administrator says so (SIGHUP).
//!
//! Limits, logging, certificates, the lists of allowed names and the access rules are taken over at once;
//! what a socket or a guest was made from counts from the next start, and the log names it. A configuration
//! that is wrong changes nothing.

use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{Config, ConfigError};
use crate::daemon;
use crate::drivers::Drivers;
use crate::logging::Logging;
use crate::rpc::auth::SaslRules;
use crate::rpc::server::Server;
use crate::util::paths::Paths;

/// The parts of a daemon that can be told something new.
#[derive(Debug)]
pub struct Reload {
    pub(crate) drivers: Arc<Drivers>,
    pub(crate) hypervisor: Arc<Server>,
    pub(crate) admin: Arc<Server>,
    pub(crate) logging: Logging,
    pub(crate) sasl: Arc<SaslRules>,
    /// What the daemon goes by now.
    pub(crate) config: Mutex<Config>,
}

impl Reload {
    /// Reads everything again; `config` is what the file says now.
    pub async fn run(&self, config: Result<Config, ConfigError>) {
        tracing::info!("the configuration and all definitions are read again");
        match config {
            Ok(config) => self.take_over(config),
            Err(error) => tracing::error!(%error, "the configuration of before stays in force"),
        }
        if let Err(error) = self.drivers.domains.reload().await {
            tracing::error!(%error, "cannot read the definitions again");
        }
        if let Err(error) = self.drivers.storage.reload().await {
            tracing::error!(%error, "cannot read the storage pools again");
        }
    }

    fn take_over(&self, config: Config) {
        // First, for it is the part that can still be wrong.
        if let Err(error) = self.logging.configure(&config.log) {
            tracing::error!(%error, "the configuration of before stays in force");
            return;
        }
        for remark in &config.remarks {
            tracing::warn!("configuration: {remark}");
        }
        self.hypervisor.set_limits(&daemon::limits(&config.server));
        self.admin.set_limits(&daemon::limits(&config.admin));
        if let Some(tls) = self.hypervisor.tls() {
            let settings = daemon::tls(&config.net, self.paths());
            if let Err(error) = tls.replace(settings) {
                tracing::error!(%error, "the certificates and the list of names of before stay in use");
            }
        }
        self.sasl.allow(config.auth.sasl_names.clone());
        if let Some(access) = self.hypervisor.access() {
            access.reload();
        }
        let mut current = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        for what in current.only_at_start(&config) {
            tracing::warn!("configuration: a change of {what} counts from the next start");
        }
        *current = config;
    }

    fn paths(&self) -> &Paths {
        &self.drivers.paths
    }
}
